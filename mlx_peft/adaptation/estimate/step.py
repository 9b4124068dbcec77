"""What a step of training holds and computes, from its configuration alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.adaptation.estimate.devices import Device, Kind
from mlx_peft.adaptation.estimate.forms import form
from mlx_peft.adaptation.estimate.network import Network
from mlx_peft.adaptation.estimate.operations import Operations
from mlx_peft.adaptation.estimate.reducers import reducer
from mlx_peft.adaptation.estimate.rules import RULES, Rules
from mlx_peft.adaptation.estimate.tape import FLOAT32, Moment, Tape
from mlx_peft.adaptation.footprint import BYTES, Parts, count
from mlx_peft.config.methods.lora import BELOW
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import AdamW, Experiment
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import EXACT, is_head, last
from mlx_peft.vit.shapes import Shapes, shapes


@dataclass(frozen=True)
class Step:
    """A step of training.

    Attributes:
        memory: bytes at the moment when most is held: weights, adapter, optimizer, gradients, activations (what the
            forward pass keeps for the backward one), workspace (what is computed at that moment, and from what).
        kept: bytes that the forward pass of one part of a batch keeps.
        operations: by the bytes of the numbers that are multiplied; an addition and a multiplication are two.
        traffic: bytes that must go through the memory at least.
    """

    memory: Parts
    kept: int
    operations: Counter[int]
    traffic: int

    @property
    def peak(self) -> int:
        """Bytes at the moment when most is held."""
        return sum(self.memory.values())


def step(
    experiment: Experiment,
    architecture: Architecture,
    num_classes: int,
    *,
    images: int | None = None,
    quantization: Quantization | None = None,
    on: Kind = "cpu",
) -> Step:
    """The step of an experiment.

    Args:
        experiment: whose backend's rules hold.
        architecture: of its model.
        num_classes: width of the head.
        images: of a batch; None: as many as it says.
        quantization: of the base.
        on: what computes.

    Raises:
        UserError: where the method, the reducer or the codes do not fit the model.
    """
    train, rules = experiment.train, RULES[experiment.backend]
    batch = -(-(images or experiment.data.batch_size) // train.accumulate)
    net = network(experiment, architecture, num_classes, quantization, rules.tapes[on]())
    net.form.penalty(net)
    net.step(batch)
    held = resting(experiment, net)
    moment = most(net.tape, held, rules, train.accumulate)
    weights = held["weights"] + held["adapter"]
    # Of the backward pass the weights that a gradient goes through: each costs what it did forward, or twice that.
    passes = 1 + min(1.0, sum(net.tape.backward.values()) / (2 * sum(net.tape.forward.values())))
    operations = Counter({item: n * train.accumulate for item, n in (net.tape.forward + net.tape.backward).items()})
    return Step(
        memory={
            **held,
            "gradients": moment.gradients,
            "activations": moment.kept,
            "workspace": moment.passing,
        },
        kept=net.tape.kept,
        operations=operations,
        # Weights are read in each pass, what is kept is written and read, and so is all that is updated.
        traffic=train.accumulate * int(passes * weights + 2 * net.tape.kept) + 4 * net.tape.met + 2 * held["optimizer"],
    )


def network(
    experiment: Experiment,
    architecture: Architecture,
    num_classes: int,
    quantization: Quantization | None,
    tape: Operations,
) -> Network:
    """The network of an experiment."""
    method, qat = experiment.method, experiment.qat
    plain = shapes(architecture, num_classes)
    base = plain if quantization is None else quantization.stored(architecture, plain)
    held = adapter_shapes(method, architecture, num_classes, quantization, qat, experiment.tokens)
    trained = {*method.selected(architecture), *filter(is_head, plain)}
    trained |= {name for name in held if name not in plain and not method.keeps(name)}
    if experiment.tokens is not None:
        experiment.tokens.check(architecture)
    rounded = set() if qat is None else {f"{site.path}.weight" for site in qat.sites(architecture)}
    exact = rounded | (held.keys() - base.keys()) | {name for name in base if last(name) in EXACT}
    return Network(
        tape,
        architecture,
        base | without_copies(held),
        trained,
        exact,
        BYTES[experiment.train.precision],
        form(method, architecture),
        reducer(experiment.tokens),
        quantization,
        qat,
        experiment.model.drop_path,
        experiment.model.head_dropout,
        experiment.train.gradient_checkpointing,
    )


def without_copies(held: Shapes) -> Shapes:
    """An adapter's tensors without codes that stand in the place of the base's."""
    return {name: shape for name, shape in held.items() if f".{BELOW}." not in name}


def resting(experiment: Experiment, net: Network) -> Parts:
    """What is held between two steps: weights, adapter, and the optimiser's moments."""
    own = shapes(net.architecture, 1)
    added = {name for name in net.parameters if name not in own and not is_code(name, net)}
    sizes = {name: size_of(name, net) for name in net.parameters}
    optimizer = experiment.train.optimizer
    if isinstance(optimizer, AdamW):
        slots = 2
    else:
        slots = int(optimizer.momentum > 0 or RULES[experiment.backend].idle_momentum)
    numbers = count({name: net.parameters[name] for name in net.trained})
    averaged = count({name: net.parameters[name] for name in net.form.averaged(net)})
    return {
        "weights": sum(size for name, size in sizes.items() if name not in added),
        "adapter": sum(size for name, size in sizes.items() if name in added),
        "optimizer": FLOAT32 * (slots * numbers + 2 * averaged),
    }


def size_of(name: str, net: Network) -> int:
    """Bytes of a parameter."""
    if is_code(name, net) and last(name) == "weight":
        return FLOAT32 * math.prod(net.parameters[name])
    return net.parameter(name).size


def is_code(name: str, net: Network) -> bool:
    """Whether a tensor is one of a quantised layer's."""
    return net.quantization is not None and net.coded(name.rpartition(".")[0]) and last(name) != "bias"


def most(tape: Tape, held: Parts, rules: Rules, parts: int) -> Moment:
    """The moment of a step of so many parts at which most is held."""
    peak, gradients = tape.peak(), tape.met
    if parts > 1:  # a later part, beside the sum of those before it
        before = gradients if rules.in_place else gradients + peak.gradients
        peak = peak._replace(gradients=before)
    updating = Moment(0, 0 if rules.in_place else gradients + held["optimizer"], gradients)
    return max(peak, updating, key=lambda moment: moment.total)


def least_seconds(found: Step, device: Device, precision: str) -> float | None:
    """What no step on a device can take less than: operations at its highest rate, or bytes at its bandwidth.

    None where its maker says neither. ``precision`` is the experiment's.
    """
    numbers = {4: precision if BYTES[precision] == FLOAT32 else "float32", 2: "half"}
    rates = {item: device.rate(numbers[item]) for item in found.operations}
    computing = sum(count / rate for item, count in found.operations.items() if (rate := rates[item]) is not None)
    moving = 0.0 if device.bandwidth is None else found.traffic / device.bandwidth
    return max(computing, moving) or None
