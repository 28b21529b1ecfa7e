"""Patch swap in Hugging Face's Trainer, with a network of timm: `compute_loss` alone knows of it.

Needs: psd, transformers, timm. On two CPU cores: about 13 seconds.
"""

import tempfile

import numpy as np
import timm
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import psd


def items(split: str) -> list[dict]:
    """Drawn images of 4 classes: 50 of each to train, 400 to test."""
    data = psd.data.load("shapes", split=split, classes=4, count=200 if split == "train" else 400)
    return [{"pixel_values": (x / 255 - 0.5) / 0.27, "labels": int(y)} for x, y in data]


class Classifier(nn.Module):
    """A network of timm with the inputs and outputs that Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("resnet10t", num_classes=4)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict:
        logits = self.network(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class PatchSwapTrainer(Trainer):
    loss = psd.SelfDistillationLoss(temperature=4.0, weight=1.0)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if return_outputs:  # evaluation
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        x, y = inputs["pixel_values"], inputs["labels"]
        x_a, x_b = psd.patch_swap(x, x[psd.same_class_partner(y)], patch_size=16)
        logits_a, logits_b = model(torch.cat([x_a, x_b]), torch.cat([y, y]))["logits"].chunk(2)
        return self.loss(logits_a, logits_b, y).total


def main() -> None:
    options = {"num_train_epochs": 20, "per_device_train_batch_size": 40, "learning_rate": 2e-3, "report_to": "none"}
    arguments = TrainingArguments(tempfile.mkdtemp(), save_strategy="no", use_cpu=True, seed=0, **options)
    trainer = PatchSwapTrainer(Classifier(), arguments, train_dataset=items("train"))
    trainer.train()
    found = trainer.predict(items("test"))
    print(f"test accuracy {100 * np.mean(found.predictions.argmax(1) == found.label_ids):.1f} %")


if __name__ == "__main__":
    main()
