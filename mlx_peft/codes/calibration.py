"""How a model is quantised in simulation: what its operands are on a few images, and the quantisers that follow.

The images are looked at twice: for the ranges, and then for the squared errors of all quantisers that might be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlx_peft.codes.affine import decibels, sqnr
from mlx_peft.codes.quantizers import LogSqrt2, Quantizer, Uniform, rounded_weight
from mlx_peft.codes.reparametrize import Reparametrization
from mlx_peft.config.simulation import ATTENTION, FLOAT, NORMED, Simulation, layers, points
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture

SAMPLE, JUDGED = 2**18, 2**22
"""So many numbers of an operand are kept for percentiles, of all images together; errors are taken on so many of those
that come by at a time. Rows are kept or left out whole."""

TAILS = (100.0, 99.99, 99.9, 99.5, 99.0)
"""The percentiles between which calibration repq chooses by squared error."""

Candidate = Quantizer | Reparametrization


@dataclass
class Operand:
    """What was seen of an operand, taken as rows of ``dim`` numbers.

    Attributes:
        low, high: extremes of each column, ``(dim,)``.
        rows: a sample, each ``(n, dim)``.
    """

    low: np.ndarray
    high: np.ndarray
    rows: list[np.ndarray] = field(default_factory=list)

    def span(self, tail: float) -> tuple[float, float]:
        """Between two percentiles of the sample, or the extremes of all."""
        if tail == 100:
            return float(self.low.min()), float(self.high.max())
        low, high = np.percentile(np.concatenate(self.rows), (100 - tail, tail))
        return float(low), float(high)

    def spans(self, tail: float) -> tuple[np.ndarray, np.ndarray]:
        """The same for each column, ``(dim,)``."""
        if tail == 100:
            return self.low, self.high
        low, high = np.percentile(np.concatenate(self.rows), (100 - tail, tail), axis=0)
        return low, high


class Ranges:
    """The first look at operands as they come by: extremes of all, and a sample of bounded size.

    Args:
        images: how many there will be in all.
        seed: of the sample.
    """

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed
        self.operands: dict[str, Operand] = {}

    def __call__(self, point: str, operand: np.ndarray) -> None:
        rows = operand.reshape(-1, operand.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
        seen = self.operands.setdefault(point, Operand(low, high))
        seen.low, seen.high = np.minimum(seen.low, low), np.maximum(seen.high, high)
        # The same rows of two operands of one shape: SwiGLU's two layers share theirs.
        seen.rows.append(sampled(rows, SAMPLE * len(operand) // self.images, [self.seed, len(seen.rows)]))


class Choice:
    """The candidates for one operand, and their squared errors so far."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.noise = np.zeros(len(candidates))
        self.signal = 0.0

    def look(self, rows: np.ndarray) -> None:
        """Adds up."""
        self.signal += float(np.square(rows, dtype=np.float64).sum())
        for index, candidate in enumerate(self.candidates):
            self.noise[index] += np.square(candidate(rows) - rows, dtype=np.float64).sum()

    @property
    def best(self) -> Candidate:
        """The candidate of the least error; of equal ones the first."""
        return self.candidates[int(self.noise.argmin())]

    @property
    def decibels(self) -> float:
        """The best candidate's SQNR."""
        return decibels(self.signal, float(self.noise.min()))


class Errors:
    """The second look: what every candidate of every choice makes of the operands."""

    def __init__(self, choices: Sequence[Mapping[str, Choice]], seed: int) -> None:
        self.choices, self.seed = choices, seed

    def __call__(self, point: str, operand: np.ndarray) -> None:
        rows = sampled(operand.reshape(-1, operand.shape[-1]), JUDGED, [self.seed])
        for choices in self.choices:
            choices[point].look(rows)


def sampled(rows: np.ndarray, numbers: int, seed: Sequence[int]) -> np.ndarray:
    """As many rows as hold so many numbers, one at least, in their order; all where there are no more."""
    wanted = max(1, numbers // rows.shape[1])
    if wanted < len(rows):
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), wanted, replace=False))]
    return np.array(rows)


def choices(simulation: Simulation, architecture: Architecture, operands: Mapping[str, Operand]) -> dict[str, Choice]:
    """What comes into question for each operand, by point."""
    found = {point: Choice(candidates(simulation, point, operands[point])) for point in points(architecture)}
    if simulation.reparametrizes:
        for readers in normed(architecture).values():
            seen = operands[readers[0]]
            every = [Reparametrization.of(*seen.spans(tail), simulation.activations) for tail in TAILS]
            found |= {reader: Choice(every) for reader in readers}
    return found


def candidates(simulation: Simulation, point: str, seen: Operand) -> list[Candidate]:
    """The quantisers of an operand as one tensor."""
    bits = simulation.activations
    tails = {"minmax": (100.0,), "percentile": (simulation.percentile,), "repq": TAILS}[simulation.calibration]
    kinds = simulation.probabilities if point.endswith(f".{ATTENTION[-1]}") else ("uniform",)
    found: list[Candidate] = []
    for low, high in map(seen.span, tails):
        found += [Uniform.over(low, high, bits)] if "uniform" in kinds else []
        found += [LogSqrt2.up_to(high, bits)] if "log_sqrt2" in kinds else []
    return found


@dataclass(frozen=True)
class Plan:
    """A model quantised in simulation.

    Attributes:
        tensors: timm's state dictionary: plain float32 weights that are what their codes stand for.
        quantizers: of operands, by point.
        weights: SQNR in dB of each layer's weight, by path.
        activations: SQNR in dB of each operand that is quantised, by point, on calibration images, each alone.
    """

    tensors: Tensors
    quantizers: dict[str, Quantizer]
    weights: dict[str, float]
    activations: dict[str, float]


def plan(simulation: Simulation, architecture: Architecture, tensors: Tensors, choices: Mapping[str, Choice]) -> Plan:
    """Takes the best quantisers, lets norms and layers absorb what these ask for, and rounds the weights.

    Args:
        tensors: a plain model's, float32.
        choices: looked at; none where activations stay float.
    """
    changed, quantizers = dict(tensors), {}
    for norm, readers in normed(architecture).items():
        if choices and isinstance(change := choices[readers[0]].best, Reparametrization):
            changed = change.absorbed(changed, norm, readers)
    for point, choice in choices.items():
        best = choice.best
        quantizers[point] = best.quantizer if isinstance(best, Reparametrization) else best
    weights = {}
    if simulation.weights < FLOAT:
        for site in layers(architecture):
            weight = changed[f"{site.path}.weight"]
            changed[f"{site.path}.weight"] = rounded = rounded_weight(weight, simulation.weights, simulation.ratios)
            weights[site.path] = sqnr(weight, rounded)
    return Plan(changed, quantizers, weights, {point: choice.decibels for point, choice in choices.items()})


def normed(architecture: Architecture) -> dict[str, list[str]]:
    """The norms before linear layers, by path, and the layers that read each."""
    found: dict[str, list[str]] = {}
    for site in layers(architecture):
        block = site.path.rsplit(".", 2)[0]
        for norm, names in NORMED.items():
            if site.name in names:
                found.setdefault(f"{block}.{norm}", []).append(site.path)
    return found
