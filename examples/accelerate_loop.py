"""Patch swap in a loop of Hugging Face Accelerate: the same lines on a CPU, a GPU or several.

Needs: psd (which needs accelerate). On two CPU cores: about 8 seconds.
On several devices: accelerate launch accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import psd


def tensors(split: str) -> TensorDataset:
    """Drawn images of 4 classes: 50 of each to train, 400 to test."""
    data = psd.data.load("shapes", split=split, classes=4, count=200 if split == "train" else 400)
    return TensorDataset((data.images / 255 - 0.5) / 0.27, data.targets)


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator()
    model = psd.models.build("resnet8", num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    train = tensors("train")
    sampler = psd.PairedBatchSampler(train, batch_size=20)
    loader = DataLoader(train, batch_sampler=sampler)
    test = DataLoader(tensors("test"), batch_size=100)
    model, optimizer, loader, test = accelerator.prepare(model, optimizer, loader, test)
    loss = psd.SelfDistillationLoss(temperature=4.0, weight=1.0)

    for epoch in range(20):
        model.train()
        sampler.set_epoch(epoch)
        for x, y in loader:
            x_a, x_b = psd.patch_swap(x, x[psd.same_class_partner(y)], patch_size=16)
            logits_a, logits_b = model(torch.cat([x_a, x_b])).chunk(2)
            accelerator.backward(loss(logits_a, logits_b, y).total)
            optimizer.step()
            optimizer.zero_grad()

    model.eval()
    right = []
    with torch.no_grad():
        for x, y in test:
            right.append(accelerator.gather_for_metrics(model(x).argmax(1) == y))
    accelerator.print(f"test accuracy {100 * torch.cat(right).float().mean().item():.1f} %")


if __name__ == "__main__":
    main()
