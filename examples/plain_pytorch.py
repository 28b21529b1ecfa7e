"""Patch swap in a training loop of plain PyTorch.

Needs: psd. On two CPU cores: about 8 seconds. Marked below: the five lines that patch swap adds.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

import psd


def tensors(split: str) -> TensorDataset:
    """Drawn images of 4 classes: 50 of each to train, 400 to test."""
    data = psd.data.load("shapes", split=split, classes=4, count=200 if split == "train" else 400)
    return TensorDataset((data.images / 255 - 0.5) / 0.27, data.targets)


def accuracy(model: torch.nn.Module) -> float:
    x, y = tensors("test").tensors
    model.eval()
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    model = psd.models.build("resnet8", num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    train = tensors("train")
    sampler = psd.PairedBatchSampler(train, batch_size=20)  # patch swap: every image has a partner in its batch
    loss = psd.SelfDistillationLoss(temperature=4.0, weight=1.0)  # patch swap

    for epoch in range(20):
        model.train()
        sampler.set_epoch(epoch)
        for x, y in DataLoader(train, batch_sampler=sampler):
            x_a, x_b = psd.patch_swap(x, x[psd.same_class_partner(y)], patch_size=16)  # patch swap
            logits_a, logits_b = model(torch.cat([x_a, x_b])).chunk(2)  # patch swap
            total = loss(logits_a, logits_b, y).total  # patch swap
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {total.item():.3f}")
    print(f"test accuracy {accuracy(model):.1f} %")


if __name__ == "__main__":
    main()
