"""The commands of README.md and docs that no test runs, and why."""

from __future__ import annotations

NOT_RUN = {
    "make test": "it is what runs this",
    **dict.fromkeys(
        ("pip install mlx-peft", "pip install 'mlx-peft[torch]'", "pip install 'mlx-peft[all]'"),
        "the network; tests/packages installs the wheel",
    ),
    **dict.fromkeys(("make setup", "make test-slow", "make lint", "make format"), "they are what holds this"),
    **dict.fromkeys(
        (
            "mlx-peft serve quickstart",
            "mlx-peft serve clinics/",
            "mlx-peft serve runs/mine",
            "mlx-peft serve runs/mine --port 8080",
            "mlx-peft serve clinics/ --backend torch --adapters-budget 2GB --max-batch 64",
        ),
        "it answers until it is stopped; tests/serve starts and stops it",
    ),
    "pip install 'mlx-peft[serve]'": "the network",
    "mlx-peft sweep my-study.yaml --ray ray://head:10001": "a cluster",
    "mlx-peft sweep my-study.yaml --ray local": "tests/studies/test_killed.py begins such a cluster",
    "mlx-peft sweep vtab-1k-lora data.root=vtab-1k --out runs/vtab": "nineteen data sets that their authors hand out",
    **dict.fromkeys(
        (
            "mlx-peft data check busi root=Dataset_BUSI_with_GT --sheet busi.png",
            "mlx-peft train vit-small-lora-busi --out runs/busi",
            "mlx-peft train vit-small-lora-medmnist-breastmnist --out runs/breastmnist",
            "mlx-peft sweep ultrasound --out runs/ultrasound --dry-run",
            "mlx-peft sweep ultrasound --out runs/ultrasound",
        ),
        "data sets that their authors hand out; tests/data has small ones in their layout",
    ),
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
