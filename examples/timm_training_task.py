"""Patch swap as a `timm.task.TrainingTask`, for timm's own training script and others that take one.

Needs: psd, and a timm that has timm.task (1.0.31 is tested). On two CPU cores: about 12 seconds.
"""

import timm
import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import psd


def tensors(split: str) -> TensorDataset:
    """Drawn images of 4 classes: 50 of each to train, 400 to test."""
    data = psd.data.load("shapes", split=split, classes=4, count=200 if split == "train" else 400)
    return TensorDataset((data.images / 255 - 0.5) / 0.27, data.targets)


class PatchSwapTask(TrainingTask):
    """(input, target) -> {"loss", "output", "cross_entropy", "distillation"}."""

    def __init__(self, model: nn.Module, patch_size: int, **options) -> None:
        super().__init__(verbose=False)
        self.trainable_module = model
        self.swap, self.loss = psd.PatchSwap(patch_size, p=1.0), psd.SelfDistillationLoss(**options)

    def forward(self, input: Tensor, target: Tensor) -> dict:
        x_a, x_b = self.swap(input, input[psd.same_class_partner(target)])
        logits_a, logits_b = self.trainable_module(torch.cat([x_a, x_b])).chunk(2)
        terms = self.loss(logits_a, logits_b, target)
        return {"loss": terms.total, "output": logits_a, **terms._asdict()}


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4)
    task = PatchSwapTask(model, patch_size=16, temperature=4.0, weight=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train = tensors("train")
    sampler = psd.PairedBatchSampler(train, batch_size=40)
    for epoch in range(20):
        task.train()
        sampler.set_epoch(epoch)
        for x, y in DataLoader(train, batch_sampler=sampler):
            task(x, y)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    x, y = tensors("test").tensors
    with torch.no_grad():
        print(f"test accuracy {100 * (model(x).argmax(1) == y).float().mean():.1f} %")


if __name__ == "__main__":
    main()
