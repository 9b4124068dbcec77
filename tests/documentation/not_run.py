"""The commands of README.md and docs that no test runs, and why."""

from __future__ import annotations

NOT_RUN = {
    "make test": "it is what runs this",
    **dict.fromkeys(
        ("pip install mlx-peft", *(f"pip install 'mlx-peft[{extra}]'" for extra in ("torch", "serve", "all"))),
        "the network; tests/packages installs the wheel, and each extra",
    ),
    "make setup": "the network; it installs what runs this",
    "make test-slow": "it takes hours, and holds the slow ones of these tests",
    "make lint": "of the whole tree; .github/workflows/tests.yml has a job for it",
    "make format": "it writes into the tree",
    "mlx-peft sweep my-study.yaml --ray ray://head:10001": "a cluster",
    "mlx-peft sweep my-study.yaml --ray local": "tests/studies/test_killed.py begins such a cluster",
    "mlx-peft sweep vtab-1k-lora data.root=vtab-1k --out runs/vtab": "nineteen data sets that their authors hand out",
    **dict.fromkeys(
        (
            "mlx-peft data check busi root=Dataset_BUSI_with_GT --sheet busi.png",
            "mlx-peft train vit-small-lora-busi --out runs/busi",
            "mlx-peft train vit-small-lora-medmnist-breastmnist data.download=true --out runs/breastmnist",
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
            "mlx-peft predict food101/ IMAGE.jpg --weights vit/",
            "mlx-peft convert food101/ renewed/ --to peft-transformers --weights vit/",
            "mlx-peft convert food101/ ours/ --to peft --weights vit/",
            "mlx-peft convert runs/mine theirs/ --to peft-transformers",
        ),
        "of transformers' ViT-B; tests/interop/test_pefts_image_example.py has a small one",
    ),
    "torch-ref bench --only torch --only peft --model vit_small_patch16_224 --model vit_base_patch16_224 "
    "--batch-size 64 --batch-size 256 --precision float32 --precision tf32 --precision bfloat16 --compile both": (
        "hours without a GPU; tests/cli/test_devices.py has a small one"
    ),
    "mlx-peft convert old.safetensors ours/ --to peft --model vit_base_patch16_224 --weights vit_b.safetensors": (
        "an old file for 330 MB of weights; tests/interop/test_lora_vit_files.py has a small one"
    ),
}
"""Commands, each with the reason."""
