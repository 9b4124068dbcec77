"""What others call the models that are here under timm's names: Meta's torch.hub, torchvision, OpenAI, the hub."""

from __future__ import annotations

from collections.abc import Collection, Mapping

SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant", "h": "huge"}
"""The letters that stand for sizes in others' names."""

OTHERS = {
    **{f"dinov2_vit{short}14": f"vit_{size}_patch14_dinov2.lvd142m" for short, size in SIZES.items()},
    **{f"dinov2_vit{short}14_reg": f"vit_{size}_patch14_reg4_dinov2.lvd142m" for short, size in SIZES.items()},
    **{f"dinov3_vit{short}16": f"vit_{SIZES[short]}_patch16_dinov3.lvd1689m" for short in "sbl"},
    "dinov3_vits16plus": "vit_small_plus_patch16_dinov3.lvd1689m",
    "dinov3_vith16plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "dinov3_vit7b16": "vit_7b_patch16_dinov3.lvd1689m",
    "dinov3_vitl16_pretrain_sat493m": "vit_large_patch16_dinov3.sat493m",
    "dinov3_vit7b16_pretrain_sat493m": "vit_7b_patch16_dinov3.sat493m",
    **{f"dinov2_{size}": f"vit_{size}_patch14_dinov2.lvd142m" for size in SIZES.values()},
    **{f"dinov2_with_registers_{size}": f"vit_{size}_patch14_reg4_dinov2.lvd142m" for size in SIZES.values()},
    **{f"dino_vit{short}{patch}": f"vit_{SIZES[short]}_patch{patch}_224.dino" for short in "sb" for patch in (8, 16)},
    "dino_deitsmall8": "vit_small_patch8_224.dino",
    "dino_deitsmall16": "vit_small_patch16_224.dino",
    "vit_mae_base": "vit_base_patch16_224.mae",
    "vit_mae_large": "vit_large_patch16_224.mae",
    "vit_mae_huge": "vit_huge_patch14_224.mae",
    "mae_vit_base_patch16": "vit_base_patch16_224.mae",
    "mae_vit_large_patch16": "vit_large_patch16_224.mae",
    "mae_vit_huge_patch14": "vit_huge_patch14_224.mae",
    **{f"vit_{short}_{patch}": f"vit_{SIZES[short]}_patch{patch}_224" for short in "bl" for patch in (16, 32)},
    "vit_h_14": "vit_huge_patch14_224",
    "vit_l_14": "vit_large_patch14_clip_224.openai",
    "clip_vit_base_patch16": "vit_base_patch16_clip_224.openai",
    "clip_vit_base_patch32": "vit_base_patch32_clip_224.openai",
    "clip_vit_large_patch14": "vit_large_patch14_clip_224.openai",
    "clip_vit_large_patch14_336": "vit_large_patch14_clip_336.openai",
    **{f"siglip_base_patch16_{side}": f"vit_base_patch16_siglip_{side}.webli" for side in (224, 256, 384, 512)},
    **{f"siglip_large_patch16_{side}": f"vit_large_patch16_siglip_{side}.webli" for side in (256, 384)},
    **{f"siglip_so400m_patch14_{side}": f"vit_so400m_patch14_siglip_{side}.webli" for side in (224, 384)},
}
"""timm's names by those of others, in lower case and with ``_`` for ``-`` and ``/``, without the owner of a repository.
Such as are timm's but for that (``google/vit-base-patch16-224``) are not listed."""


def ours(name: str, known: Mapping[str, Collection[str]]) -> str | None:
    """What a model that others call ``name`` is called here; None where nobody is known to call one so.

    ``facebook/dinov2-small`` and ``dinov2_vits14`` are ``vit_small_patch14_dinov2.lvd142m``; what stands behind a known
    name, as in ``google/vit-base-patch16-224-in21k``, tells weights apart that a repository has, and is passed over.

    Args:
        known: timm's names, each with its tags.
    """
    architecture, _, tag = name.lower().rpartition("/")[2].partition(".")
    if tag in known.get(architecture, ()):
        return f"{architecture}.{tag}"
    for spelled in (architecture, name.lower().replace("/", "_")):
        words = spelled.replace("-", "_").split("_")
        for count in range(len(words), 1, -1):
            candidate = "_".join(words[:count])
            found = OTHERS.get(candidate, candidate)
            if found.partition(".")[0] in known:
                return found
    return None
