"""Every command, program and experiment in README.md and docs is run, or it is said here why it cannot be."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch  # before MLX, or it gets the wrong BLAS
import yaml
from comparing import relative
from documentation.conftest import ARGS, SIZE, run
from documentation.snippets import SNIPPETS, Snippet

from mlx_peft.artifacts.targets import TARGETS
from mlx_peft.config import suite

NOT_RUN = {
    "make demo": "makes an environment from the network; tests/cli/test_quickstart.py trains the same",
    "make test": "it is what runs this",
    "pip install -e .": "the network",
    "pip install -e '.[torch]'": "the network",
    "pip install -e '.[track]'": "the network",
    "pip install -e '.[export]'": "the network",
    "pip install -e '.[datasets]'": "the network",
    "mlx-peft sweep my-study.yaml --ray ray://head:10001": "a cluster",
    "mlx-peft sweep my-study.yaml --ray local": "tests/studies/test_killed.py begins such a cluster",
    "mlx-peft sweep vtab-1k-lora data.root=vtab-1k --out runs/vtab": "nineteen data sets that their authors hand out",
    "mlx-peft data check busi root=Dataset_BUSI_with_GT --sheet busi.png": "a data set that its authors hand out",
    "mlx-peft predict cats/ image.jpg --model vit_small_patch14_dinov2 --weights dinov2.safetensors": (
        "an adapter that PEFT wrote for 86 MB of weights; tests/interop/test_foreign_adapter.py has a small one"
    ),
    **dict.fromkeys(
        (
            "torchrun --nproc-per-node 2 -m torch_ref train dinov2-small-lora-folder data.root=photos --resume",
            "mlx.launch -n 2 mlx-peft train dinov2-small-lora-folder data.root=photos --resume",
        ),
        "two processes with a model of the hub; tests/distributed has small ones",
    ),
    **dict.fromkeys(
        (
            "mlx-peft predict food101/ IMAGE.jpg --weights vit/",
            "mlx-peft convert food101/ renewed/ --to peft-transformers --weights vit/",
            "mlx-peft convert food101/ ours/ --to peft --weights vit/",
            "mlx-peft convert runs/mine theirs/ --to peft-transformers",
        ),
        "of transformers' ViT-B; tests/interop/test_pefts_image_example.py has a small one",
    ),
    **dict.fromkeys(
        (
            "torch-ref bench --only torch --only peft --model vit_small_patch16_224 --model vit_base_patch16_224 "
            "--batch-size 64 --batch-size 256 --precision float32 --precision tf32 --precision bfloat16 --compile both",
            "torch-ref bench data photos --batch-size 64 --threads 16 --no-steps",
            *(f"mlx-peft parity --all {what}" for what in ("--bits 8", "--bits 4", "--precision bfloat16")),
            "torch-ref train quickstart train.compile=true",
            "torch-ref train quickstart --out runs/precision/float32",
            *(f"torch-ref train quickstart train.precision={p} --out runs/precision/{p}" for p in ("tf32", "bfloat16")),
            "torch-ref report runs/precision --out report",
        ),
        "long without a GPU; tests/cli/test_devices.py and tests/methods/test_compiled_steps.py have small ones",
    ),
    "mlx-peft convert old.safetensors ours/ --to peft --model vit_base_patch16_224 --weights vit_b.safetensors": (
        "an old file for 330 MB of weights; tests/interop/test_lora_vit_files.py has a small one"
    ),
}
"""Commands, each with the reason."""

SMALL = f"model.image_size={SIZE} '{{}}' train.epochs=1 data.batch_size=8".format(f"model.args={ARGS}".replace("'", ""))
FOLDER = "data.name=folder data.root=photos data.variant=null"
BENCH = "--model vit_tiny_patch16_224 --batch-size 1 --rounds 1 --busy"
FEWER = f"{BENCH} --image-size 64 --backend torch"

MORE = {
    "torch-ref train quickstart train.precision=bfloat16": "train.epochs=1",
    "mlx-peft train vit-small-lora-cifar100": f"{SMALL} {FOLDER}",
    "mlx-peft train vit-small-lora-folder data.root=photos": SMALL,
    "mlx-peft train vit-small-lora-folder data.root=photos method.rank=32 'method.targets=[q, v, fc1]'": SMALL,
    "mlx-peft train runs/mine --resume train.epochs=20": "train.epochs=3",
    "mlx-peft train runs/mine --resume train.optimizer.lr=1e-4 train.epochs=20": "train.epochs=5",
    "mlx-peft eval runs/mine --weights dinov2.safetensors data.root=photos": "--weights timm",
    "mlx-peft train RECIPE data.name=NAME data.root=FOLDER data.variant=VARIANT": SMALL,
    "mlx-peft train vit-base-lora-vtab-1k-cifar data.root=vtab-1k": f"{SMALL} {FOLDER}",
    "mlx-peft sweep quickstart-methods": "train.epochs=1",
    "mlx-peft sweep digits-study --out runs/study": "train.epochs=1",
    "mlx-peft sweep digits-study --out runs/study --dry-run": "train.epochs=1",
    "mlx-peft sweep digits-study --out runs/study --jobs 2": "train.epochs=1",
    "mlx-peft sweep digits-study --out runs/study --retry": "train.epochs=1",
    "mlx-peft sweep textile-methods data.root=photos --out runs/methods": f"{SMALL} data.batch_size=1 train.epochs=4",
    "mlx-peft convert dino_deitsmall16_pretrain.pth dino/ --to timm --model vit_small_patch16_224.dino": " ".join(
        f"--set {field}={value}" for field, value in (ARGS | {"img_size": SIZE}).items()
    ),
    "mlx-peft convert vit/ large/ --to timm --image-size 384": "--image-size 32",
    "mlx-peft train my.yaml tokens.name=tome tokens.r=13 --out runs/fewer": "tokens.r=1",
    "mlx-peft eval runs/mine --tokens 'tome r=13'": "--tokens 'tome r=1'",
    "mlx-peft predict runs/mine cat.jpg --tokens 'tome r=13'": "--tokens 'tome r=1'",
    "mlx-peft merge runs/mine smaller --tokens 'tome r=13'": "--tokens 'tome r=1'",
    "mlx-peft parity": "--model vit_tiny_patch16_224 --method linear --no-steps",
    "mlx-peft parity --all": "--model vit_tiny_patch16_224 --method linear --no-steps",
    "mlx-peft parity --precision bfloat16": "--model vit_tiny_patch16_224 --method linear --no-steps",
    "mlx-peft bench": BENCH,
    "mlx-peft bench --method lora --method lst": BENCH,
    "mlx-peft bench tokens": f"'tome r=2' {FEWER}",
    "mlx-peft bench tokens 'tome r=2' skipvit --out speed": FEWER,
    "mlx-peft bench tokens 'tome r=2' --run runs/mine --out speed": "--backend torch --batch-size 1 --rounds 1 --busy",
    "mlx-peft bench data IMAGES": f"--image-size {SIZE} --batch-size 4 --rounds 1 --no-steps --busy",
}
"""What a command is given besides, so that it takes no time and needs no data set."""

EARLIER = Path(__file__).parents[1] / "earlier" / "0.1.0"

WORDS = {
    "SOURCE": "runs/mine", "OUT": "written", "CHECKPOINT": "merged", "NAME": "folder",
    "RECIPE": "vit-small-lora-folder", "FOLDER": "photos", "VARIANT": "null", "CONFIG": "my.yaml", "RUN": "runs/mine",
    "IMAGES": "photos", "OWNER": "jane",
    "runs/vtab": "runs",
}  # fmt: skip
"""What is written where a person writes something else."""

SLOW = {
    "mlx-peft parity --precision bfloat16",
    "mlx-peft estimate my.yaml --measure",
    *(line for line in MORE if line.startswith("mlx-peft bench") and "IMAGES" not in line),
    *(line for line in MORE if line.startswith("mlx-peft sweep ")),
}

MADE = {
    ("README.md", "Train"): "runs",
    ("README.md", "Use what was trained"): "merged",
    ("docs/runs.md", "Runs: what a folder holds, how it goes on, and what tells damage"): "runs",
}
"""What is not there before the commands under a heading, since they make it."""

STOPPED = {("docs/runs.md", "What may be changed on the way")}
"""Where ``runs/mine`` is a run that was stopped in its middle."""

FEW = {("docs/explain.md", "Why a model says what it says")}
"""Where one photo of each class is enough: each becomes a picture."""

LANGUAGES = {"", "yaml", "python", "mermaid"}
"""Commands have none. Of pictures: tests/house/test_picture.py."""


def of_language(language: str) -> list:
    return [pytest.param(snippet, id=str(snippet)) for snippet in SNIPPETS if snippet.language == language]


def filled_in(line: str) -> str:
    """A command with words in the place of WORDS, the first of several choices, and what MORE has for it."""
    for word, value in WORDS.items():
        line = re.sub(rf"(?<![\w/]){word}(?![\w])", value, line)
    return re.sub(r"'?([\w-]+)(\|[\w-]+)+'?", r"\1", line)


def must_run(snippet: Snippet, slow: bool, world: Path) -> None:
    """Runs the commands of a snippet, one after the other."""
    if made := MADE.get((snippet.page, snippet.heading)):
        shutil.rmtree(world / made)
    if (snippet.page, snippet.heading) in STOPPED:
        shutil.rmtree(world / "runs" / "mine")
        shutil.copytree(EARLIER / "stopped" / "linear-torch", world / "runs" / "mine")
    if (snippet.page, snippet.heading) in FEW:
        for label in (world / "photos").iterdir():
            for photo in sorted(label.iterdir())[1:]:
                photo.unlink()
    for line in snippet.commands:
        if line in NOT_RUN or (line in SLOW) != slow:
            continue
        if line.startswith("sha256sum -c "):
            digests_fit(world / "runs" / "mine" / line.split()[-1])
            continue
        done = run(f"{filled_in(line)} {MORE.get(line, '')}")
        assert done.exit_code == 0, f"{snippet}: {line}\n{done.output}\n{done.exception!r}"


def digests_fit(sums: Path) -> None:
    """What ``sha256sum -c`` finds out, which a Mac may not have."""
    lines = [line.split("  ") for line in sums.read_text().splitlines()]
    assert lines
    assert all(hashlib.sha256((sums.parent / name).read_bytes()).hexdigest() == digest for digest, name in lines)


@pytest.mark.parametrize("snippet", of_language(""))
def test_the_commands_do_what_they_say(snippet, world):
    must_run(snippet, False, world)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [param for param in of_language("") if SLOW & {*param.values[0].commands}])
def test_the_commands_that_take_long_do_what_they_say(snippet, world):
    must_run(snippet, True, world)


@pytest.mark.parametrize("snippet", of_language("yaml"))
def test_an_experiment_or_a_suite_is_one(snippet, world):
    """Sections alone are put into the README's experiment; keys that are there twice are choices."""
    for number, text in enumerate(choices(snippet.text)):
        file = world / f"{number}.yaml"
        file.write_text(text)
        document = yaml.safe_load(text)
        if "runs" in document:
            file.write_text(f"base: quickstart\n{text}" if "base" not in document else text)
            assert suite.load(file).runs
            continue
        file.write_text(text if "model" in document else f"base: readme.yaml\n{text}")
        done = run(f"mlx-peft config validate {file}")
        assert done.exit_code == 0, f"{snippet}\n{text}\n{done.output}"


def choices(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    keys = [line.partition(":")[0] for line in lines]
    return lines if len(lines) > 1 and len({*keys}) == 1 else [text]


NAME = "deit_tiny_patch16_224.fb_in1k"
INSTEAD = {f'mp.create_model("{NAME}", ': f'mp.create_model("{NAME}", image_size={SIZE}, args={ARGS}, '}
"""In a program, what has a small model here."""

NOTEBOOK = "In a notebook"
BACKENDS = 1e-4
"""What the losses of a loop, and the logits of what it trained, may differ by from backend to backend."""
PEFT = 1e-5
"""Relative, float32: the same model in two implementations."""


@pytest.fixture
def small_timm(monkeypatch):
    """timm's own models are small ones of the same names."""
    import timm

    create, small = timm.create_model, {**ARGS, "img_size": SIZE}
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: create(name, **options, **({} if ":" in name else small))
    )


def executed(snippet: Snippet, world: Path) -> list[dict]:
    """The names that a program leaves, in each backend, where it names another in a comment."""
    text, found = snippet.text, []
    for before, after in INSTEAD.items():
        text = text.replace(before, after)
    for program in programs(text):
        images, labels = np.zeros((2, SIZE, SIZE, 3), np.uint8), np.arange(2)
        given = {"images": images, "labels": labels, "names": [f"class {number}" for number in range(10)]}
        exec(compile(program, str(snippet), "exec"), given)
        assert given["model"] is not None
        for folder in ("adapter", "runs/again"):
            shutil.rmtree(world / folder, ignore_errors=True)
        found.append(given)
    return found


@pytest.mark.parametrize("snippet", [param for param in of_language("python") if param.values[0].heading != NOTEBOOK])
def test_a_program_runs(snippet, world, small_timm):
    executed(snippet, world)


def test_the_notebook_gives_the_same_in_both_backends_and_in_peft(world, small_timm):
    (snippet,) = (one for one in SNIPPETS if one.language == "python" and one.heading == NOTEBOOK)
    assert len(snippet.text.splitlines()) <= 22 and snippet.page == "README.md"
    ours, theirs = executed(snippet, world)
    assert {ours["mp"].__name__, theirs["mp"].__name__} == {"mlx_peft", "torch_ref"}
    assert np.isfinite(ours["losses"]).all() and ours["losses"][-1] < ours["losses"][0]
    np.testing.assert_allclose(ours["losses"], theirs["losses"], atol=BACKENDS)
    assert ours["answer"].name == theirs["answer"].name and ours["answer"].name in ours["again"].classes
    for given in (ours, theirs):
        x = np.array(given["mp"].prepare(given["again"], given["images"][:8]), copy=True)
        with torch.no_grad():
            logits = given["theirs"](torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        again = given["again"].predict(given["images"][:8])
        assert relative(np.stack([one.logits for one in again]), logits) <= PEFT
        np.testing.assert_array_equal(again.probabilities, given["model"].predict(given["images"][:8]).probabilities)


def programs(text: str) -> list[str]:
    """A program, and what it is with the import that its first line has for another backend."""
    first, _, rest = text.partition("\n")
    _, other, replaced = first.partition("  # or: ")
    return [text, f"{replaced}\n{rest}"] if other else [text]


def test_nothing_is_of_a_language_that_is_not_run():
    assert {snippet.language for snippet in SNIPPETS} <= LANGUAGES


def test_what_is_said_of_commands_is_said_of_some_that_are_there():
    lines = {line for snippet in SNIPPETS if not snippet.language for line in snippet.commands}
    assert not [line for line in (*NOT_RUN, *MORE, *SLOW) if line not in lines]
    headings = {(snippet.page, snippet.heading) for snippet in SNIPPETS}
    assert {*MADE, *STOPPED, *FEW} <= headings
    programs = [snippet.text for snippet in SNIPPETS if snippet.language == "python"]
    assert all(any(text in program for program in programs) for text in INSTEAD)


def test_every_choice_of_a_format_is_one():
    (line,) = (line for snippet in SNIPPETS if not snippet.language for line in snippet.commands if " --to '" in line)
    assert line.split("'")[1].split("|") == list(TARGETS)
