"""Training objectives: one file and one small class each.

A method is a dataclass whose fields are its configuration; its module's name is its name in recipes. It says what
it needs from the data and turns (model, batch, progress) into a `Step`. It knows nothing of devices, processes or
files, and the trainer knows no method by name: a new method is one new file here and one recipe.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from psd import swap  # not its names: `patch_swap` is a method's module here
from psd.checks import did_you_mean
from psd.losses import LossTerms

if TYPE_CHECKING:
    from psd.data.batches import Batch


class Progress(NamedTuple):
    """Where the run stands: `step` of `steps`, both counted from the run's beginning, and the epoch as a number
    that grows through it (`epoch` of `epochs`; the last one may be cut short by a budget of image passes).

    part, parts: the batch is this part of a step's batch that several processes, or several turns of one, share.
    """

    step: int
    steps: int
    epoch: int
    epochs: float
    part: int = 0
    parts: int = 1

    def own(self, draw: Tensor) -> Tensor:
        """This part's rows of a draw that was made for all parts, so that no draw depends on how a batch is cut."""
        return draw.chunk(self.parts)[self.part]


@dataclass
class Step:
    """What one training step gives back: the terms to descend, and logits (N, C) with their target ((N,) labels or
    (N, C) probabilities) for the running accuracy."""

    terms: LossTerms
    logits: Tensor
    target: Tensor


class Method:
    """Base of all methods.

    needs: of "partner" (another image of each anchor's class), "view" (a second augmentation), "previous" (the batch
        before, augmented anew), "raw" (the pairs before augmentation) and "other" (an image of another class): what the
        batch must hold. Sample indices are always there.
    passes_per_anchor: images that go through a training forward for one anchor, a teacher's forwards included.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # an instance may need more, by its options
    passes_per_anchor: ClassVar[int] = 1

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def setup(self, classes: int, samples: int) -> None:
        """Called once before training with the number of classes and of training images."""

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        """One forward pass (or several) and the loss of a batch. Random draws come from torch's global generators,
        which the trainer seeds from (seed, step) before each step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What must survive from step to step: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"method {self.name} keeps no state, but the checkpoint holds {sorted(state)}")


def part_mask(x: Tensor, patch_size: int | tuple[int, int], p: float, ratio: swap.Ratio, progress: Progress) -> Tensor:
    """The masks that a whole batch would have for the rows of one part of it: bool (N, H/m, W/m)."""
    height, width = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    grid = x.shape[2] // height, x.shape[3] // width
    return progress.own(swap.patch_mask(len(x) * progress.parts, grid, p=p, ratio=ratio, device=x.device))


def single_terms(cross_entropy: Tensor) -> LossTerms:
    """The terms of a method whose only loss is a cross-entropy."""
    zero = torch.zeros_like(cross_entropy)
    return LossTerms(cross_entropy, cross_entropy, zero, zero)


def names() -> list[str]:
    """The names of all methods, from the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[Method]:
    """The class of the method `name`; ValueError with the nearest name if there is none."""
    if name not in names():
        hint = did_you_mean(name, names()) or "."
        raise ValueError(f"method.name {name!r} is unknown{hint} Known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    )
    return found


def build(name: str, **options: Any) -> Method:
    """The method `name` with its options; ValueError names an unknown option and the nearest known one."""
    method = find(name)
    known = [field.name for field in fields(method)]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known) or 'none'}"
            raise ValueError(f"method.{key} is unknown for {name}{hint}")
    # YAML and JSON have no tuples
    return method(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
