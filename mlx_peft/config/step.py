"""What a suite makes of a finished run: a model merged, or in few bits, that is measured on the run's own images."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.config.section import Section
from mlx_peft.config.simulation import Simulation
from mlx_peft.config.tokens import Reducer
from mlx_peft.core.errors import UserError, shown
from mlx_peft.vit.architecture import Architecture

NAME = re.compile(r"[A-Za-z0-9][\w.+=,-]*")


def fit_for_a_folder(name: str) -> str:
    """The name itself. Raises ValueError where it would not do for a folder."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"should be letters, digits and any of . _ + = , - (a folder gets this name), not {shown(name)}"
        )
    return name


FolderName = Annotated[str, Field(max_length=100), AfterValidator(fit_for_a_folder)]
"""A name for a folder; axes and seeds add theirs, and a folder's name may have 255 bytes."""


class Step(Section):
    """One thing that is made of a run: just one of its keys but the name."""

    name: FolderName = Field(description="its folder is called RUN-NAME, RUN-NAME-simulated with simulate")
    merge: Literal["exact", "dequantize", "requantize"] | None = Field(
        None, description="a model of the run; over a quantised base: what becomes of the codes"
    )
    quantize: Quantization | None = Field(None, description="a merged model of the run in so few bits")
    simulate: Simulation | None = Field(None, description="the run's model with activations rounded too, in simulation")
    tokens: Reducer | None = Field(None, description="the run's model under a reducer that it was not trained with")

    @model_validator(mode="after")
    def _is_one_thing(self) -> Step:
        kinds = [name for name in type(self).model_fields if name != "name"]
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"should have just one of {', '.join(kinds)}")
        return self

    @property
    def folder(self) -> str:
        """What is added to the run's name: what is simulated is called so."""
        return f"{self.name}-simulated" if self.simulate else self.name

    @property
    def kind(self) -> str:
        """The key that it has."""
        return next(name for name in type(self).model_fields if name != "name" and getattr(self, name) is not None)

    def check(self, experiment: Experiment, architecture: Architecture, base: Quantization | None) -> None:
        """Raises UserError where it cannot be made of a run of this experiment, over a base that is quantised so."""
        if self.tokens is not None:
            experiment.method.check_tokens(self.tokens)
            self.tokens.check(architecture)
            if self.tokens.trains:
                raise UserError(f"{self.name}: {self.tokens.name} is trained, so no finished run can have it")
            return
        if self.simulate is not None:
            self.simulate.check(architecture)
        if not experiment.method.merges:
            raise UserError(f"{self.name}: method {experiment.method.name} cannot be merged into a plain model")
        if self.quantize is not None and (base is not None or experiment.qat is not None):
            raise UserError(f"{self.name}: the run's model is in codes already, so quantize is not for it: merge it")
        coded = base is not None or (experiment.qat is not None and self.merge == "dequantize")
        if self.merge in ("dequantize", "requantize") and not coded:
            raise UserError(f"{self.name}: the run's base is not quantised: write merge: exact")
        if self.merge == "exact" and base is not None and not experiment.method.over_codes:
            raise UserError(
                f"{self.name}: {experiment.method.name} does not merge into codes exactly: write merge: dequantize, or "
                "requantize"
            )
