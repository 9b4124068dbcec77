"""Families of models: published weights that belong together, and who made them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fnmatch import fnmatchcase

TIMM = "https://github.com/huggingface/pytorch-image-models"


@dataclass(frozen=True)
class Family:
    """Published weights of one origin.

    Attributes:
        name: for a command line.
        description: what they are, and the paper.
        origin: where their authors publish them, and their licence; None where that is not known here.
        members: patterns of ``name.tag``, with an empty tag where a name has no weights.
        consent: whose copies are given only to those who ask; empty where that is unknown.
    """

    name: str
    description: str
    origin: str | None
    members: tuple[str, ...]
    consent: str = ""


FAMILIES = (
    Family("eupe", "EUPE, DINOv3's structure, distilled from several", None, ("*.eupe_*",)),
    Family(
        "dinov3", "DINOv3, self-supervised (Simeoni et al. 2025)", "https://github.com/facebookresearch/dinov3",
        ("*_dinov3*",), consent="Meta's own repositories (facebook/dinov3-...)",
    ),
    Family(
        "dinov2", "DINOv2, self-supervised (Oquab et al. 2023)", "https://github.com/facebookresearch/dinov2",
        ("*_dinov2.*",),
    ),
    Family(
        "dino", "DINO, self-supervised (Caron et al. 2021)", "https://github.com/facebookresearch/dino", ("*.dino",)
    ),
    Family("mae", "masked autoencoders (He et al. 2022)", "https://github.com/facebookresearch/mae", ("*.mae",)),
    Family(
        "ijepa", "I-JEPA, self-supervised (Assran et al. 2023)", "https://github.com/facebookresearch/ijepa",
        ("*_ijepa",),
    ),
    Family(
        "beit", "BEiT, masked image modelling (Bao et al. 2021)", "https://github.com/microsoft/unilm/tree/master/beit",
        ("beit_*",),
    ),
    Family(
        "beitv2", "BEiT v2, the same with a learnt tokenizer (Peng et al. 2022)",
        "https://github.com/microsoft/unilm/tree/master/beit2", ("beitv2_*",),
    ),
    Family(
        "beit3", "BEiT-3, images and text (Wang et al. 2022)", "https://github.com/microsoft/unilm/tree/master/beit3",
        ("beit3_*",),
    ),
    Family(
        "eva", "EVA and EVA-CLIP, masked features of CLIP (Fang et al. 2022)", "https://github.com/baaivision/EVA",
        ("eva_*",),
    ),
    Family(
        "eva02", "EVA-02, the same with rotary positions and SwiGLU (Fang et al. 2023)",
        "https://github.com/baaivision/EVA/tree/master/EVA-02", ("eva02_*",),
    ),
    Family(
        "pe", "Perception Encoder (Bolya et al. 2025)", "https://github.com/facebookresearch/perception_models",
        ("vit_pe_*",),
    ),
    Family(
        "rope-vit", "ViTs with rotary positions (Heo et al. 2024)", "https://github.com/naver-ai/rope-vit",
        ("*_rope_*.naver_*",),
    ),
    Family("lingbot", "LingBot-Vision", "https://github.com/robbyant/lingbot-vision", ("*_lingbot.*",)),
    Family(
        "siglip2", "SigLIP 2, images and text (Tschannen et al. 2025)", "https://github.com/google-research/big_vision",
        ("*siglip*.v2_*",),
    ),
    Family(
        "siglip", "SigLIP, images and text (Zhai et al. 2023), PaliGemma's towers too",
        "https://github.com/google-research/big_vision", ("*siglip*",),
    ),
    Family("tinyclip", "TinyCLIP (Wu et al. 2023)", "https://github.com/microsoft/Cream", ("*.tinyclip_*",)),
    Family("mobileclip2", "MobileCLIP2's ViT", "https://github.com/apple/ml-mobileclip", ("*.apple_mclip2_*",)),
    Family(
        "metaclip", "MetaCLIP, images and text (Xu et al. 2023)", "https://github.com/facebookresearch/MetaCLIP",
        ("*.metaclip*",),
    ),
    Family("dfn", "CLIP on filtered data (Fang et al. 2023)", "https://huggingface.co/apple", ("*.dfn*",)),
    Family(
        "clip", "OpenAI's CLIP, images and text (Radford et al. 2021)", "https://github.com/openai/CLIP", ("*.openai*",)
    ),
    Family(
        "openclip", "OpenCLIP on LAION and DataComp (Cherti et al. 2023)", "https://github.com/mlfoundations/open_clip",
        ("*clip*",),
    ),
    Family("aimv2", "AIMv2, autoregressive (Fini et al. 2024)", "https://github.com/apple/ml-aim", ("aimv2_*",)),
    Family("radio", "C-RADIO, distilled from several", "https://github.com/NVlabs/RADIO", ("*_radio_*",)),
    Family("tips", "TIPS v2, images and text", "https://github.com/google-deepmind/tips", ("*_tipsv2.*",)),
    Family("internvit", "InternViT, of InternVL", "https://github.com/OpenGVLab/InternVL", ("vit_intern*",)),
    Family("deit3", "DeiT-III (Touvron et al. 2022)", "https://github.com/facebookresearch/deit", ("deit3_*",)),
    Family("deit", "DeiT (Touvron et al. 2021)", "https://github.com/facebookresearch/deit", ("deit_*",)),
    Family(
        "flexivit", "FlexiViT, for patches of many sizes (Beyer et al. 2023)",
        "https://github.com/google-research/big_vision", ("flexivit_*",),
    ),
    Family(
        "augreg", "ViT, supervised (Steiner et al. 2021)", "https://github.com/google-research/vision_transformer",
        ("*.augreg*",),
    ),
    Family(
        "vit", "ViT, supervised, of the first papers (Dosovitskiy et al. 2021; Chen et al. 2022)",
        "https://github.com/google-research/vision_transformer", ("*.orig_*", "*.sam_in1k"),
    ),
    Family(
        "miil", "ViT on ImageNet-21k (Ridnik et al. 2021)", "https://github.com/Alibaba-MIIL/ImageNet21K", ("*_miil.*",)
    ),
    Family("bamboo", "ViT on Bamboo (Zhang et al. 2022)", "https://github.com/ZhangYuanhan-AI/Bamboo", ("*.bamboo",)),
    Family("timm", "timm's own, and structures without weights", TIMM, ("*",)),
)  # fmt: skip
"""Weights are of the first family that has a pattern of theirs; the last one has all that are left."""


@functools.cache
def family_of(name: str, tag: str | None) -> Family:
    """The family of one name's weights."""
    called = f"{name}.{tag or ''}"
    return next(family for family in FAMILIES if any(fnmatchcase(called, pattern) for pattern in family.members))
