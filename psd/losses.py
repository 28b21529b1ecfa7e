"""The loss: two predictions of one network, for the two images of a swapped pair, teach each other.

This file needs torch alone and can be lifted into another project as it stands.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Literal, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Direction = Literal["symmetric", "a_to_b", "b_to_a", "easy_to_hard", "hard_to_easy"]
CrossEntropy = Literal["both", "a", "b"]
FeatureDistance = Literal["cosine", "mse"]


class LossTerms(NamedTuple):
    """Scalars of one step: total = cross_entropy + w * distillation + v * feature.

    `distillation` holds the factor T^2 but not the weight w, `feature` not its weight v.
    """

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    feature: Tensor

    def backward(self) -> NoReturn:
        """TypeError: there are several terms, and it is `total` that is trained on."""
        raise TypeError("the loss has several terms; write loss(...).total.backward()")


class SelfDistillationLoss(nn.Module):
    """Cross-entropy on both images of a pair plus the divergence of their softened predictions:

        L = 1/2 [CE(z_a, y) + CE(z_b, y)] + w T^2 1/2 [KL(q_a || q_b) + KL(q_b || q_a)] + v D(h_a, h_b)

    with logits z, q = softmax(z / T), and penultimate features h. KL's first argument is the teacher; it is summed
    over classes and averaged over pairs, of dense logits (one prediction a pixel) over the positions of all pairs. D is
    taken after L2 normalisation and averaged over pairs.

    Args:
        temperature: T > 0. The factor T^2 keeps the gradient's size as T grows (Hinton et al. 2015, section 2.1).
        weight: w >= 0 of the divergence.
        detach: if True no gradient flows into the side that teaches.
        direction: "symmetric": the formula above; "a_to_b": a teaches b, T^2 KL(q_a || q_b); "b_to_a": the reverse;
            "easy_to_hard": the image of the pair that has the smaller cross-entropy teaches; "hard_to_easy": the other.
        cross_entropy: the images that learn from the label: "both" (mean of the two), "a" or "b".
        feature_weight: v >= 0; features must be given when it is positive.
        feature_distance: D = "cosine": 1 - cos(h_a, h_b), or "mse": ||h_a - h_b||^2 of the normalised features.
        ignore_index: label of the positions that count neither in the cross-entropy nor in the divergence.

    Raises:
        ValueError: naming the argument and its value.

    Source: Choi et al., arXiv 2505.14124, confirm the KL alignment of same-class predictions after a patch swap.
    Direction, detach, T, w, the feature term and the number of cross-entropy terms are our documented options. Their
    defaults: T 4 and w 1 as in KD and CS-KD; in our ablations no other value of any of these is above the default with
    an interval apart from zero, while w 0, w 4, "easy_to_hard" with detach, and mse with v 1 are below it. Smaller w
    (0.25, 0.5) was better calibrated there (results/shapes-fit, notebooks/06_ablations.ipynb).

    >>> terms = SelfDistillationLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 2]))
    >>> round(terms.cross_entropy.item(), 4), terms.distillation.item()  # log 3, and equal predictions
    (1.0986, 0.0)
    """

    def __init__(
        self,
        temperature: float = 4.0,
        weight: float = 1.0,
        detach: bool = False,
        direction: Direction = "symmetric",
        cross_entropy: CrossEntropy = "both",
        feature_weight: float = 0.0,
        feature_distance: FeatureDistance = "cosine",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        _check_number("temperature", temperature, positive=True)
        _check_number("weight", weight)
        _check_choice("detach", detach, (True, False))
        _check_number("feature_weight", feature_weight)
        _check_choice("direction", direction, get_args(Direction))
        _check_choice("cross_entropy", cross_entropy, get_args(CrossEntropy))
        _check_choice("feature_distance", feature_distance, get_args(FeatureDistance))
        _check_integer("ignore_index", ignore_index)
        self.temperature = temperature
        self.weight = weight
        self.detach = detach
        self.direction = direction
        self.cross_entropy = cross_entropy
        self.feature_weight = feature_weight
        self.feature_distance = feature_distance
        self.ignore_index = int(ignore_index)

    def forward(
        self,
        logits_a: Tensor,
        logits_b: Tensor,
        target: Tensor,
        features_a: Tensor | None = None,
        features_b: Tensor | None = None,
    ) -> LossTerms:
        """Logits (N, C) or dense (N, C, *spatial), for example (N, C, H, W).

        Target: labels (N, *spatial) of any integer dtype, 0 <= label < C or `ignore_index`, or probabilities of the
        logits' shape. Features (N, D). Where every label is `ignore_index`, cross-entropy and divergence are 0.
        bf16 and fp16 inputs are computed in float32, the others in their own precision.

        Raises:
            ValueError: shapes that differ, float or bool labels, labels out of range and rows that are no probabilities
                (looked at on the CPU only: on a GPU the look would make every step wait), features missing while
                `feature_weight` is positive.
        """
        _check_inputs(logits_a, logits_b, target, self.ignore_index)
        z_a, z_b = (_one_row_per_position(_at_least_float32(z)) for z in (logits_a, logits_b))  # (M, C), M positions
        if target.is_floating_point():
            y = _one_row_per_position(target.to(z_a.dtype))  # (M, C)
            cross_entropy, distillation = self._cross_entropy(z_a, z_b, y), self._distillation(z_a, z_b, y)
        else:
            y = target.long().flatten()  # (M,)
            ignored = (y == self.ignore_index)[:, None]  # (M, 1)
            # equal logits: there no divergence, and no gradient whatever the logits were
            z_a, z_b = z_a.masked_fill(ignored, 0), z_b.masked_fill(ignored, 0)
            counted = (~ignored).sum().to(z_a.dtype)
            # a mean over nothing is NaN
            cross_entropy = self._cross_entropy(z_a, z_b, y).where(counted > 0, 0)
            # a mean over M becomes one over those that count; exactly times 1 where all do
            distillation = self._distillation(z_a, z_b, y) / (counted.clamp(min=1) / counted.new_full((), len(y)))
        total = cross_entropy + self.weight * distillation
        feature = torch.zeros_like(total)
        if self.feature_weight > 0:
            feature = self._feature(features_a, features_b, len(logits_a))
            total = total + self.feature_weight * feature
        return LossTerms(total, cross_entropy, distillation, feature)

    def _cross_entropy(self, z_a: Tensor, z_b: Tensor, target: Tensor) -> Tensor:
        if self.cross_entropy == "a":
            return F.cross_entropy(z_a, target, ignore_index=self.ignore_index)
        if self.cross_entropy == "b":
            return F.cross_entropy(z_b, target, ignore_index=self.ignore_index)
        ce_a, ce_b = (F.cross_entropy(z, target, ignore_index=self.ignore_index) for z in (z_a, z_b))
        return (ce_a + ce_b) / 2

    def _distillation(self, z_a: Tensor, z_b: Tensor, target: Tensor) -> Tensor:
        log_q_a = F.log_softmax(z_a / self.temperature, dim=1)
        log_q_b = F.log_softmax(z_b / self.temperature, dim=1)
        if self.direction == "a_to_b":
            kl = self._kl(log_q_a, log_q_b)
        elif self.direction == "b_to_a":
            kl = self._kl(log_q_b, log_q_a)
        elif self.direction == "symmetric":
            kl = (self._kl(log_q_a, log_q_b) + self._kl(log_q_b, log_q_a)) / 2
        else:
            ce_a, ce_b = (
                F.cross_entropy(z, target, ignore_index=self.ignore_index, reduction="none") for z in (z_a, z_b)
            )
            a_teaches = ((ce_a <= ce_b) == (self.direction == "easy_to_hard"))[:, None]  # (M, 1)
            kl = self._kl(torch.where(a_teaches, log_q_a, log_q_b), torch.where(a_teaches, log_q_b, log_q_a))
        return self.temperature**2 * kl

    def _kl(self, log_teacher: Tensor, log_student: Tensor) -> Tensor:
        """KL(teacher || student): summed over classes, averaged over rows."""
        if self.detach:
            log_teacher = log_teacher.detach()
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)

    def _feature(self, features_a: Tensor | None, features_b: Tensor | None, n: int) -> Tensor:
        if features_a is None or features_b is None:
            raise ValueError(
                f"features_a and features_b are needed, because feature_weight is {self.feature_weight}; "
                "give the penultimate features (N, D) of both images, or set feature_weight=0"
            )
        if features_a.ndim != 2 or features_a.shape != features_b.shape or len(features_a) != n:
            raise ValueError(
                f"features_a and features_b must have one shape (N, D) with the logits' N = {n}, "
                f"got {tuple(features_a.shape)} and {tuple(features_b.shape)}"
            )
        h_a, h_b = _at_least_float32(features_a), _at_least_float32(features_b)
        if self.feature_distance == "cosine":
            return (1 - F.cosine_similarity(h_a, h_b, dim=1)).mean()
        return (F.normalize(h_a, dim=1) - F.normalize(h_b, dim=1)).square().sum(dim=1).mean()

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, weight={self.weight}, detach={self.detach}, "
            f"direction={self.direction!r}, cross_entropy={self.cross_entropy!r}, "
            f"feature_weight={self.feature_weight}, feature_distance={self.feature_distance!r}, "
            f"ignore_index={self.ignore_index}"
        )


def softened_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (N, C): summed over classes, averaged over N.

    >>> round(softened_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 2.0).item(), 4)
    0.4805
    """
    log_teacher, log_student = ((z / temperature).log_softmax(dim=1) for z in (teacher, student))
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def check_probabilities(target: Tensor) -> None:
    """ValueError for (N, C) or (N, C, *spatial) that are no probabilities of C classes; looked at on the CPU only,
    where no step waits for it."""
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        return
    if not (target >= 0).all() or not torch.allclose(target.sum(1), torch.ones((), dtype=target.dtype), atol=1e-2):
        raise ValueError("target holds rows that are no probabilities: each must be >= 0 and sum to 1")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _one_row_per_position(x: Tensor) -> Tensor:
    """(N, C, *spatial) -> (M, C), the M positions in the order of labels (N, *spatial).

    Not left to torch's own dense cross-entropy: that has no deterministic kernel on GPUs.
    """
    return x if x.ndim == 2 else x.movedim(1, -1).flatten(0, -2)


def _check_number(name: str, value: object, positive: bool = False) -> None:
    finite = isinstance(value, Real) and -math.inf < value < math.inf  # type: ignore[operator]
    number = finite and not isinstance(value, bool)
    if not number or value < 0 or (positive and value == 0):  # type: ignore[operator]
        raise ValueError(f"{name} must be a finite number {'> 0' if positive else '>= 0'}, got {value!r}")


def _check_integer(name: str, value: object) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_inputs(logits_a: Tensor, logits_b: Tensor, target: Tensor, ignore_index: int) -> None:
    for name, value in (("logits_a", logits_a), ("logits_b", logits_b)):
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} must be a tensor, got {type(value).__name__}; of a model's output give the logits alone, "
                'for example output.logits or output["out"]'
            )
    if not isinstance(target, Tensor):
        raise ValueError(f"target must be a tensor, got {type(target).__name__}; write torch.as_tensor(target)")
    if logits_a.ndim < 2 or logits_a.shape != logits_b.shape:
        raise ValueError(
            "logits_a and logits_b must have one shape (N, C) or (N, C, *spatial), "
            f"got {tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
        )
    n, classes, *spatial = logits_a.shape
    if 0 in logits_a.shape:
        raise ValueError(f"logits_a holds no pairs: its shape is {tuple(logits_a.shape)}")
    probabilities = target.is_floating_point()
    if target.dtype == torch.bool or (probabilities and tuple(target.shape) == (n, *spatial)):
        raise ValueError(f"target holds labels of {target.dtype}, which are no integers; write target.long()")
    expected = (n, classes, *spatial) if probabilities else (n, *spatial)
    if tuple(target.shape) != expected:
        raise ValueError(f"target must have shape {expected}, got {tuple(target.shape)} of {target.dtype}")
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        return
    if probabilities:
        check_probabilities(target)
        return
    labels = target.long()  # before it is compared: as uint8, -100 would be 156
    labels = labels[labels != ignore_index]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"target holds labels from {int(labels.min())} to {int(labels.max())}, the logits have {classes} classes; "
            f"positions to leave out hold ignore_index, which is {ignore_index}"
        )
