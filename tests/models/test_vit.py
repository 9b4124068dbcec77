"""Both backends' ViT against timm's own class, each option of the architecture in turn."""

from functools import partial

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative
from timm.layers import Mlp, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

# isort: split
import mlx.core as mx

import mlx_peft.backend.entry
import torch_ref.entry
from convert.base import Base
from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.config.schema import Experiment
from mlx_peft.vit.architecture import Architecture, Preprocessing

LOGITS = 1e-5  # relative, float32: some hundred roundings of 1.2e-7 on the way through the blocks
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
MLP_LAYERS = {"mlp": Mlp, "swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}
NORM_LAYERS = {"layernorm": partial(torch.nn.LayerNorm, eps=1e-6), "rmsnorm": partial(RmsNorm, eps=1e-6)}

VARIANTS = {
    "plain": {},
    "rectangular grid remainder": {"img_size": 37},
    "average pooling": {"global_pool": "avg"},
    "average pooling, norm before": {"global_pool": "avg", "fc_norm": False},
    "average over prefix tokens too": {"global_pool": "avg", "pool_include_prefix": True},
    "token pooling, norm after": {"fc_norm": True},
    "no final norm": {"final_norm": False},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "attention pooling, gelu_tanh": {"global_pool": "map", "act_layer": "gelu_tanh"},
    "registers": {"reg_tokens": 4},
    "registers without positions": {"reg_tokens": 4, "no_embed_class": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no position embedding": {"pos_embed": False},
    "layer scale": {"init_values": 0.1},
    "query and key norms": {"qk_norm": True},
    "norms in attention and mlp": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "norm before the blocks": {"pre_norm": True, "act_layer": "quick_gelu"},
    "norm in the patch embedding": {"embed_norm": True},
    "rms norm": {"norm_layer": "rmsnorm", "qk_norm": True},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "swiglu": {"mlp_layer": "swiglu", "act_layer": "silu"},
    "swiglu with a norm": {"mlp_layer": "swiglu", "act_layer": "silu", "scale_mlp_norm": True},
    "swiglu, packed": {"mlp_layer": "swiglu_packed", "act_layer": "silu"},
    "distilled": {"distilled": True},
    "class token beside the mean": {"global_pool": "token_avg", "reg_tokens": 2},
}


class TokenBesideMean(VisionTransformer):
    """The linear head of DINOv2 (Oquab et al. 2024), which timm lacks: the class token and the mean of the patches."""

    def __init__(self, **options):
        super().__init__(**options | {"global_pool": "token"})
        self.head = torch.nn.Linear(2 * self.embed_dim, options["num_classes"])

    def forward_head(self, x, pre_logits=False):
        return self.head(torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(1)], dim=1))


def timm_model(architecture: Architecture, num_classes: int) -> torch.nn.Module:
    options = architecture.model_dump(exclude={"positions", "qkv"})
    distilled = options.pop("distilled")
    norm_layer = NORM_LAYERS[options.pop("norm_layer")]
    options.pop("norm_eps")
    options |= {
        "pos_embed": "learn" if options["pos_embed"] else "none",
        "norm_layer": norm_layer,
        "embed_norm_layer": norm_layer if options.pop("embed_norm") else None,
        "mlp_layer": MLP_LAYERS[options["mlp_layer"]],
    }
    if options["global_pool"] == "token_avg":
        return TokenBesideMean(num_classes=num_classes, **options)
    return (VisionTransformerDistilled if distilled else VisionTransformer)(num_classes=num_classes, **options)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, norms and biases too, so that each of them shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


BACKENDS = pytest.mark.parametrize("backend", [mlx_peft.backend.entry, torch_ref.entry], ids=["mlx", "torch"])


def trainer_and_reference(backend, options):
    """Both with the same random parameters."""
    architecture = Architecture(**(SMALL | options))
    reference = randomised(timm_model(architecture, 7))
    tensors = {name: p.detach().numpy() for name, p in reference.state_dict().items()}
    base = Base("vit", "random", architecture, PREPROCESSING, tensors, "", ())
    experiment = Experiment.model_validate(
        {"model": {"name": "vit"}, "method": {"name": "full"}, "data": {"name": "digits"}}
    )
    return backend.build_trainer(experiment, 7, base), reference


@pytest.mark.one_in(2)
@BACKENDS
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_timms(options, backend):
    trainer, reference = trainer_and_reference(backend, options)
    size = trainer.model.base.architecture.img_size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)

    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    with torch.no_grad():
        expected = reference(((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)).numpy()
    error = relative(trainer.model.logits(images), expected)
    assert error <= LOGITS
    assert trainer.model.merged().keys() == reference.state_dict().keys()


@pytest.mark.one_in(2)
@BACKENDS
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_wherever_the_model_is_cut_in_two_its_logits_are_the_same(options, backend):
    model = trainer_and_reference(backend, options)[0].model.network
    architecture = model.architecture
    array, numpy = (mx.array, np.array) if backend is mlx_peft.backend.entry else (torch.from_numpy, torch.Tensor.numpy)
    size = architecture.img_size
    x = array(np.random.default_rng(0).standard_normal((3, size, size, 3), np.float32))
    with torch.no_grad():
        whole = numpy(model(x))
        for trained in ("blocks.1.norm1.weight", "norm.weight", "head.weight"):
            prefix = frozen_prefix(architecture, 0.0, [trained], [trained])
            features = model.prefix(x, prefix.end)
            assert features.shape == (3, *prefix.shape)
            np.testing.assert_array_equal(numpy(model.suffix(features, prefix.end)), whole)
