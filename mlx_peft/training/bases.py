"""What an adapter is put on, and a run as weights to start from: its base with what it trained merged into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from convert.adapters.fitting import must_fit
from convert.adapters.peft import Adapter, read_adapter
from convert.base import Base, Found, load_base
from convert.checkpoint import Checkpoint
from convert.problem import must_answer
from convert.weights import Opener, open_weights
from mlx_peft.adaptation.room import check_answering
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.core.errors import Command, UserError
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.places import candidates, read_found
from mlx_peft.training.run import RunFolder
from mlx_peft.training.whereabouts import adapter_in, find_weights, given, merged_digest
from mlx_peft.vit.registry import find

BackendName = Literal["mlx", "torch"]


def opener(backend: BackendName, entered: frozenset[str] = frozenset()) -> Opener:
    """What finds the weights that an experiment names: those of a run or an adapter are merged by the backend.

    ``entered`` are the adapters, by their whole paths, whose bases these weights are: none of them can be its own.
    """

    def opened(model: Model) -> Checkpoint:
        place = adapter_of(model)
        if place is None:
            return open_weights(model)
        if (path := os.path.realpath(place)) in entered:
            raise _circular(place)
        return merged(place, model, backend, entered | {path})

    return opened


def _circular(place: Path) -> UserError:
    return UserError(
        f"{place} stands on itself: the base that it names is that adapter again, or stands on it; say where the "
        "weights are that it was trained on",
        arguments=("weights",),
    )


def chain(model: Model) -> Iterator[str]:
    """Where the local weights of a model lie; where those are an adapter's, where its base lies too, and so on.

    Raises UserError where a base is not found, or an adapter stands on itself.
    """
    entered: set[str] = set()
    while model.is_local:
        yield model.weights
        if (place := adapter_of(model)) is None:
            return
        if (path := os.path.realpath(place)) in entered:
            raise _circular(place)
        entered.add(path)
        adapter, run = read_adapter(place), run_of(place)
        own = adapter.model if run is None else run.model
        if own is None:
            return
        model = below(own, adapter, place)


def described(model: Model) -> Checkpoint:
    """The same without the tensors of a run or an adapter: what is known of it before anything is merged."""
    place = adapter_of(model)
    if place is None:
        return open_weights(model)
    adapter = read_adapter(place)
    if adapter.architecture is None:
        raise UserError(f"model.weights: {place} does not say which model it belongs to: merge it into a folder first")
    return Checkpoint(
        model.name, model.weights, adapter.architecture, adapter.preprocessing, find(model.name).resampling,
        classes=adapter.classes, described=True, task=adapter.task,
    )  # fmt: skip


def adapter_of(model: Model) -> Path | None:
    """The adapter that a model names as its weights; None where they are something else.

    Raises UserError where they are a run that is not finished.
    """
    path = Path(os.path.expanduser(model.weights))
    if not model.is_local or not os.path.isdir(path):
        return None
    place = adapter_in(path)
    if place is None and os.path.exists(RunFolder(path).config):
        raise UserError(f"model.weights: {path} is a run that is not finished: continue it first")
    return place


def merged(place: Path, model: Model, backend: BackendName, entered: frozenset[str] = frozenset()) -> Checkpoint:
    """An adapter merged into its base, as weights; codes are written out, as the plain weights they stand for.

    Args:
        place: the adapter's folder.
        model: names it as its weights; it must be of the same architecture.
        entered: see ``opener``.

    Raises:
        UserError: where the base is not found, or the method cannot be merged.
    """
    adapter, run = read_adapter(place), run_of(place)
    own = adapter.model if run is None else run.model
    if own is None:
        raise UserError(f"model.weights: {place} does not say which model it belongs to: merge it into a folder first")
    if own.name.partition(".")[0] != model.name.partition(".")[0]:
        raise UserError(f"model.name is {model.name!r}, and {place} was trained on {own.name!r}")
    _must_merge(adapter, place)
    base = adapter_base(
        adapter, place, below(own, adapter, place), method=adapter.method, quantize=adapter.quantize, qat=adapter.qat,
        seed=0 if run is None else run.seed, opener=opener(backend, entered),
    )  # fmt: skip
    entry = load_backend(backend)
    check_answering(
        base.name,
        base.architecture,
        base.quantization,
        num_classes=adapter.num_classes,
        images=1,
        precision="float32",
        device=entry.computing(),
    )
    built = entry.build_model(base, adapter.num_classes, adapter.method, qat=adapter.qat)
    try:
        built.load_adapter(adapter.tensors)
    except ValueError as error:
        raise UserError(f"{place} does not fit {base.name}: {error}") from error
    digest = merged_digest(adapter)
    return Checkpoint(
        name=base.name,
        source=model.weights,
        architecture=base.architecture,
        preprocessing=base.preprocessing,
        resampling=find(base.name).resampling,
        tensors=built.merged(dequantize=base.quantization is not None or adapter.qat is not None),
        notes=(
            f"model.weights: {model.weights}, {adapter.method.name} merged into its base ({digest[:12]}); the "
            "optimiser is new",
        ),
        classes=adapter.classes,
        described=True,
        task=base.task,
        sha256=digest,
        tokens=adapter.tokens,
    )


def _must_merge(adapter: Adapter, place: Path) -> None:
    """Raises UserError, which says why, where an adapter folds into no plain weights."""
    if not adapter.method.merges:
        raise UserError(
            f"model.weights: {place} cannot be merged into plain weights ({adapter.method.name}: "
            f"{adapter.method.unmerged}); to go on from what it trained, name it in method.from"
        )
    if adapter.tokens is not None:
        adapter.tokens.must_merge()


def adapter_base(
    adapter: Adapter,
    place: Path,
    model: Model,
    *,
    method: MethodConfig,
    quantize: Quantization | None,
    qat: QAT | None,
    seed: int,
    opener: Opener,
) -> Base:
    """The base that an adapter was trained on, with its task and its preprocessing.

    Args:
        place: the adapter's folder.
        model: with its weights where they are now: see ``base_model``.
        method, quantize, qat, seed: of the run, or what the adapter says.

    Raises:
        UserError: where the weights that are found are others, and where the adapter's tensors are not those of the
            method on such a model: what a file claims is compared with what it holds before anything of the claimed
            size is made.
    """

    def must_meet(found: Found) -> None:
        if found.sha256 is not None and adapter.base_sha256 not in (None, found.sha256):
            raise UserError(
                f"{place} is an adapter for another base: it was trained on weights {str(adapter.base_sha256)[:12]} "
                f"({adapter.source}), and {found.source} has {found.sha256[:12]}"
            )
        codes = found.quantization or adapter.quantize if found.sha256 is None else found.quantization
        what = f"{place} does not fit {model.name}"
        must_fit(adapter.tensors, what, method, found.architecture, adapter.num_classes, codes, qat, adapter.tokens)

    headless = model.model_copy(update={"head": "new", "args": {**adapter.fields, **model.args}})  # it has its own
    base = load_base(headless, adapter.num_classes, seed, quantize, must_meet, opener=opener)
    must_answer(adapter.num_classes, adapter.task, place)
    notes = tuple(note for note in base.notes if note != base.head.note)
    return replace(base, task=adapter.task, notes=notes, preprocessing=adapter.preprocessing or base.preprocessing)


def below(model: Model, adapter: Adapter, place: Path) -> Model:
    """The base of an adapter that is itself the base of something. Raises UserError where its weights are nowhere.

    A command that is told where weights are looks there for those of its own base, and not for these: what helps is
    to open the adapter itself with them, after which they are found by their digest.
    """
    try:
        return base_model(model, adapter, place)
    except UserError as error:
        if not error.arguments:
            raise
        owner = place if run_of(place) is None else place.parent
        say = Command("say it once, of what stands on them", ("eval", str(owner)), {"weights": "WEIGHTS"})
        raise UserError(str(error), command=say) from error


def base_model(model: Model, adapter: Adapter, place: Path, weights: str | None = None) -> Model:
    """The base of an adapter with its weights where they are now: where the user says, or else where they are found.

    Raises UserError where they are nowhere.
    """
    if weights is not None:
        return given(model, weights)
    run = RunFolder(place.parent)
    alone = run_of(place) is None
    found = None if alone else read_found(run)
    places = candidates(model.weights, place if alone else run.path, found, "weights")
    return find_weights(model, adapter.base_sha256, places, str(place))


def run_of(place: Path) -> Experiment | None:
    """The experiment that trained an adapter; None of an adapter that lies in no run."""
    run = RunFolder(place.parent)
    return run.read_config() if place == run.adapter and run.config.exists() else None
