"""Whether two classes can be told apart at all at an image size: a logistic regression on the frozen model's tokens.

    python tests/bench/frozen_features.py IMAGES --weights FILE --classes nominal local --sizes 112 252

For each size: the area under the ROC curve over five-fold cross-validated probabilities (0.5 is chance), from the class
token alone and from it with the mean, maximum, minimum and standard deviation of the patch tokens.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torch_ref as mp

BATCH = 20


@torch.inference_mode()
def tokens(model, files: list[Path], size: int) -> np.ndarray:
    """``(images, 5, dim)``: the class token, then mean, maximum, minimum and standard deviation of the patches."""
    found = []
    for first in range(0, len(files), BATCH):
        images = [Image.open(file).convert("RGB").resize((size, size), Image.BICUBIC) for file in files[first:][:BATCH]]
        tokens = model.embed(mp.prepare(model, np.stack(images)))
        for block in model.blocks:
            tokens = block(tokens, model.positions)
        tokens = tokens.holding(model.norm(tokens.x))
        patches = tokens.only(["patch"]).x
        kinds = (tokens.first("class"), patches.mean(1), patches.amax(1), patches.amin(1), patches.std(1))
        found.append(torch.stack(kinds, dim=1).numpy())
    return np.concatenate(found)


def area(features: np.ndarray, labels: np.ndarray) -> float:
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    return roc_auc_score(labels, cross_val_predict(regression, features, labels, cv=5, method="predict_proba")[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder with a folder for each class")
    parser.add_argument("--classes", nargs=2, required=True)
    parser.add_argument("--sizes", nargs="+", type=int, required=True)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="timm")
    parser.add_argument("--limit", type=int, default=400, help="images of a class")
    options = parser.parse_args()
    folders = [options.images / name for name in options.classes]
    files = [sorted(folder.iterdir())[: options.limit] for folder in folders]
    labels = np.repeat([0, 1], [len(some) for some in files])
    print("| image size | class token | all |\n|---:|---:|---:|")
    for size in options.sizes:
        model = mp.create_model(options.model, options.weights, num_classes=2, image_size=size).eval()
        found = tokens(model, [*files[0], *files[1]], size)
        print(f"| {size} | {area(found[:, 0], labels):.3f} | {area(found.reshape(len(found), -1), labels):.3f} |")


if __name__ == "__main__":
    main()
