"""Half precision at real row counts: what is summed over rows or tokens is accumulated in float32, in both backends."""

import importlib
from functools import lru_cache

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative
from halves import third_of

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_peft.vit.places import Places
from mlx_peft.vit.registry import find
from torch_ref.measured import kept_bytes

ROUND_OFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""The largest relative error of one rounding: 8 and 11 bits of precision."""

BATCH, TOKENS, DIM = 64, 197, 16
ROWS = BATCH * TOKENS
"""A batch at 224 pixels: 12,608 rows."""

ARCHITECTURE = find("vit_tiny_patch16_224").architecture.model_copy(
    update={"img_size": 56, "patch_size": 4, "embed_dim": DIM, "depth": 1, "num_heads": 2, "reg_tokens": 4}
)
IMAGES, STREAM = (BATCH, 56, 56, 3), (BATCH, TOKENS, DIM)


def part(backend, name):
    """``models.layers.Linear`` of ``mlx_peft.backend`` or ``torch_ref``."""
    module, _, member = name.rpartition(".")
    return getattr(importlib.import_module(f"{backend}.{module}"), member)


def array(backend: str, values: np.ndarray):
    return mx.array(values) if backend == "mlx_peft.backend" else torch.from_numpy(values)


def linear(backend: str):
    return part(backend, "models.layers.Linear")(DIM, DIM)


def lora(backend: str, kind: str):
    factors = array(backend, values("A", (4, DIM))), array(backend, values("B", (DIM, 4)))
    norms = {"norms": array(backend, np.ones(DIM, np.float32))} if kind == "lora.DoRALinear" else {}
    return part(backend, f"methods.{kind}")(linear(backend), *factors, 2.0, **norms)


def vera(backend: str):
    shared = part(backend, "models.layers.nn").Module()
    for name, shape in (("vera_A", (8, DIM)), ("vera_B", (DIM, 8))):
        own = array(backend, values(name[-1], shape))
        setattr(shared, name, torch.nn.Parameter(own, requires_grad=False) if backend == "torch_ref" else own)
    return part(backend, "methods.vera.VeRALinear")(linear(backend), shared, 0.1)


def ssf(backend: str):
    ones, zeros = np.ones(DIM, np.float32), np.zeros(DIM, np.float32)
    return part(backend, "methods.ssf.ScaledShifted")(linear(backend), array(backend, ones), array(backend, zeros))


def prompted(backend: str):
    block = part(backend, "models.block.Block")(ARCHITECTURE)
    return part(backend, "methods.prompt.PromptedBlock")(block, array(backend, values("prompts", (1, 3, DIM))), True)


def adapted(backend: str):
    block = part(backend, "models.block.Block")(ARCHITECTURE)
    return part(backend, "methods.adaptformer.AdaptedBlock")(block, array(backend, values("down", (4, DIM))), 0.1)


def behind(backend: str):
    block = part(backend, "models.block.Block")(ARCHITECTURE)
    down, up = array(backend, values("down", (4, DIM))), array(backend, values("up", (DIM, 4)))
    return part(backend, "methods.adapter_plus.AdaptedBlock")(block, down, up)


LAYERS = {
    "linear": linear,
    "layernorm": lambda b: part(b, "models.layers.LayerNorm")(DIM, 1e-6),
    "rmsnorm": lambda b: part(b, "models.layers.RMSNorm")(DIM, 1e-6),
    "layer scale": lambda b: part(b, "models.layers.LayerScale")(DIM),
    "patches": lambda b: part(b, "models.embed.PatchProjection")(ARCHITECTURE),
    "embedding": lambda b: part(b, "models.vit.VisionTransformer")(ARCHITECTURE, 5),
    "attention pool": lambda b: part(b, "models.pool.AttentionPool")(ARCHITECTURE),
    "dora": lambda b: lora(b, "lora.DoRALinear"),
    "adalora": lambda b: lora(b, "adalora.AdaLoRALinear"),
    "vera": vera,
    "ia3": lambda b: part(b, "methods.ia3.IA3Linear")(linear(b), False),
    "ia3 of inputs": lambda b: part(b, "methods.ia3.IA3Linear")(linear(b), True),
    "ssf": ssf,
    "prompts": prompted,
    "adaptformer": adapted,
    "adapter plus": behind,
}
FROZEN = {"dora": {"base_layer.bias"}}
"""What a method never trains: in half precision it has no gradient, in float32 one that nobody asks for."""

OF_TOKENS = ("attention pool", "prompts", "adaptformer", "adapter plus")
"""What takes tokens, and not an array alone."""

SEVERAL = 6
"""As many roundings, at the most, may lie between a gradient's terms and its value. A term is a product of what was
rounded before, a few times where attention and an MLP lie behind it, and roundings are as often up as down; but a sum
that is rounded after every row, as it must not be, is off by a hundred times as much."""

SUMMED = 1e-5
"""Relative, of a float32 sum of 12,608 rows: their roundings, 6e-8 each, are as often up as down."""
SUMS = [
    ("linear", "bias"),
    ("layernorm", "bias"),
    ("patches", "bias"),
    ("ssf", "ssf_shift"),
    ("embedding", "reg_token"),
]
"""Gradients that are sums of the cotangents alone."""


def half(array: np.ndarray, precision: str) -> np.ndarray:
    """Rounded to a half precision, as float32."""
    return torch.from_numpy(array.astype(np.float32)).to(getattr(torch, precision)).float().numpy()


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of a parameter, the same for both backends; in timm's layout."""
    random = np.random.default_rng(len(name) + sum(map(ord, name)))
    return (random.standard_normal(shape) / np.sqrt(max(shape[-1], 4))).astype(np.float32)


def passed(backend: str, name: str, layer, x):
    """What a layer makes of an array, which may be the tokens of a plain model."""
    if name == "embedding":
        return layer.embed(x).x
    if name not in OF_TOKENS:
        return layer(x)
    tokens = part(backend, "models.tokens.Tokens")(x, Places((("class", 1), ("patch", TOKENS - 1))))
    if name == "attention pool":
        return layer(tokens)
    return layer(tokens, part(backend, "models.positions.Positions")(ARCHITECTURE, None)).x


def by_torch(name, layer, x, cotangent, dtype):
    """The gradients of a torch layer's float32 parameters; in float32, of half-precision values, the reference."""
    with torch.no_grad():
        for parameter, p in layer.named_parameters():
            p.copy_(torch.from_numpy(values(parameter, tuple(p.shape))))
    passed("torch_ref", name, layer, torch.from_numpy(x).to(dtype)).backward(torch.from_numpy(cotangent).to(dtype))
    return {name: p.grad.double().numpy() for name, p in layer.named_parameters() if p.grad is not None}


def by_mlx(name, layer, x, cotangent, dtype):
    """The same of an MLX layer."""

    def timms(array):
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array

    names = [name for name, _ in tree_flatten(layer.parameters())]
    shapes = {name: timms(np.array(p)).shape for name, p in tree_flatten(layer.parameters())}
    arrays = [values(name, shapes[name]) for name in names]
    arrays = [mx.array(a.transpose(0, 2, 3, 1) if a.ndim == 4 else a) for a in arrays]

    def forward(*arrays):
        layer.update(tree_unflatten(list(zip(names, arrays, strict=True))))
        return passed("mlx_peft.backend", name, layer, mx.array(x).astype(dtype))

    _, gradients = mx.vjp(forward, arrays, [mx.array(cotangent).astype(dtype)])
    return {name: timms(np.array(g, np.float64)) for name, g in zip(names, gradients, strict=True)}


def tensor(backend: str, values: np.ndarray, precision: str):
    """An array of the backend, in a precision."""
    if backend == "mlx_peft.backend":
        return mx.array(values.astype(np.float32)).astype(getattr(mx, precision))
    return torch.from_numpy(values.astype(np.float32)).to(getattr(torch, precision))


def numpy(array) -> np.ndarray:
    """Of either backend's array, float32."""
    return np.array(array.astype(mx.float32)) if isinstance(array, mx.array) else array.detach().float().numpy()


BACKENDS = {"mlx_peft.backend": (by_mlx, mx), "torch_ref": (by_torch, torch)}


@lru_cache
def gradients(backend: str, name: str, precision: str, rounded: str) -> dict[str, np.ndarray]:
    """Of a layer computed in one precision, all that goes in being rounded to another before."""
    differentiate, framework = BACKENDS[backend]
    shape = IMAGES if name in ("patches", "embedding") else STREAM
    random = np.random.default_rng(0)
    x = half(random.standard_normal(shape), rounded)
    with torch.no_grad():
        out = passed("torch_ref", name, LAYERS[name]("torch_ref"), torch.from_numpy(x[:1])).shape
    cotangent = half(1e-3 * random.standard_normal((BATCH, *out[1:])) + 2e-4, rounded)
    return differentiate(name, LAYERS[name](backend), x, cotangent, getattr(framework, precision))


@pytest.mark.parametrize(("backend", "name", "precision"), third_of(BACKENDS, LAYERS, ROUND_OFF))
def test_gradients_of_many_rows_are_no_further_off_than_their_terms(backend, name, precision):
    found, expected = gradients(backend, name, precision, precision), gradients("torch_ref", name, "float32", precision)
    trained = expected.keys() - FROZEN.get(name, set())
    assert trained and trained <= found.keys()
    off = {key: relative(found[key], expected[key]) / ROUND_OFF[precision] for key in trained}
    assert max(off.values()) <= SEVERAL, max(off, key=off.get)


@pytest.mark.parametrize("precision", ROUND_OFF)
@pytest.mark.parametrize(("name", "parameter"), SUMS, ids=lambda value: str(value))
def test_mlx_adds_up_in_float32_whatever_the_device_does(name, parameter, precision):
    """The sum has float32's digits: it is not rounded at all, be it after each row, as on Metal, or at its end."""
    found, expected = (
        gradients(b, name, p, precision) for b, p in (("mlx_peft.backend", precision), ("torch_ref", "float32"))
    )
    assert relative(found[parameter], expected[parameter]) <= SUMMED


@pytest.mark.parametrize("precision", ROUND_OFF)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_of_rows_whose_mean_is_large_loses_no_digits_to_the_mean(backend, precision):
    """Ten deviations; a mean that is rounded itself is off by ten times a rounding."""
    differentiate, framework = BACKENDS[backend]
    random = np.random.default_rng(0)
    x, cotangent = (half(random.standard_normal(STREAM) + mean, precision) for mean in (10, 0))
    found, expected = (
        gradient("layernorm", LAYERS["layernorm"](name), x, cotangent, dtype)
        for name, gradient, dtype in (
            (backend, differentiate, getattr(framework, precision)),
            ("torch_ref", by_torch, torch.float32),
        )
    )
    assert relative(found["weight"], expected["weight"]) <= ROUND_OFF[precision]


@pytest.mark.parametrize("precision", ROUND_OFF)
@pytest.mark.parametrize("pooling", ["avg", "token_avg"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_over_many_tokens_is_rounded_once_and_does_not_overflow(backend, pooling, precision):
    """4,096 tokens, as at 896 pixels, of a stream with a massive channel: their sum is far beyond float16's 65,504."""
    architecture = ARCHITECTURE.model_copy(update={"img_size": 256, "reg_tokens": 0, "global_pool": pooling})
    stream = np.random.default_rng(0).standard_normal((1, 1 + 4096, DIM))
    stream[..., 5] += 100
    x = half(stream, precision)
    model = part(backend, "models.vit.VisionTransformer")(architecture, 5)
    tokens = part(backend, "models.tokens.Tokens")(tensor(backend, x, precision), architecture.places)
    pooled = numpy(model.pool(tokens))
    mean = x[:, 1:].astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(pooled[:, -DIM:], mean, rtol=ROUND_OFF[precision], atol=1e-7)


@pytest.mark.parametrize("precision", ROUND_OFF)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_over_a_groups_inputs_does_not_overflow(backend, precision):
    """QA-LoRA's pooling of 64 inputs of 2,000 each."""
    arguments = (linear(backend), array(backend, values("A", (4, 1))), array(backend, values("B", (DIM, 4))), 2.0)
    layer = part(backend, "methods.qalora.QALoRALinear")(*arguments, group_size=64, average=True)
    pooled = numpy(layer.pooled(tensor(backend, np.full((2, 64), 2000.0), precision)))
    np.testing.assert_allclose(pooled, np.full((2, 1), 2000.0), rtol=ROUND_OFF[precision])


@pytest.mark.parametrize("precision", ROUND_OFF)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_simulated_softmax_over_many_tokens_adds_up_in_float32(backend, precision):
    """Of equal values for all 4,097 tokens, whose weighted mean is that value."""
    attend = part(backend, "quant.simulated.Attend")({name: lambda x: x for name in ("q", "k", "v", "softmax")})
    q, k = (np.random.default_rng(seed).standard_normal((1, 1, 4097, 8)) for seed in (0, 1))
    attended = numpy(attend(*(tensor(backend, x, precision) for x in (q[:, :, :1], k, np.ones_like(k)))))
    np.testing.assert_allclose(attended, np.ones((1, 1, 8)), rtol=SEVERAL * ROUND_OFF[precision])


@pytest.mark.parametrize("precision", ROUND_OFF)
def test_what_trained_norms_keep_for_the_backward_pass_is_what_frozen_ones_keep(precision):
    """Bytes of activations, but for each row's mean and deviation: the float32 copies of the backward pass are made in
    it."""
    dtype = getattr(torch, precision)
    trained, frozen = (part("torch_ref", "models.layers.LayerNorm")(DIM, 1e-6) for _ in range(2))
    for p in frozen.parameters():
        p.requires_grad_(False).data = p.data.to(dtype)
    x = torch.randn(STREAM, dtype=dtype, requires_grad=True)
    kept = [kept_bytes(lambda layer=layer: layer(x), layer.parameters()) for layer in (trained, frozen)]
    assert kept[0] == kept[1] + 2 * (4 - 2) * ROWS
