#!/usr/bin/env bash
# What is done on a system that has PyTorch and no MLX: a run, its answers, and conversion there and back.
set -euo pipefail

out=${1:-runs/torch-ref}
torch-ref --version
torch-ref train quickstart train.epochs=1 --out "$out/run"
torch-ref eval "$out/run"
torch-ref merge "$out/run" "$out/merged"
torch-ref convert "$out/run" "$out/transformers" --to transformers --no-verify
torch-ref convert "$out/transformers" "$out/timm" --to timm --no-verify
torch-ref train quickstart train.epochs=2 --out "$out/run" --resume
torch-ref report "$out" --out "$out/report"
