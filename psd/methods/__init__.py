"""Training objectives: one file and one small class each.

A method is a dataclass whose fields are its configuration; its module's name is its name in recipes. It says what
it needs from the data and turns (model, batch, progress) into a `Step`. It knows nothing of devices, processes or
files, nor of how a batch is cut into parts, and the trainer knows no method by name: a new method is one new file
here, or one class in a module of your own, given to `psd.fit` as it is or made known by `register`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from psd import swap  # not its names: `patch_swap` is a method's module here
from psd.checks import Refused, did_you_mean, plain, refusing, taken
from psd.losses import LossTerms

NEEDS = ("partner", "view", "previous", "raw", "other")


@dataclass
class RawPair:
    """Anchors and partners before augmentation, uint8 (N, C, H, W), and the function that makes `Batch.x` and
    `Batch.partner` of them, each by its own crop and flip: so a method can do something to the images first."""

    a: Tensor
    b: Tensor
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """One step's images, augmented and normalised: float32 (N, C, H, W), and what is to be learnt of them: labels (N,),
    or what the task learns of scenes: masks (N, H, W), or a list of boxes and their labels.

    `partner` holds another image of each anchor's class, `other` an image of another class with its label `other_y`,
    `view` a second augmentation of the anchors, `previous` the anchors of the step before under a new augmentation
    (None in step 0), `raw` the pairs before augmentation. They are None unless the method needs them. A scene's partner
    and view are cut by themselves, and have targets of their own: `partner_y`, `view_y`.
    """

    x: Tensor
    y: Any  # (N,) int64; masks (N, H, W) int64, -100 where a pixel does not count
    index: Tensor  # (N,) int64: position of each anchor in the training set
    partner: Tensor | None = None
    other: Tensor | None = None
    other_y: Tensor | None = None
    view: Tensor | None = None
    previous: Batch | None = None
    raw: RawPair | None = None
    partner_y: Any = None
    view_y: Any = None


@dataclass(frozen=True)
class Progress:
    """Where the run stands: `step` of `steps`, both counted from the run's beginning, and the epoch as a number
    that grows through it (`epoch` of `epochs`; the last one may be cut short by a budget of image passes)."""

    step: int
    steps: int
    epoch: int
    epochs: float
    part: int = 0  # of a step's batch, that several processes, or several turns of one, may share
    parts: int = 1
    generator: torch.Generator | None = None  # the same in all parts; torch's global one if None

    def draw(self, n: int, make: Callable[[int, torch.Generator | None], Tensor]) -> Tensor:
        """The draw of this batch's n images, the same however the step's batch is cut into parts.

        make: (m, generator) -> a draw for m images, in dimension 0.
        """
        return make(n * self.parts, self.generator).chunk(self.parts)[self.part]


class Setup(NamedTuple):
    """What a method may want to know before training: the number of classes and of training images, and how a
    trained network is loaded (a folder or file -> the network in eval mode)."""

    classes: int
    samples: int
    load_model: Callable[[str], nn.Module]


@dataclass
class Step:
    """What one training step gives back: the terms to descend, and logits (N, C, *spatial) with their target (labels
    (N, *spatial), below 0 where they do not count, or probabilities (N, C)) for the running accuracy; None of both
    where there is none."""

    terms: LossTerms
    logits: Tensor | None
    target: Tensor | None


class Method:
    """Base of all methods.

    Attributes:
        needs: of "partner" (another image of each anchor's class), "view" (a second augmentation), "previous" (the
            batch before, augmented anew), "raw" (the pairs before augmentation) and "other" (an image of another
            class): what the batch must hold. Sample indices are always there.
        passes_per_anchor: images that go through a training forward for one anchor, a teacher's forwards included.
        learns: the targets that its loss can take: of "label" (one class an image), "mask" (a class a pixel) and
            whatever else a task's `learns` may be.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # an instance may need more, by its options
    passes_per_anchor: ClassVar[int] = 1
    learns: ClassVar[frozenset[str]] = frozenset({"label"})

    @property
    def name(self) -> str:
        return name_of(type(self))

    def setup(self, setup: Setup) -> None:
        """Called once before training."""

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        """One forward pass (or several) and the loss of a batch; `model(x)` gives logits. What is drawn for each image
        goes through `progress.draw`; other draws come from torch's global generators, which the trainer seeds from
        (seed, step, part) before each step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What must survive from step to step: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise Refused(f"method {self.name} keeps no state, but the checkpoint holds {sorted(state)}")


def single_terms(cross_entropy: Tensor) -> LossTerms:
    """The terms of a method whose only loss is a cross-entropy."""
    zero = torch.zeros_like(cross_entropy)
    return LossTerms(cross_entropy, cross_entropy, zero, zero)


def part_mask(x: Tensor, patch_size: int | tuple[int, int], p: float, ratio: swap.Ratio, progress: Progress) -> Tensor:
    """The masks of a batch x (N, C, H, W): bool (N, H/m, W/m)."""
    height, width = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    if x.shape[2] % height or x.shape[3] % width:
        raise Refused(
            f"method.patch_size {patch_size} does not divide the images of {x.shape[2]} x {x.shape[3]} pixels; "
            "choose a divisor of both sides"
        )
    grid = x.shape[2] // height, x.shape[3] // width
    return progress.draw(len(x), lambda n, g: swap.patch_mask(n, grid, p=p, ratio=ratio, generator=g, device=x.device))


_REGISTERED: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method of your own known by its name, in recipes and on the command line; usable as a decorator.

    Its name is that of its class in small letters: `MyMethod` is "my_method".

    Raises:
        ValueError: it is no dataclass derived from `Method`, or its name is taken.
    """
    if not (isinstance(method, type) and issubclass(method, Method) and is_dataclass(method)):
        raise Refused(f"method must be a dataclass derived from psd.methods.Method, got {method!r}")
    name = name_of(method)
    if name in names() and taken(_REGISTERED, name, method):
        raise Refused(f"method.name {name!r} is taken; known: {', '.join(names())}")
    _REGISTERED[name] = method
    return method


def name_of(method: type[Method]) -> str:
    """A method's name in records: its module's in this package, the class's own in small letters elsewhere.

    >>> from psd.methods.cutmix import CutMix
    >>> class MyLoss(Method): ...
    >>> name_of(CutMix), name_of(MyLoss)
    ('cutmix', 'my_loss')
    """
    package, _, module = method.__module__.rpartition(".")
    if package == __name__:
        return module
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", method.__name__).lower()


def names() -> list[str]:
    """The names of all methods: the files of this folder, and what is registered."""
    return sorted({*(module.name for module in pkgutil.iter_modules(__path__)), *_REGISTERED})


def learning(target: str) -> list[str]:
    """The names of the methods that can learn a task's targets.

    >>> "cross_entropy" in learning("label")
    True
    """
    return [name for name in names() if target in find(name).learns]


def find(name: str) -> type[Method]:
    """The class of the method `name`; ValueError with the nearest name if there is none."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in names():
        hint = did_you_mean(name, names()) or "."
        raise Refused(f"method.name {name!r} is unknown{hint} Known: {', '.join(names())}")
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
            raise Refused(f"method.{key} is unknown for {name}{hint}")
    with refusing("method."):
        return method(**{key: _setting(value) for key, value in options.items()})


def _setting(value: Any) -> Any:
    """Lists as tuples, which YAML and JSON do not have, of Python's numbers."""
    value = plain(value)
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value
