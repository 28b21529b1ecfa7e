"""Batches of scenes: image and target are cut and mirrored together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from psd.checks import Refused
from psd.data.ahead import Ahead, Plan
from psd.data.batches import Share, check_batches
from psd.data.decoding import RATIO, Item, is_end_of_worker, make_loader, shut_down, worker_count, worker_error
from psd.data.items import ready
from psd.data.normalisation import Normalisation
from psd.data.scenes import IGNORED, Scenes, fitted, scene_partners, warn_of_lone
from psd.methods import Batch
from psd.seeding import generator_for

Decoded = tuple[Tensor, list[Any]]  # uint8 (N, 3, S, S), and the target of each


class _Cuts(Dataset[Any]):
    """What worker processes are given: numbers and seeds in, images and targets out."""

    def __init__(self, data: Scenes, learns: str) -> None:
        self.data, self.learns = data, learns

    def __getitems__(self, items: Sequence[Item]) -> Decoded:
        cut = [self.cut(int(number), seed) for number, seed in items]
        return torch.stack([image.as_subclass(Tensor) for image, _ in cut]), [target for _, target in cut]

    def cut(self, number: int, seed: int) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def read(self, number: int) -> tuple[Tensor, dict[str, Any]]:
        """A picture with what is learnt of its target alone: no other part is moved in vain, or dropped with a box."""
        image, target = self.data[number]
        keys = ("boxes", "labels") if self.learns == "boxes" else (self.learns,)
        return image, {key: target[key] for key in keys}

    def plain(self, target: dict[str, Any]) -> Any:
        """A mask (H, W), or a dict of tensors."""
        bare = {key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value for key, value in target.items()}
        return bare if len(bare) > 1 else bare[self.learns]


class Random(_Cuts):
    """A random part of each picture, resized to a square, and mirrored or not."""

    def __init__(self, data: Scenes, learns: str, size: int, scale: float, flip: bool) -> None:
        super().__init__(data, learns)
        self.size, self.scale, self.flip = size, scale, flip

    def cut(self, number: int, seed: int) -> tuple[Tensor, Any]:
        from torchvision.transforms import v2

        moves: list[Any] = [v2.RandomResizedCrop(self.size, (self.scale, 1.0), RATIO, antialias=True)]
        if self.flip:
            moves.append(v2.RandomHorizontalFlip())
        with torch.random.fork_rng(devices=[]):  # as of TrainingCrops
            torch.default_generator.manual_seed(seed)
            image, target = v2.Compose(moves)(*self.read(number))
            if "boxes" in target:
                target = v2.SanitizeBoundingBoxes(min_size=2)(target)
        return image, self.plain(target)


class Whole(_Cuts):
    """Whole pictures, each fitted into a square."""

    def __init__(self, data: Scenes, learns: str, size: int) -> None:
        super().__init__(data, learns)
        self.size = size

    def cut(self, number: int, seed: int) -> tuple[Tensor, Any]:
        image, target = fitted(*self.read(number), self.size)
        return image, self.plain(target)


def collated(targets: Sequence[Any], device: torch.device | str) -> Any:
    """Masks as one tensor int64 (N, H, W), with -100 where a pixel does not count; of anything else the list."""
    if isinstance(targets[0], Tensor):
        y = torch.stack(list(targets)).to(device, non_blocking=True).long()
        return y.masked_fill_(y == IGNORED, -100)
    return [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in t.items()} for t in targets
    ]


class SceneBatches:
    """Training batches of scenes: the same interface as `Batches`, each a function of (seed, step, share) alone.

    Every image of a batch is a random part of a picture (torchvision's RandomResizedCrop with ratio 3/4 to 4/3), and
    mirrored or not; its mask or boxes move with it. A box of which less than 2 pixels a side are left is dropped.

    Args:
        data: the training pictures.
        learns: what of their targets: "mask", "boxes".
        batch_size, seed, device, workers, share: as of `Stream`; pictures in memory are cut in this process
            unless `workers` says otherwise.
        needs: which of "partner" (another picture that shares a class: `scene_partners`), "view", "previous".
        crop_size: side of the images in pixels; the pictures' own where they are in memory.
        crop_scale: the least share of a picture's area that a part has.
        flip: the data's own if None.

    Raises:
        ValueError: as of `Batches`.
    """

    def __init__(
        self,
        data: Scenes,
        learns: str,
        batch_size: int,
        seed: int,
        needs: Collection[str] = (),
        *,
        crop_size: int = 224,
        crop_scale: float = 0.08,
        flip: bool | None = None,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        share: Share = Share(),  # noqa: B008 (it is immutable)
        normalisation: Normalisation | None = None,
    ) -> None:
        check_batches(len(data), batch_size, needs, share)
        if not set(needs) <= {"partner", "view", "previous"}:
            raise Refused(f"scenes have partners, views and previous batches, not {', '.join(sorted(needs))}")
        if not 0 < crop_scale <= 1:
            raise Refused(f"data.crop_scale must lie above 0 and at most at 1, got {crop_scale}")
        side = data.size or crop_size
        self.device = torch.device(device)
        self.shape: tuple[int, ...] = (3, side, side)
        self.workers = worker_count(workers if data.portable else workers or 0)
        present = data.present
        if "partner" in needs:
            warn_of_lone(present)
        draws = {"partners": lambda epoch: scene_partners(present, generator_for(seed, "partners", epoch))}
        plan = Plan(range(len(data)), batch_size, seed, frozenset(needs), share, draws)
        self.steps_per_epoch = plan.steps_per_epoch
        cuts = Random(data, learns, self.shape[1], crop_scale, data.flip if flip is None else flip)
        self._plan, self._ahead = plan, Ahead(cuts, plan, self.workers, self.device)
        self._normalise = normalisation or Normalisation(data.mean, data.std)
        self.statistics = self._normalise.statistics

    def get(self, step: int, turn: int = 0) -> Batch:
        """One of the parts of a step's batch that this process has."""
        parts = self._plan.parts(step, turn)
        images, targets = self._ahead.take(step, turn)
        x = ready(images, self._normalise, self.device).chunk(len(parts))
        n = len(parts[0].index)
        made = {
            part.role: Batch(x[k], collated(targets[k * n : (k + 1) * n], self.device), part.index.to(self.device))
            for k, part in enumerate(parts)
        }
        batch = made["anchor"]
        if "partner" in made:
            batch.partner, batch.partner_y = made["partner"].x, made["partner"].y
        if "view" in made:
            batch.view, batch.view_y = made["view"].x, made["view"].y
        batch.previous = made.get("previous")
        return batch

    def close(self) -> None:
        """End the workers; a batch asked for later starts them again."""
        self._ahead.close()


class MeasuredScenes:
    """Scenes as an evaluation reads them: whole, each fitted into a square.

    Attributes:
        classes: the classes' names. shape: (C, H, W) of an image.
    """

    def __init__(
        self,
        data: Scenes,
        learns: str,
        crop_size: int = 224,
        workers: int | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        side = data.size or crop_size
        self.classes, self.shape = data.classes, (3, side, side)
        self._count, self._workers = len(data), worker_count(workers if data.portable else workers or 0)
        self._cuts = Whole(data, learns, self.shape[1])
        self._normalise = normalisation or Normalisation(data.mean, data.std)

    def __len__(self) -> int:
        return self._count

    def batches(
        self, indices: Sequence[int], batch_size: int, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Any]]:
        """The images at `indices`, in that order: float32 (N, 3, S, S) on `device`, channels_last; their targets."""
        if batch_size < 1:
            raise Refused(f"batch_size must be at least 1, got {batch_size!r}")
        cut = [[Item(i, 0) for i in indices[k : k + batch_size]] for k in range(0, len(indices), batch_size)]
        loader = make_loader(self._cuts, cut, min(self._workers, len(cut)), torch.device(device), persistent=False)
        read = None
        try:
            read = iter(loader)
            for images, targets in read:
                yield ready(images, self._normalise, device), collated(targets, device)
        except Exception as error:
            if self._workers and is_end_of_worker(error):
                raise worker_error(error, self._workers) from error
            raise
        finally:
            shut_down(read)
