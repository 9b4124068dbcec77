"""Methods whose update of a weight is a product B A: one product with W + s B A, or two narrow ones beside W."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from mlx_peft.adaptation.estimate.forms.form import Form, Targeting, dropped, made
from mlx_peft.adaptation.estimate.network import Network
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Calls
from mlx_peft.config.methods import AdaLoRA, FacT, LoHa, LoRA, MethodConfig, MiSS, QALoRA, RandLoRA, VeRA
from mlx_peft.config.methods.base import Targeted
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import Site

Config = TypeVar("Config", bound=MethodConfig)
Chosen = TypeVar("Chosen", bound=Targeted)


class LowRank(Form[Config]):
    """As the backends' ``LowRankLinear``: formed in float32 over a float base where nothing is dropped."""

    dropout = 0.0

    @abstractmethod
    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        """A ``(r, in)`` and B ``(out, r)`` of the whole change from W."""

    def forms(self, net: Network, path: str, x: Array) -> bool:
        """Whether y is one product with the formed weight."""
        return x.item == FLOAT32 and not net.coded(path) and not self.dropout

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        if self.forms(net, site.path, x):
            return product(net, site.path, x, *self.factors(net, site), net.these(site.path, "bias"))
        return self.beside(net, site, x)

    def beside(self, net: Network, site: Site, x: Array) -> Array:
        """The update beside W."""
        A, B = self.factors(net, site)
        if x.item == FLOAT32:
            return plus(net, net.plain(site.path, x), dropped(net, x, self.dropout), A, B)
        return joined(net, site.path, x, net.tape.product(dropped(net, x, self.dropout), A), net.tape.scaled(B))

    def formed(self, net: Network, path: str) -> Array:
        weight, site = super().formed(net, path), self.sites.get(path)
        if site is None:
            return weight
        A, B = self.factors(net, site)
        return net.tape.run([weight, A, B], weight.shape, keeps=[A, B], beside=made(weight.shape).size)


class Layerwise(LowRank[Chosen], Targeting[Chosen]):
    """One that adapts linear layers by their targets."""

    def __init__(self, method: Chosen, architecture: Architecture) -> None:
        super().__init__(method, architecture)
        self.dropout = method.dropped


class LoRAForm(Layerwise[LoRA]):
    """LoRA, however it starts, and DoRA."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        A, B = placed(net, site, *net.these(site.path, "lora_A", "lora_B"))
        if (kept := self.method.start_kept) is None:
            return A, B
        first_A, first_B = placed(net, site, *net.these(site.path, *kept))
        return net.tape.joined([A, first_A], 0), net.tape.joined([B, net.tape.scaled(first_B)], 1)

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        if not self.method.dora:
            return super().adapted(net, site, x)
        tape, (A, B) = net.tape, self.factors(net, site)
        norms = made(net.widths(site.path)).size
        (m,) = net.these(site.path, "lora_magnitude_vector")
        c = tape.run([m], (site.outputs,), beside=2 * norms)
        if x.item != FLOAT32:
            return self.in_half(net, site.path, x, A, B, c)
        if self.forms(net, site.path, x):
            y = tape.times(product(net, site.path, x, A, B, []), c)
        else:
            y = frozen = net.unbiased(site.path, x)
            if self.dropout:
                x = dropped(net, x, self.dropout)
                frozen = net.unbiased(site.path, x)
            y = tape.add(y, tape.times(frozen, tape.cast(c, x.item)))
            y = plus(net, y, x, A, tape.times(B, c))
        return tape.add(y, *net.these(site.path, "bias"))

    def in_half(self, net: Network, path: str, x: Array, A: Array, B: Array, c: Array) -> Array:
        """DoRA in half precision: what c multiplies is kept as it is."""
        tape = net.tape
        if not self.dropout:
            y = joined(net, path, x, tape.product(x, A), tape.scaled(B), bias=False)
            return rescaled(net, y, c)
        x_dropped = dropped(net, x, self.dropout)
        frozen = net.unbiased(path, x_dropped)
        added = rescaled(net, frozen, c)
        return joined(net, path, x, tape.product(x_dropped, A), tape.times(B, c), added)


class AdaLoRAForm(Layerwise[AdaLoRA]):
    """AdaLoRA, and its penalty."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        A, E, B = net.these(site.path, "lora_A", "lora_E", "lora_B")
        return placed(net, site, net.tape.times(A, E), B)

    def penalty(self, net: Network) -> None:
        r = self.method.init_rank
        for site in self.sites.values():
            for factor in net.these(site.path, "lora_A", "lora_B"):
                rows = net.tape.run([factor], (site.count, r, factor.size // FLOAT32 // r // site.count))
                square = net.tape.matmul(rows, net.tape.view(rows, (site.count, rows.width, r)))
                net.tape.activation(square)

    def averaged(self, net: Network) -> list[str]:
        return [f"{path}.lora_{factor}" for path in self.sites for factor in "ABE"]


class QALoRAForm(Layerwise[QALoRA]):
    """QA-LoRA: the sums of groups of inputs are what A reads."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        return placed(net, site, *net.these(site.path, "lora_A", "lora_B"))

    def beside(self, net: Network, site: Site, x: Array) -> Array:
        A, B = self.factors(net, site)
        pooled = net.tape.run([x], (*x.shape[:-1], A.width))
        if x.item != FLOAT32:
            narrow = net.tape.product(dropped(net, pooled, self.method.dropout), A)
            return joined(net, site.path, x, narrow, net.tape.scaled(B))
        return plus(net, net.plain(site.path, x), dropped(net, pooled, self.method.dropout), A, B)

    def forms(self, net: Network, path: str, x: Array) -> bool:
        return False


class VeRAForm(Layerwise[VeRA]):
    """VeRA: shared projections, scaled by vectors."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        A, B = net.these("shared", "vera_A", "vera_B")
        d, b = net.these(site.path, "vera_lambda_d", "vera_lambda_b")
        r = self.method.rank
        A = net.tape.view(A, (r, site.inputs))
        scaled = net.tape.run([B, b], (site.adapted, r), keeps=[B, b])
        return A, net.tape.run([net.tape.times(scaled, d)], (site.outputs, r)) if site.parts else net.tape.times(
            scaled, d
        )


class FacTForm(LowRank[FacT]):
    """FacT: the factors of all layers are one tensor's."""

    def __init__(self, method: FacT, architecture: Architecture) -> None:
        super().__init__(method, architecture)
        self.sites = {site.path: site for site, _ in method.layers(architecture)}
        self.dropout = method.dropout

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        U, V, C, P = net.these("shared", "fact_U", "fact_V", "fact_C", "fact_P")
        r, wide = self.method.rank, site.inputs > self.architecture.embed_dim
        count = max(site.outputs, site.inputs) // self.architecture.embed_dim
        cores = net.tape.run([P, C], (count * r, r), keeps=[P, C])
        if wide:
            return net.tape.run([U, cores], (r, site.inputs), keeps=[U, cores]), V
        return net.tape.view(U, (r, site.inputs)), net.tape.run([V, cores], (site.outputs, r), keeps=[V, cores])


class LoHaForm(Layerwise[LoHa]):
    """LoHa: of rank r^2, or multiplied out."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        a1, b1, a2, b2 = net.these(site.path, *(f"hada_w{number}_{factor}" for number in (1, 2) for factor in "ab"))
        rows, inputs, rank = site.adapted // site.count, site.inputs, self.method.rank**2
        tape, least = net.tape, min(rows, inputs)
        if rank <= least:
            A = tape.run([b1, b2], (site.count * rank, inputs), keeps=[b1, b2])
            return placed(net, site, A, tape.run([a1, a2], (site.adapted, rank), keeps=[a1, a2]))
        first, second = (tape.run([a, b], (site.adapted, inputs), keeps=[a, b]) for a, b in ((a1, b1), (a2, b2)))
        whole, eye = tape.times(first, second), made((site.count * least, least))
        A, B = (whole, eye) if rows == least else (eye, whole)
        return placed(net, site, A, B)


class MiSSForm(Layerwise[MiSS]):
    """MiSS: one matrix for all pieces of the inputs."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        (D,) = net.these(site.path, "miss_block")
        return made((self.method.rank, site.inputs)), net.tape.run([D], (site.outputs, self.method.rank))


class RandLoRAForm(Layerwise[RandLoRA]):
    """RandLoRA: a sum of random products, of full rank."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        A, B = net.these("shared", "randlora_A", "randlora_B")
        lambdas, gammas = net.these(site.path, "randlora_lambda", "randlora_gamma")
        count, width = gammas.shape
        shape = (self.method.rank * count, width)
        scaled = net.tape.run([A, lambdas], shape, keeps=[A])
        A = net.tape.run([scaled, gammas], shape, keeps=[scaled, gammas])
        rows = (max(site.outputs, site.inputs), shape[0])
        B = net.tape.view(B, rows) if B.shape[1] == count else net.tape.run([B], rows)
        if width == site.inputs:
            return A, B
        return net.tape.view(B, rows[::-1]), net.tape.view(A, shape[::-1])


def placed(net: Network, site: Site, A: Array, B: Array) -> tuple[Array, Array]:
    """A, and B in the rows and columns of the parts of qkv that are adapted; of a whole layer as it is."""
    return A, net.tape.run([B], (site.outputs, A.shape[0])) if site.parts else B


def product(net: Network, path: str, x: Array, A: Array, B: Array, bias: list[Array]) -> Array:
    """x (W + s B A)^T + b in one product: W + s B A is formed in both passes, and not kept."""
    (weight,) = net.these(path, "weight")
    outputs, inputs = net.widths(path)
    r = A.shape[0]
    forming = made(weight.shape).size
    net.tape.count(x, x.rows * outputs * inputs, int(x.needs))
    net.tape.count(A, outputs * inputs * r, int(x.needs))
    net.tape.backward[x.item] += 4 * x.rows * r * (outputs + inputs)
    shape, calls = (*x.shape[:-1], outputs), Calls(11, 28)
    return net.tape.run([x, A, B, *bias], shape, keeps=[x, A, B], beside=forming, behind=forming, calls=calls)


def plus(net: Network, y: Array, x: Array, A: Array, B: Array) -> Array:
    """y + s B A x, in the precision of x."""
    return net.tape.plus_product(y, net.tape.product(x, A), net.tape.scaled(B))


def rescaled(net: Network, z: Array, c: Array) -> Array:
    """c z in float32, in the precision of z; backward two such products."""
    wide = z.size // z.item * FLOAT32
    return net.tape.run([z, c], z.shape, keeps=[z, c], beside=wide, behind=2 * wide)


def joined(
    net: Network, path: str, x: Array, n: Array, B: Array, added: Array | None = None, bias: bool = True
) -> Array:
    """W x + b + B n + added in one product, of copies of x and W with n and B beside them."""
    (outputs, inputs), B = net.widths(path), net.tape.cast(B, x.item)
    net.tape.count(x, x.rows * outputs * inputs, int(x.needs))
    net.tape.count(x, x.rows * outputs * n.width, n.needs + B.needs)
    opened = outputs * inputs * (x.item + net.tape.code) if net.coded(path) else 0
    beside = (x.rows + outputs) * (inputs + n.width) * x.item + opened
    keeps = [*([n] if B.needs else []), *([B] if n.needs else [])]
    reads = [x, n, B, *([] if added is None else [added]), *(net.these(path, "bias") if bias else [])]
    shape, calls = (*x.shape[:-1], outputs), Calls(11, 14)
    return net.tape.run(reads, shape, keeps=keeps, beside=beside, behind=opened, calls=calls)
