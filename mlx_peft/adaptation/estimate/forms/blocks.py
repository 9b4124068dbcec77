"""Methods that put something into the blocks: bottlenecks, prompts, a side network."""

from __future__ import annotations

from dataclasses import replace

from mlx_peft.adaptation.estimate.forms.form import Form, dropped
from mlx_peft.adaptation.estimate.layers import Tokens
from mlx_peft.adaptation.estimate.network import Network
from mlx_peft.adaptation.estimate.tape import Array
from mlx_peft.config.methods import LST, VPT, AdapterPlus, AdaptFormer, Convpass, Houlsby, RepAdapter
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Kinds


class AdaptFormerForm(Form[AdaptFormer]):
    """AdaptFormer: a bottleneck beside the MLP."""

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        path = f"blocks.{number}"
        if not net.has(f"{path}.adapter_down.weight"):
            return super().block(net, number, tokens, queries)
        with net.tape.holding(tokens.x):
            tokens = net.attend(number, tokens, queries)
        with net.tape.holding(tokens.x):
            read = net.read(number, "norm2", tokens.x)
            added = net.tape.scaled(bottleneck(net, path, read, self.method.dropout, kept=True))
            with net.tape.holding(added):
                tokens = net.with_branch(tokens, net.feed(number, read))
        return tokens.holding(net.tape.add(tokens.x, added))


class AdapterPlusForm(Form[AdapterPlus]):
    """Adapter+: a bottleneck behind the block, with a factor for each channel."""

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        tokens, path = super().block(net, number, tokens, queries), f"blocks.{number}"
        if not (scale := net.these(path, "adapter_scale")):
            return tokens
        with net.tape.holding(tokens.x):
            added = net.tape.scaled(bottleneck(net, path, tokens.x, self.method.dropout))
            return tokens.holding(net.tape.add(tokens.x, net.tape.times(added, net.tape.cast(scale[0], added.item))))


class HoulsbyForm(Form[Houlsby]):
    """Houlsby's adapter: bottlenecks behind attention and MLP."""

    def behind(self, net: Network, path: str, x: Array) -> Array:
        if not net.has(f"{path}.adapter_down.weight"):
            return x
        return net.tape.add(x, bottleneck(net, path, x, self.method.dropout))


class RepAdapterForm(Form[RepAdapter]):
    """RepAdapter: a linear bottleneck behind the norms."""

    def behind(self, net: Network, path: str, x: Array) -> Array:
        if not net.has(f"{path}.adapter_down.weight"):
            return x
        tape = net.tape
        down, down_bias, up, up_bias = net.these(path, *BOTTLENECK)
        inner = dropped(net, tape.product(x, down, down_bias), self.method.dropout)
        whole = tape.run([up], (x.width, down.shape[0]))
        return tape.add(x, tape.scaled(tape.product(inner, whole, up_bias)))


class ConvpassForm(Form[Convpass]):
    """Convpass: bottlenecks with a convolution beside attention and MLP."""

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        path, tape = f"blocks.{number}", net.tape
        if not net.has(f"{path}.bypass_attn.adapter_down.weight"):
            return super().block(net, number, tokens, queries)
        with tape.holding(tokens.x):
            read = net.read(number, "norm1", tokens.x)
            asking = tokens.places if queries is None else tokens.places.only(queries)
            asked = tape.view(read, (read.shape[0], len(asking), read.width))
            added = self.bypass(net, f"{path}.bypass_attn", asked)
            tokens = net.attend(number, tokens, queries)
        tokens = tokens.holding(tape.add(tokens.x, added))
        with tape.holding(tokens.x):
            read = net.read(number, "norm2", tokens.x)
            added = self.bypass(net, f"{path}.bypass_mlp", read)
            tokens = net.with_branch(tokens, net.feed(number, read))
        return tokens.holding(tape.add(tokens.x, added))

    def bypass(self, net: Network, path: str, x: Array) -> Array:
        """s up(act(conv(act(down(x)))))."""
        tape = net.tape
        down, down_bias, up, up_bias = net.these(path, *BOTTLENECK)
        weight, bias = net.these(path, "adapter_conv.weight", "adapter_conv.bias")
        narrow = quick(net, tape.product(x, down, down_bias))
        tape.count(narrow, narrow.rows * narrow.width**2 * 9, 2)
        grid = tape.scaled(narrow)  # the patches as a grid
        convolved = tape.run([grid, weight], narrow.shape, keeps=[grid, weight])
        inner = dropped(net, quick(net, tape.add(convolved, bias)), self.method.dropout)
        return tape.scaled(tape.product(inner, up, up_bias))


class VPTForm(Form[VPT]):
    """VPT: prompts beside the tokens."""

    def __init__(self, method: VPT, architecture: Architecture) -> None:
        super().__init__(method, architecture)
        self.chosen = method.chosen_blocks(architecture)

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        for own in net.these(f"blocks.{number}", "prompts"):
            prompts = net.tape.run([own], (tokens.x.shape[0], *own.shape[1:]), item=tokens.x.item)
            prompts = dropped(net, prompts, self.method.dropout)
            x = net.tape.joined([tokens.x, prompts], axis=1)
            tokens = replace(tokens, x=x, places=tokens.places.inserted("prompt", own.shape[1]))
        leave = number in self.chosen if self.method.deep else number == self.chosen[-1]
        if leave and queries is None:
            queries = tokens.places.without("prompt")
        return super().block(net, number, tokens, queries)


class LSTForm(Form[LST]):
    """LST: a narrow network beside the blocks, that reads what leaves them as it is."""

    def __init__(self, method: LST, architecture: Architecture) -> None:
        super().__init__(method, architecture)
        self.narrow, self.chosen = method.narrow(architecture), method.chosen_blocks(architecture)

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        if number not in self.chosen:
            return super().block(net, number, tokens, queries)
        tape, path = net.tape, f"blocks.{number}"
        side = tokens.side
        if number == self.chosen[0]:
            side = tape.product(tokens.x, *net.these(path, "side_first.weight", "side_first.bias"))
        assert side is not None
        with tape.holding(side):
            tokens = super().block(net, number, tokens, None)
        x = replace(tokens.x, needs=False)
        down = tape.product(x, *net.these(path, "side_down.weight", "side_down.bias"))
        gate = tape.cast(tape.run(net.these(path, "side_gate"), (1,)), x.item)
        rest = tape.run([gate], side.shape)
        side = tape.add(tape.times(down, gate), tape.times(side, rest))
        within = replace(net, architecture=self.narrow, form=Form(self.method, self.narrow), reducer=None)
        left = _Side(within, path).block(Tokens(side, tokens.places), queries)
        stream = tape.view(x, (x.shape[0], len(left.places), x.width))
        tokens = replace(tokens, x=stream, places=left.places, side=left.x)
        if number < self.chosen[-1]:
            return tokens
        normed = tape.normed(left.x, net.these(path, "side_norm.weight", "side_norm.bias"))
        up = tape.product(normed, *net.these(path, "side_up.weight", "side_up.bias"))
        return replace(tokens, x=tape.add(stream, up), side=None)


class _Side:
    """A block of the side network, whose parameters lie below the model's block."""

    def __init__(self, net: Network, path: str) -> None:
        prefix = f"{path}.side_block."
        names = {name: name.replace(prefix, "blocks.0.") for name in net.parameters if name.startswith(prefix)}
        self.net = replace(
            net,
            parameters={new: net.parameters[name] for name, new in names.items()},
            trained={new for name, new in names.items() if name in net.trained},
            quantization=None,
        )

    def block(self, tokens: Tokens, queries: Kinds | None) -> Tokens:
        return self.net.block(0, tokens, queries)


BOTTLENECK = ("adapter_down.weight", "adapter_down.bias", "adapter_up.weight", "adapter_up.bias")
"""The parameters of a bottleneck below its path."""


def bottleneck(net: Network, path: str, x: Array, dropout: float, kept: bool = False) -> Array:
    """up(drop(act(down(x)))); ``kept``: the activation's gradient needs what it gave, not what it was taken of."""
    tape = net.tape
    down, down_bias, up, up_bias = net.these(path, *BOTTLENECK)
    narrow = tape.product(x, down, down_bias)
    narrow = tape.softmax(narrow) if kept else tape.gelu(narrow)
    return tape.product(dropped(net, narrow, dropout), up, up_bias)


def quick(net: Network, x: Array) -> Array:
    """x sigmoid(1.702 x)."""
    return net.tape.times(x, net.tape.softmax(net.tape.scaled(x)))
