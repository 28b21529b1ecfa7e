"""Temperature scaling: one number, fitted on images that were not trained on, that makes confidence fit accuracy.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from psd.checks import Refused

LIMITS = (0.01, 100.0)  # of the temperature


@dataclass(frozen=True)
class Temperature:
    """Divides logits by `value`: above 1 the network was too sure, below 1 not sure enough. The class it names stays.

    >>> Temperature(2.0)(torch.tensor([4.0, 0.0]))
    tensor([2., 0.])
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise Refused(f"value must be a finite number above 0, got {self.value!r}")

    def __call__(self, logits: Tensor) -> Tensor:
        return logits / self.value


def fit_temperature(logits: Tensor, targets: Tensor) -> Temperature:
    """The temperature in `LIMITS` of the least mean cross-entropy of logits (N, C) / T against labels (N,).

    The loss is convex in b = 1 / T, so its slope there, the mean over images of E_p[z] - z_y with p = softmax(b z), is
    0 at one b alone, which is found by halving an interval. The end of `LIMITS` is taken where the slope has no 0, as
    for logits that are right on every image.

    >>> temperature = fit_temperature(torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
    >>> round(temperature.value, 9)  # 2 / log 3
    1.820478453
    """
    z = logits.double()
    z_y = z.gather(1, torch.as_tensor(targets)[:, None]).squeeze(1)  # (N,)
    low, high = (math.log(1 / limit) for limit in reversed(LIMITS))  # of log b
    while high - low > 1e-12:
        middle = (low + high) / 2
        p = (z * math.exp(middle)).softmax(dim=1)
        slope = float(((p * z).sum(1) - z_y).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return Temperature(math.exp(-low))
