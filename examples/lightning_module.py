"""Patch swap in a LightningModule: `training_step` alone knows of it.

Needs: psd, lightning. On two CPU cores: about 11 seconds.
"""

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import psd


def tensors(split: str) -> TensorDataset:
    """Drawn images of 4 classes: 50 of each to train, 400 to test."""
    data = psd.data.load("shapes", split=split, classes=4, count=200 if split == "train" else 400)
    return TensorDataset((data.images / 255 - 0.5) / 0.27, data.targets)


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = psd.models.build("resnet8", num_classes=4)
        self.swap = psd.PatchSwap(patch_size=16, p=1.0)
        self.loss = psd.SelfDistillationLoss(temperature=4.0, weight=1.0)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch
        x_a, x_b = self.swap(x, x[psd.same_class_partner(y)])
        logits_a, logits_b = self.model(torch.cat([x_a, x_b])).chunk(2)
        terms = self.loss(logits_a, logits_b, y)
        self.log_dict({"cross-entropy": terms.cross_entropy, "distillation": terms.distillation}, prog_bar=True)
        return terms.total

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    lightning.seed_everything(0)
    train = tensors("train")
    loader = DataLoader(train, batch_sampler=psd.PairedBatchSampler(train, batch_size=20))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=20, accelerator="cpu", use_distributed_sampler=False, **quiet)
    classifier = Classifier()
    trainer.fit(classifier, loader)
    (found,) = trainer.test(classifier, DataLoader(tensors("test"), batch_size=100), verbose=False)
    print(f"test accuracy {100 * found['accuracy']:.1f} %")


if __name__ == "__main__":
    main()
