"""Fine-tune a network on a folder of class folders, PATH/<class>/*.jpg, with patch swap.

Needs: psd, timm. On two CPU cores: about 15 seconds. Without PATH it draws a folder of its own;
without --weights default (which downloads) the network begins with fresh weights.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

import psd

TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]


def drawn(folder: Path) -> Path:
    """Class folders of drawn images, 120 of each of 3 classes."""
    data = psd.data.load("shapes", classes=3, per_class=120, size=64)
    for i, (image, label) in enumerate(data):
        (folder / data.classes[label]).mkdir(exist_ok=True)
        to_pil_image(image).save(folder / data.classes[label] / f"{i}.jpg")
    return folder


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("path", nargs="?", type=Path)
    options.add_argument("--weights", choices=["default"])
    options = options.parse_args()
    torch.manual_seed(0)
    folder = options.path or drawn(Path(tempfile.mkdtemp()))
    cut = v2.Compose([v2.RandomResizedCrop(64, scale=(0.7, 1)), *TO_TENSOR])
    whole = v2.Compose([v2.Resize(64), v2.CenterCrop(64), *TO_TENSOR])
    order = torch.randperm(len(ImageFolder(folder))).tolist()
    n = len(order) // 6  # held out
    test, train = (Subset(ImageFolder(folder, t), rows) for t, rows in ((whole, order[:n]), (cut, order[n:])))
    model = psd.models.build("timm:resnet10t", len(test.dataset.classes), weights=options.weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4 if options.weights else 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    pairs, loss = psd.ClassPairs(train), psd.SelfDistillationLoss()  # a data set of pairs of one class
    for epoch in range(6):
        pairs.set_epoch(epoch)
        for x_a, x_b, y, _ in DataLoader(pairs, batch_size=20, shuffle=True):
            logits = model(torch.cat(psd.patch_swap(x_a, x_b, patch_size=16, p=0.5)))
            loss(*logits.chunk(2), y).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    print(f"test accuracy {psd.evaluate(model, test).top1:.1f} %")


if __name__ == "__main__":
    main()
