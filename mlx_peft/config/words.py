"""Words that others have for what is written here (peft, timm, transformers, papers), and ours for each.

Whoever writes one is answered with ours. What stands elsewhere in an experiment needs no entry: ``lr`` is looked for,
and found to be ``train.optimizer.lr``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from mlx_peft.core.problems import Hints
from mlx_peft.core.sections import Place, dotted, fields, sections

CLOSE = 0.75
"""A key of another section is meant by a name that is so much like it, from 0 to 1; in its own, less will do."""

MOST = 3
"""So many places are named of a key that there is in several."""

KEYS: dict[str, tuple[str, ...]] = {
    # peft
    "r": ("rank", "init_rank"),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "vera_dropout": ("dropout",),
    "pvera_dropout": ("dropout",),
    "randlora_alpha": ("alpha",),
    "randlora_dropout": ("dropout",),
    "target_modules": ("targets",),
    "feedforward_modules": ("feedforward",),
    "layers_to_transform": ("blocks",),
    "use_dora": ("dora",),
    "use_rslora": ("rslora",),
    "init_lora_weights": ("init",),
    "eva_config": ("eva",),
    "loftq_config": ("loftq",),
    "loftq_iter": ("steps",),
    "loraplus_lr_ratio": ("lora_plus",),
    "init_r": ("init_rank",),
    "target_r": ("target_rank",),
    "tinit": ("t_init",),
    "tfinal": ("t_final",),
    "deltat": ("delta_t",),
    "orth_reg_weight": ("orth_weight",),
    "projection_prng_key": ("projection_key",),
    "num_virtual_tokens": ("tokens",),
    # transformers
    "learning_rate": ("lr",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "per_device_train_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("accumulate",),
    "max_grad_norm": ("clip_norm",),
    "lr_scheduler_type": ("schedule.name",),
    "lr_scheduler": ("schedule.name",),
    "warmup_ratio": ("warmup",),
    "optim": ("optimizer",),
    "adam_epsilon": ("eps",),
    "dtype": ("precision",),
    "torch_dtype": ("precision",),
    "bf16": ("precision",),
    "fp16": ("precision",),
    "logging_steps": ("log_every",),
    "save_steps": ("checkpoint_every",),
    "report_to": ("track",),
    "dataloader_num_workers": ("threads",),
    "model_name_or_path": ("model.name",),
    "pretrained_model_name_or_path": ("model.weights",),
    # timm
    "opt": ("optimizer.name",),
    "sched": ("schedule.name",),
    "clip_grad": ("clip_norm",),
    "smoothing": ("label_smoothing",),
    "img_size": ("image_size",),
    "input_size": ("image_size",),
    "drop": ("head_dropout",),
    "drop_rate": ("head_dropout",),
    "drop_path_rate": ("drop_path",),
    "pretrained": ("weights",),
    "checkpoint_path": ("weights",),
    "data_dir": ("root",),
    "dataset": ("data.name",),
    "workers": ("threads",),
    "num_workers": ("threads",),
    "grad_checkpointing": ("gradient_checkpointing",),
    "wd": ("weight_decay",),
    "bs": ("batch_size",),
}
"""Keys, in lower case; of several of ours the first is meant that there is."""

NEEDLESS = {
    "modules_to_save": "the head is trained and saved always",
    "bias": "whether biases are trained is the method's own: bitfit and full do",
    "task_type": "what a head answers is known from the data",
    "peft_type": "the method's name says it",
    "inference_mode": "a model is used as it is trained",
    "fan_in_fan_out": "all layers are stored alike",
    "layers_pattern": "blocks are known by their numbers",
    "exclude_modules": "only what targets names is adapted",
}
"""Keys of peft's that say what needs no saying here, in lower case, and why."""

VALUES = {
    "query": "q",
    "key": "k",
    "value": "v",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "out_proj": "proj",
    "o_proj": "proj",
    "attention.output.dense": "proj",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "up_proj": "fc1",
    "down_proj": "fc2",
    "all_linear": "all-linear",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "adam": "adamw",
    "pytorch": "torch",
    "linear_probe": "linear",
    "linear-probe": "linear",
    "probe": "linear",
    "full_finetuning": "full",
    "fine-tuning": "full",
    "ln_tuning": "layernorm",
    "adapter": "houlsby",
    "adapter+": "adapter_plus",
    "adapterplus": "adapter_plus",
    "adapter-plus": "adapter_plus",
    "prompt_tuning": "vpt",
}
"""Values that stand for one of those that there are."""

OPTIONS: dict[str, tuple[str, str, Any]] = {
    "dora": ("lora", "dora", True),
    "rslora": ("lora", "rslora", True),
    "pissa": ("lora", "init", "pissa"),
    "olora": ("lora", "init", "olora"),
    "loftq": ("lora", "init", "loftq"),
    "eva": ("lora", "init", "eva"),
    "loraplus": ("lora", "lora_plus", 16),
    "lora+": ("lora", "lora_plus", 16),
    "vpt-deep": ("vpt", "deep", True),
}
"""Methods by the names that people know, which are options of another here: the method, the option and its value."""


class Words(Hints):
    """What was meant by a name in a section, or anywhere below it, that others have another word for."""

    def __init__(self, root: type) -> None:
        self._paths = list(dict.fromkeys(paths(root)))

    def of_key(self, place: Place, known: Sequence[str]) -> str:
        section, wrong = place[:-1], str(place[-1])
        if reason := NEEDLESS.get(wrong.lower()):
            return f": {reason}; leave it out"
        for name in (*KEYS.get(wrong.lower(), ()), wrong):
            if name in known:
                return _did_you_mean(name)
            if found := self._elsewhere(section, name):
                return _did_you_mean(*found)
        if near := super().of_key(place, known):
            return near
        names = {str(path[-1]) for path in self._paths}
        close = difflib.get_close_matches(wrong.lower(), names, n=1, cutoff=CLOSE)
        return _did_you_mean(*self._elsewhere(section, close[0])) if close else ""

    def of_value(self, wrong: str, known: Sequence[str]) -> str:
        if option := OPTIONS.get(wrong.lower()):
            return f": it is {self.of_option(*option)}"
        other = VALUES.get(wrong.lower(), wrong)
        return _did_you_mean(other) if other in known else super().of_value(wrong, known)

    def of_option(self, method: str, key: str, value: Any) -> str:
        """A method with one option, as a file and a command line have it."""
        return f"{method} with method.{key}={str(value).lower()}"

    def _elsewhere(self, section: Place, name: str) -> list[str]:
        """Where there is such a key: in the section's own sections, or else anywhere, as near the top as it is.

        A key that the section has as another of its kinds is none that was meant for another section.
        """
        end = tuple(name.split("."))
        there = [path for path in self._paths if path[-len(end) :] == end]
        if (*section, *end) in there:
            return []
        below = [path for path in there if path[: len(section)] == section] or there
        top = min(map(len, below), default=0)
        return [dotted(path) for path in below if len(path) == top]


class PythonWords(Words):
    """The same, for what is called in Python."""

    def of_option(self, method: str, key: str, value: Any) -> str:
        return f"{method!r}, {key}={value!r}"


def paths(root: type) -> Iterator[Place]:
    """The place of every key that a section may have, those of its sections too, whatever their kinds."""
    for key, annotation in fields(root).items():
        yield (key,)
        for inner in sections(annotation):
            yield from ((key, *place) for place in paths(inner))


def _did_you_mean(*names: str) -> str:
    return f"; did you mean {' or '.join(map(repr, names[:MOST]))}?" if names else ""
