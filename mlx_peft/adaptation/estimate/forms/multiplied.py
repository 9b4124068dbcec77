"""Methods that multiply or turn what enters a layer or leaves it, and those that draw in between."""

from __future__ import annotations

from dataclasses import replace

from mlx_peft.adaptation.estimate.forms.form import Form, Targeting, dropped, made
from mlx_peft.adaptation.estimate.forms.low_rank import Layerwise, joined
from mlx_peft.adaptation.estimate.network import Network
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Store
from mlx_peft.config.methods import BOFT, IA3, OFT, SSF, LoKr, PVeRA, RoAd
from mlx_peft.vit.sites import LAYERS, Site


class IA3Form(Targeting[IA3]):
    """(IA)^3: outputs, or inputs, times trained factors."""

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        (factors,) = net.these(site.path, "ia3_l")
        if LAYERS[site.name] in self.method.inputs:
            return net.plain(site.path, net.tape.cast(net.tape.times(x, factors), x.item))
        return net.tape.cast(net.tape.times(net.plain(site.path, x), factors), x.item)


class SSFForm(Form[SSF]):
    """SSF: what leaves a layer is scaled and shifted, in float32."""

    def linear(self, net: Network, path: str, x: Array) -> Array:
        return self.behind(net, path, super().linear(net, path, x))

    def behind(self, net: Network, path: str, x: Array) -> Array:
        if not (parameters := net.these(path, "ssf_scale", "ssf_shift")):
            return x
        wide = net.tape.cast(x, FLOAT32)
        return net.tape.cast(net.tape.run([wide, *parameters], x.shape, keeps=[wide]), x.item)


class OFTForm(Targeting[OFT]):
    """OFT: inputs are turned, block by block, in float32."""

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        (trained,) = net.these(site.path, "oft_R")
        size = self.method.size_of(site)
        return net.plain(site.path, turned(net, x, rotations(net, trained, trained.shape[0], size)))


class BOFTForm(Targeting[BOFT]):
    """BOFT: inputs are turned by butterflies, and outputs scaled."""

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        tape, size = net.tape, self.method.size_of(site)
        trained, scale = net.these(site.path, "boft_R", "boft_s")
        R = rotations(net, trained, self.method.factors * site.inputs // size, size)
        for _ in range(self.method.factors):
            x = tape.scaled(turned(net, tape.scaled(x), R))
        y = tape.cast(tape.times(net.unbiased(site.path, x), scale), x.item)
        return tape.add(y, *net.these(site.path, "bias"))


class RoAdForm(Targeting[RoAd]):
    """RoAd: pairs of outputs are turned and stretched, in float32."""

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        theta, _ = net.these(site.path, "road_theta", "road_alpha")
        z, factors = net.plain(site.path, x), net.tape.run([theta], (site.outputs,))
        across = net.tape.scaled(z)
        both = net.tape.add(net.tape.times(z, factors), net.tape.times(across, factors))
        return net.tape.cast(both, x.item)


class LoKrForm(Targeting[LoKr]):
    """LoKr: W_1 X W_2^T beside the layer, X the inputs as a matrix."""

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        tape = net.tape
        both = [self.factor(net, site, name) for name in ("lokr_w1", "lokr_w2")]
        (a, c), (b, d) = (factor.shape for factor in both)
        first, second = (tape.cast(factor, x.item) for factor in both)
        inner = tape.product(tape.view(x, (*x.shape[:-1], c, d)), second)
        turned = tape.view(tape.scaled(inner), (*x.shape[:-1], b, c))  # a copy with the axes exchanged
        update = tape.product(turned, first)
        update = tape.view(update, (*x.shape[:-1], a * b))
        if x.item == FLOAT32:
            return tape.add(net.plain(site.path, x), update)
        return joined(net, site.path, x, made((*x.shape[:-1], 0)), made((a * b, 0)), update)

    def factor(self, net: Network, site: Site, name: str) -> Array:
        """W_1 or W_2, of two factors where it is one."""
        found = net.these(site.path, name)
        if found:
            return found[0]
        left, right = net.these(site.path, f"{name}_a", f"{name}_b")
        return net.tape.matmul(left, right)


class PVeRAForm(Layerwise[PVeRA]):
    """PVeRA: the second projection reads draws."""

    def factors(self, net: Network, site: Site) -> tuple[Array, Array]:
        raise NotImplementedError

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        tape, r = net.tape, self.method.rank
        A, B = net.these("shared", "pvera_A", "pvera_B")
        d, b = net.these(site.path, "pvera_lambda_d", "pvera_lambda_b")
        inner = tape.product(dropped(net, x, self.dropout), tape.view(A, (2 * r, site.inputs)))
        rows = x.shape[:-1]
        halves = tape.run([inner, d], (*rows, site.count * 2 * r), keeps=[inner])
        half = (*rows, site.count * r)
        deviation = tape.softmax(tape.run([halves], half))
        noise = replace(deviation, store=Store(deviation.size), needs=False)
        z = tape.add(tape.view(halves, half), tape.times(noise, deviation))
        scaled = tape.run([B, b], (site.outputs, site.count * r), keeps=[B])
        if x.item == FLOAT32:
            return tape.add(net.plain(site.path, x), tape.product(z, scaled))
        return joined(net, site.path, x, z, scaled)


def rotations(net: Network, trained: Array, count: int, size: int) -> Array:
    """The rotations ``(blocks, b, b)`` that are made of what is trained, each by an inverse."""
    found = net.tape.run([trained], (count, size, size), beside=made((count, size, size)).size * 2)
    for _ in range(2):  # the inverse, and twice it
        found = net.tape.softmax(found)
    return found


def turned(net: Network, x: Array, R: Array) -> Array:
    """x R, block by block."""
    wide = net.tape.cast(x, FLOAT32)
    net.tape.count(wide, x.rows * x.width * R.width, x.needs + R.needs)
    found = net.tape.run([wide, R], x.shape, keeps=[wide, R], beside=wide.size)
    return net.tape.cast(found, x.item)
