"""Which images a step's batch holds, and their decoding by worker processes, some batches ahead.

The main process decides which image is cut where, as a function of (seed, epoch, row of the epoch, role); a worker is
told an image and a seed, and remembers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psd.data.batches import Share
from psd.data.decoding import Item, is_end_of_worker, make_loader, shut_down, worker_error
from psd.seeding import generator_for, seed_for


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one role in a batch: positions in the data set, for consecutive rows of an epoch."""

    role: str
    epoch: int
    first: int  # row of the epoch
    index: Tensor  # (N,) int64


class Plan:
    """Which images a (step, turn) holds and how they are drawn: the loader's endless batch sampler.

    It is apart from the loaders so that what decodes does not refer back to them: one that is no longer used is freed
    at once, and its workers end.

    Args:
        keys: the images, as the decoder takes them: files, or numbers.
        needs: of "partner", "other", "view" and "previous".
        draws: "partners", and "others" where they are needed: epoch -> (M,) int64, one for each image.
    """

    def __init__(
        self,
        keys: Sequence[str | int],
        batch_size: int,
        seed: int,
        needs: frozenset[str],
        share: Share,
        draws: Mapping[str, Callable[[int], Tensor]],
    ) -> None:
        self.keys, self.batch_size, self.seed = keys, batch_size, seed
        self.needs, self.share, self._draws = needs, share, draws
        self.steps_per_epoch = len(keys) // batch_size
        self.start = (0, 0)  # where the next iteration begins
        # This epoch's, the one before and the one that is decoded ahead, for all three draws.
        self._draw: Callable[[str, int], Tensor] = lru_cache(maxsize=9)(self._draw_epoch)

    def __iter__(self) -> Iterator[list[Item]]:
        position = self.start
        while True:
            parts = self.parts(*position)
            yield [self.item(part, i, index) for part in parts for i, index in enumerate(part.index.tolist())]
            position = self.after(position)

    def after(self, position: tuple[int, int]) -> tuple[int, int]:
        """The (step, turn) that follows."""
        step, turn = position
        return (step, turn + 1) if turn + 1 < self.share.accumulate else (step + 1, 0)

    def parts(self, step: int, turn: int) -> list[Part]:
        """The images of every role, each part with the same number of rows."""
        anchors = self._anchors("anchor", step, turn)
        made = [anchors]
        if "partner" in self.needs:
            partners = self._draw("partners", anchors.epoch)[anchors.index]
            made.append(replace(anchors, role="partner", index=partners))
        if "other" in self.needs:
            others = self._draw("others", anchors.epoch)[anchors.index]
            made.append(replace(anchors, role="other", index=others))
        if "view" in self.needs:
            made.append(replace(anchors, role="view"))
        if "previous" in self.needs and step > 0:
            made.append(self._anchors("previous", step - 1, turn))
        return made

    def item(self, part: Part, i: int, index: int) -> Item:
        """The image `index` under the crop of the part's row i."""
        return Item(self.keys[index], seed_for(self.seed, f"crop {part.role}", part.epoch, part.first + i))

    def _anchors(self, role: str, step: int, turn: int) -> Part:
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self.share.rows(self.batch_size, turn)
        first = position * self.batch_size
        index = self._draw("order", epoch)[first + rows.start : first + rows.stop]
        return Part(role, epoch, first + rows.start, index)

    def _draw_epoch(self, what: str, epoch: int) -> Tensor:
        if what == "order":
            return torch.randperm(len(self.keys), generator=generator_for(self.seed, what, epoch))
        return self._draws[what](epoch)


class Ahead:
    """A plan's batches out of a decoder: in order they are decoded ahead, and any other one starts anew from there.

    The workers start with the first batch and persist until `close`.
    """

    def __init__(self, decoder: Dataset[Any], plan: Plan, workers: int, device: torch.device) -> None:
        self.decoder, self.plan, self.workers, self.device = decoder, plan, workers, device
        self._loader: DataLoader[Any] | None = None
        self._decoded: Iterator[Any] | None = None
        self._position: tuple[int, int] | None = None  # the (step, turn) that comes next out of `_decoded`

    def take(self, step: int, turn: int) -> Any:
        """What the decoder made of one (step, turn): the next in line, or the first of a new line."""
        try:
            if self._decoded is None or self._position != (step, turn):
                self.plan.start = (step, turn)
                if self._loader is None:
                    self._loader = make_loader(self.decoder, self.plan, self.workers, self.device, persistent=True)
                self._decoded = iter(self._loader)
            self._position = self.plan.after((step, turn))
            return next(self._decoded)
        except BaseException as error:
            self.close()  # after Ctrl-C too: what would come out next is not known
            if is_end_of_worker(error):
                raise worker_error(error, self.workers) from error
            raise

    def close(self) -> None:
        """End the workers; a batch asked for later starts them again."""
        shut_down(self._decoded)
        self._decoded, self._loader, self._position = None, None, None
