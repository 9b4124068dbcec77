"""What the documentation's commands are run with here."""

from __future__ import annotations

from pathlib import Path

from documentation.conftest import ARGS, SIZE

THEIRS = {
    **dict.fromkeys(("mlx-lm", "torchtune"), "needs a language model of gigabytes"),
    "mlx-tune": "runs on Macs alone, on a language model",
    "mlx-vit-tune": "is in no package index; tests/bench/mlx_vit_tune.py times a checkout of it",
}
"""Libraries whose code is shown and not run, each with the reason. That of the others is run."""

SMALL = f"model.image_size={SIZE} '{{}}' train.epochs=1 data.batch_size=8".format(f"model.args={ARGS}".replace("'", ""))
FOLDER = "data.name=folder data.root=photos data.variant=null"
ONCE = "train.epochs=1 data.split.test=0.8"
"""Over few images, as those of the test split are looked at once."""
PRECISIONS = [
    ("", "float32"),
    (" train.precision=tf32", "tf32"),
    (" train.precision=bfloat16", "bfloat16"),
]
CELL = "--model vit_tiny_patch16_224 --method linear --no-steps"
BENCH = "--model vit_tiny_patch16_224 --batch-size 1 --rounds 1 --busy"
DATA = f"--image-size {SIZE} --batch-size 4 --rounds 1 --busy"
FEWER = f"{BENCH} --image-size 64 --backend torch"

MORE = {
    "mlx-peft train quickstart": ONCE,
    "torch-ref train quickstart train.precision=bfloat16": ONCE,
    "mlx-peft train vit-small-lora-cifar100": f"{SMALL} {FOLDER}",
    "mlx-peft train vit-small-lora-folder data.root=photos": SMALL,
    "mlx-peft train vit-small-lora-folder data.root=photos method.rank=32 'method.targets=[q, v, fc1]'": SMALL,
    "mlx-peft train vit-small-lora-folder data.root=photos train.epochs=10 data.batch_size=8 --out runs/cats": SMALL,
    "torch-ref train mine.yaml data.root=photos method.rank=16 train.optimizer.lr=1e-4": SMALL,
    "mlx-peft train my.yaml data.root=photos --out runs/mine": SMALL,
    "mlx-peft train my.yaml data.root=photos method.name=linear --out runs/linear": SMALL,
    "mlx-peft train runs/mine --resume train.epochs=20": "train.epochs=3",
    "mlx-peft train runs/mine --resume train.optimizer.lr=1e-4 train.epochs=20": "train.epochs=5",
    "mlx-peft eval runs/mine --weights dinov2.safetensors data.root=photos": "--weights timm",
    **{f"torch-ref train quickstart{words} --out runs/precision/{name}": ONCE for words, name in PRECISIONS},
    "torch-ref train quickstart train.compile=true": ONCE,
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
    "mlx-peft doctor": "--no-step --no-hub",
    "mlx-peft parity": CELL,
    "mlx-peft parity --precision bfloat16": CELL,
    **{f"mlx-peft parity --all{words}": CELL for words in ("", " --bits 8", " --bits 4", " --precision bfloat16")},
    "mlx-peft bench": BENCH,
    "mlx-peft bench --only mlx --batch-size 1": "--model vit_tiny_patch16_224 --rounds 1 --busy",
    "mlx-peft bench --method lora --method lst": BENCH,
    "mlx-peft bench tokens": f"'tome r=2' {FEWER}",
    "mlx-peft bench tokens 'tome r=2' skipvit --out speed": FEWER,
    "mlx-peft bench tokens 'tome r=2' --run runs/mine --out speed": "--backend torch --batch-size 1 --rounds 1 --busy",
    "torch-ref bench data photos --batch-size 64 --threads 16 --no-steps": DATA,
    "mlx-peft bench data IMAGES": f"{DATA} --no-steps",
}
"""What a command is given besides, so that it takes no time and needs no data set."""

SERVERS = {
    "mlx-peft serve quickstart": "--port 0",
    "mlx-peft serve clinics/": "--port 0",
    "mlx-peft serve runs/mine": "--port 0",
    "mlx-peft serve runs/mine --port 8080": "--port 0",
    "mlx-peft serve clinics/ --backend torch --adapters-budget 2GB --max-batch 64": "--port 0",
}
"""Commands that answer until they are stopped."""

SEEN = f"{SMALL} model.weights=none --out launched"
LAUNCHED = {
    f"{launcher} train dinov2-small-lora-folder data.root=photos --resume": SEEN
    for launcher in ("torchrun --nproc-per-node 2 -m torch_ref", "mlx.launch -n 2 mlx-peft")
}
"""Commands that another library's program starts, several times."""

EARLIER = Path(__file__).parents[1] / "earlier" / "0.1.0"

WORDS = {
    "SOURCE": "runs/mine", "OUT": "written", "CHECKPOINT": "merged", "NAME": "folder",
    "RECIPE": "vit-small-lora-folder", "FOLDER": "photos", "VARIANT": "null", "CONFIG": "my.yaml", "RUN": "runs/mine",
    "IMAGES": "photos", "OWNER": "jane",
    "runs/vtab": "runs",
}  # fmt: skip
"""What is written where a person writes something else."""

SLOW = {
    *(line for line in MORE if line.startswith("mlx-peft parity --")),
    "torch-ref train quickstart train.compile=true",
    *(line for line in MORE if "runs/precision" in line),
    "torch-ref report runs/precision --out report",
    "mlx-peft estimate my.yaml --measure",
    *(line for line in MORE if line.startswith("mlx-peft bench") and "IMAGES" not in line),
    *(line for line in MORE if line.startswith("mlx-peft sweep ")),
}

DRAWN = {"README.md", "docs/report.md"}
"""Pages whose commands draw their pictures every day; those of the others do in a slow test."""

MADE = {
    ("README.md", "Train"): "runs",
    ("README.md", "Use what was trained"): "merged",
    ("docs/runs.md", "Runs: what a folder holds, how it goes on, and what tells damage"): "runs",
    ("docs/tutorial.md", "3. The experiment"): "my.yaml",
    ("docs/tutorial.md", "4. Train"): "runs",
    ("docs/tutorial.md", "6. Give it to others"): "merged",
    ("docs/small-models.md", "After training"): "merged",
    ("docs/coming-from.md", "mlx-lm"): "merged",
}
"""What is not there before the commands under a heading, since they make it."""

STOPPED = {("docs/runs.md", "What may be changed on the way")}
"""Where ``runs/mine`` is a run that was stopped in its middle."""

FEW = {("docs/explain.md", "Why a model says what it says")}
"""Where one photo of each class is enough: each becomes a picture."""
