"""Things in a picture: a box and a class for each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from psd.checks import Refused
from psd.tasks import Metric, Metrics

Boxes = dict[str, Tensor]


class Detection:
    """Predictions: for each image boxes (n, 4) x1, y1, x2, y2 in pixels, scores (n,) and labels (n,); targets: boxes
    and labels, of 1 ... C-1.

    map: percent, COCO's average precision: the mean over classes and over ten thresholds of intersection over union,
    .50 to .95. map_50, map_75: at one threshold. ap: percent of each class by its number, None for background and for
    one that the test does not hold. Measured by torchmetrics on pycocotools.
    """

    name = "detection"
    learns = "boxes"
    metrics = (
        Metric("map", "mAP", "%", "higher", 2),
        Metric("map_50", "mAP at .50", "%", "higher", 2),
        Metric("map_75", "mAP at .75", "%", "higher", 2),
    )

    def logits(self, output: Any) -> Any:
        """The list of predictions that a detector gives in eval mode."""
        found = isinstance(output, Sequence) and all(
            isinstance(o, dict) and {"boxes", "scores"} <= o.keys() for o in output
        )
        if not found:
            raise Refused(
                "in eval mode the network must give a list of {'boxes', 'scores', 'labels'}, as torchvision's "
                f"detectors do, got {type(output).__name__}"
            )
        return output

    def meter(self, classes: int) -> BoxMeter:
        if find_spec("pycocotools") is None:
            raise Refused('the task detection needs pycocotools, which is missing: pip install ".[detection]"')
        return BoxMeter(classes)


class BoxMeter:
    """Keeps predictions and targets, as average precision ranks all of them."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.predictions: list[Boxes] = []
        self.targets: list[Boxes] = []

    def update(self, logits: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        def kept(given: Sequence[Boxes]) -> list[Boxes]:
            return [
                {k: v.detach().cpu() for k, v in one.items() if k in ("boxes", "scores", "labels")} for one in given
            ]

        self.predictions += kept(logits)
        self.targets += kept(targets)

    def merge(self, other: BoxMeter) -> None:
        self.predictions += other.predictions
        self.targets += other.targets

    def compute(self, tune: BoxMeter | None = None) -> Metrics:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(class_metrics=True)
        metric.warn_on_many_detections = False  # COCO counts the 100 surest of an image, and says nothing of the rest
        metric.update([{**p, "scores": p["scores"].float()} for p in self.predictions], self.targets)
        found = metric.compute()
        ap: list[float | None] = [None] * self.classes
        for label, value in zip(
            found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1).tolist(), strict=True
        ):
            ap[label] = None if value < 0 else round(100 * value, 4)
        shares = {key: max(0.0, float(found[key])) for key in ("map", "map_50", "map_75")}  # -1: nothing to find
        return Metrics(**{key: 100 * share for key, share in shares.items()}, ap=ap, n_test=len(self.targets))


TASK = Detection()
