"""transformers' classes that are here: what each calls its tensors, and what of it its configuration does not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.layouts import transformers_beit as beit
from convert.layouts import transformers_dinov3 as dinov3
from convert.layouts import transformers_names as names
from convert.layouts.renaming import Pair
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture

WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models with a text tower; the vision tower's configuration is their ``vision_config``."""


@dataclass(frozen=True)
class Variant:
    """A model class of transformers.

    Attributes:
        kind: of the configuration that its tower has.
        pairs: the tower's names, without the prefix, of a model that is one of these.
        head: the head's; empty where it has none.
        fields: of the architecture, as far as the configuration does not say them.
        unused: of the tower's parameters, what the class has but does not use: a pattern of timm's names.
        whole: the model type of a class whose configuration holds the tower's as ``vision_config``.
        said: fields of the architecture that the configuration says beside the sizes. Raises UserError.
        written: the reverse of it.
        beside: shapes of tensors, by the class's names, that it has and no classifier uses: zeros do.
        on_disk: the tensors by the names that they have on disk, whatever they are called.
        adapted: whether adapters over the class are read and written.
    """

    kind: str
    pairs: Callable[[Architecture], list[Pair]]
    head: list[Pair] = field(default_factory=list)
    fields: Mapping[str, Any] = field(default_factory=dict)
    unused: str = ""
    whole: str = ""
    said: Callable[[Mapping[str, Any], Path], dict[str, Any]] = lambda values, path: {}
    written: Callable[[Architecture], dict[str, Any]] = lambda architecture: {}
    beside: Callable[[Architecture], dict[str, tuple[int, ...]]] = lambda architecture: {}
    on_disk: Callable[[Tensors], Tensors] = names.as_on_disk
    adapted: bool = True

    @property
    def reads_both(self) -> bool:
        """Whether its head reads the class token and the mean of the patches, as DINOv2's do."""
        return bool(self.head) and self.kind.startswith("dinov2")

    @property
    def prefix(self) -> str:
        """Of the tower's tensors, in a class that holds more."""
        if self.kind in WHOLE.values():
            return "vision_model." if self.head else ""
        return f"{self.kind.replace('-', '_')}." if self.head else ""


def _mask_token(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {"embeddings.mask_token": (1, architecture.embed_dim)}


_META = {"init_values": 1e-5}
_REGISTERS = {"init_values": 1e-5, "no_embed_class": True}
_SIGLIP = {"class_token": False, "global_pool": "map"}
AVERAGE = {"global_pool": "avg", "fc_norm": False}
_BEIT: dict[str, Any] = {"said": beit.fields, "written": beit.written, "adapted": False}
_PRE_NORM = {"pre_norm": True}


def _always(pairs: list[Pair]) -> Callable[[Architecture], list[Pair]]:
    """The names of a class whose models all have the same."""
    return lambda architecture: pairs


_VIT, _DEIT, _TEACHER = map(_always, (names.VIT, names.DEIT, names.DEIT_TEACHER))
_CLIP, _SIGLIP_NAMES, _BEIT_NAMES = map(_always, (names.CLIP, names.SIGLIP, beit.PAIRS))

VARIANTS: dict[str, Variant] = {
    "ViTForImageClassification": Variant("vit", _VIT, names.CLASSIFIER),
    "ViTModel": Variant("vit", _VIT),
    "DeiTForImageClassification": Variant("deit", _DEIT, names.CLASSIFIER, {"reg_tokens": 1}),
    "DeiTForImageClassificationWithTeacher": Variant("deit", _TEACHER, names.TEACHER, {"distilled": True}),
    "DeiTModel": Variant("deit", _DEIT, fields={"reg_tokens": 1}),
    "Dinov2ForImageClassification": Variant("dinov2", names.dinov2, names.CLASSIFIER, _META),
    "Dinov2Model": Variant("dinov2", names.dinov2, fields=_META),
    "Dinov2WithRegistersForImageClassification": Variant(
        "dinov2_with_registers", names.dinov2_with_registers, names.CLASSIFIER, _REGISTERS, beside=_mask_token
    ),
    "Dinov2WithRegistersModel": Variant(
        "dinov2_with_registers", names.dinov2_with_registers, fields=_REGISTERS, beside=_mask_token
    ),
    "DINOv3ViTModel": Variant(
        "dinov3_vit", dinov3.pairs, said=dinov3.fields, written=dinov3.written, beside=dinov3.beside,
        on_disk=dinov3.on_disk, adapted=False,
    ),
    "BeitForImageClassification": Variant("beit", _BEIT_NAMES, names.CLASSIFIER, **_BEIT),
    "BeitModel": Variant("beit", _BEIT_NAMES, **_BEIT),
    "Data2VecVisionForImageClassification": Variant("data2vec-vision", _BEIT_NAMES, names.CLASSIFIER, **_BEIT),
    "Data2VecVisionModel": Variant("data2vec-vision", _BEIT_NAMES, **_BEIT),
    "CLIPVisionModelWithProjection": Variant("clip_vision_model", _CLIP, names.PROJECTION, _PRE_NORM),
    "CLIPVisionModel": Variant("clip_vision_model", _CLIP, fields=_PRE_NORM),
    "CLIPForImageClassification": Variant(
        "clip_vision_model", _CLIP, names.CLASSIFIER, {**_PRE_NORM, **AVERAGE, "final_norm": False},
        unused=r"norm\..*", whole="clip",
    ),
    "CLIPModel": Variant("clip_vision_model", _CLIP, names.PROJECTION, _PRE_NORM, whole="clip"),
    "SiglipVisionModel": Variant("siglip_vision_model", _SIGLIP_NAMES, fields=_SIGLIP),
    "SiglipForImageClassification": Variant(
        "siglip_vision_model", _SIGLIP_NAMES, names.CLASSIFIER, {"class_token": False, **AVERAGE},
        unused=r"attn_pool\..*", whole="siglip",
    ),
    "SiglipModel": Variant("siglip_vision_model", _SIGLIP_NAMES, fields=_SIGLIP, whole="siglip"),
}  # fmt: skip
WRITTEN = [name for name in VARIANTS if name not in ("CLIPModel", "SiglipModel") and not name.startswith("Data2Vec")]
"""The classes that models are written for: Data2VecVision's are BEiT's under another name."""
