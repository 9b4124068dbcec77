"""torch's DataLoader with torchvision's transforms as their documentation has them: ``bench data`` times it."""

from __future__ import annotations

from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode


def loader(root: str, image_size: int, batch_size: int, workers: int, interpolation: str) -> DataLoader:
    """Shuffled batches of an image folder, cropped at random, flipped, as uint8; workers that stay."""
    images = ImageFolder(
        root,
        transforms.Compose(
            [
                transforms.RandomResizedCrop(image_size, interpolation=InterpolationMode(interpolation)),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        ),
    )
    return DataLoader(images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
