"""Patch swap where torchvision's references put Mixup and CutMix: a transform of the whole batch, in `collate_fn`.

Needs: psd. On two CPU cores: about 11 seconds.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

import psd

AUGMENT = v2.Compose(
    [v2.RandomCrop(32, padding=2), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.27] * 3)]
)


class Swapped(nn.Module):
    """A batch (N, C, H, W), (N,) -> the swapped images of its pairs (2N, C, H, W) and both halves' labels (2N,)."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.swap = psd.PatchSwap(patch_size, p=1.0)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat(self.swap(x, x[psd.same_class_partner(y)])), torch.cat([y, y])


def main() -> None:
    torch.manual_seed(0)
    train = psd.data.load("shapes", classes=4, count=200)  # items are (uint8 image, label)
    test = psd.data.load("shapes", split="test", classes=4, count=400)
    swapped = Swapped(patch_size=16)

    def collate(items: list) -> tuple[Tensor, Tensor]:
        return swapped(*default_collate([(AUGMENT(x), y) for x, y in items]))

    sampler = psd.PairedBatchSampler(train, batch_size=20)
    loader = DataLoader(train, batch_sampler=sampler, collate_fn=collate)
    model = psd.models.build("resnet8", num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loss = psd.SelfDistillationLoss(temperature=4.0, weight=1.0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for x, y in loader:
            logits_a, logits_b = model(x).chunk(2)
            loss(logits_a, logits_b, y[: len(y) // 2]).total.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(f"test accuracy {psd.evaluate(model, test).top1:.1f} %")


if __name__ == "__main__":
    main()
