"""One class for each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psd.calibration import fit_temperature
from psd.checks import Refused
from psd.tasks import Metric, Metrics

ECE_BINS = 15


class Classification:
    """Logits (N, C), target (N,) labels: accuracy, likelihood and calibration.

    top1, top5: percent (top5 is None below 6 classes). nll: mean cross-entropy in nats. ece: expected calibration
    error as a fraction, 15 equal-width bins on the softmax (Guo et al. 2017, section 3). overconfidence: mean of the
    largest probability minus accuracy, as a fraction with its sign. nll_scaled, ece_scaled, overconfidence_scaled: the
    same once more with the `temperature` that fits tune images (`psd.calibrate`).
    """

    name = "classification"
    learns = "label"
    metrics = (
        Metric("top1", "top-1", "%", "higher", 2),
        Metric("top5", "top-5", "%", "higher", 2),
        Metric("nll", "NLL", "nats", "lower", 3),
        Metric("ece", "ECE", "", "lower", 3),
        Metric("overconfidence", "overconfidence", "", "zero", 3),
        Metric("nll_scaled", "NLL, T fitted", "nats", "lower", 3),
        Metric("ece_scaled", "ECE, T fitted", "", "lower", 3),
        Metric("overconfidence_scaled", "overconfidence, T fitted", "", "zero", 3),
    )

    def logits(self, output: Any) -> Tensor:
        """A tensor is taken as it is; of what transformers' models give, its `logits`."""
        found = getattr(output, "logits", output)
        if not isinstance(found, Tensor) or found.ndim != 2:
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
            raise Refused(
                f"the network's output must be logits (N, C), got {what}; give psd.fit a function of it, logits=..."
            )
        return found

    def meter(self, classes: int) -> LogitsMeter:
        return LogitsMeter(classes)


class LogitsMeter:
    """Keeps logits and labels, as calibration needs all of them."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self._logits.append(logits.float().cpu())
        self._targets.append(targets.long().cpu())

    def merge(self, other: LogitsMeter) -> None:
        self._logits += other._logits
        self._targets += other._targets

    @property
    def logits(self) -> Tensor:
        """float32 (N, C)."""
        return torch.cat(self._logits)

    @property
    def targets(self) -> Tensor:
        """int64 (N,)."""
        return torch.cat(self._targets)

    def compute(self, tune: LogitsMeter | None = None) -> Metrics:
        logits, targets = self.logits, self.targets
        found = measure(logits, targets)
        if tune is not None:
            temperature = fit_temperature(tune.logits, tune.targets)
            scaled = measure(temperature(logits), targets)
            found["temperature"] = temperature.value
            found.update({f"{key}_scaled": scaled[key] for key in ("nll", "ece", "overconfidence")})
        return found


def measure(logits: Tensor, targets: Tensor) -> Metrics:
    """Figures of logits (N, C) against labels (N,); ValueError for a label that is none of the C classes."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    classes = logits.shape[1]
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise Refused(
            f"targets: logits of {classes} classes have no label {int(wrong[0])}; "
            "measure on the classes that the model was built for"
        )

    def accuracy(k: int) -> float:
        return 100 * float(multiclass_accuracy(logits, targets, classes, average="micro", top_k=k))

    probabilities = logits.softmax(dim=1)
    ece = multiclass_calibration_error(probabilities, targets, classes, n_bins=ECE_BINS, norm="l1")
    return Metrics(
        top1=accuracy(1),
        top5=accuracy(5) if classes > 5 else None,
        nll=float(F.cross_entropy(logits, targets)),
        ece=float(ece),
        overconfidence=float(probabilities.amax(dim=1).double().mean()) - accuracy(1) / 100,
        n_test=len(targets),
    )


TASK = Classification()
