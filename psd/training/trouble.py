"""What libraries raise where a machine fails a run, in a line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from psd.data.decoding import WorkerEnded

if TYPE_CHECKING:
    from psd.training.loop import Loop

# torch has an error of its own for GPUs alone; of other memory, and of CUDA's libraries, its words tell
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
NO_ANSWER = ("gloo", "NCCL", "Connection closed by peer")  # of torch's errors without a kind of their own


class OutOfMemory(RuntimeError):
    """A step or a measurement needs more memory than there is."""


class RankEnded(RuntimeError):
    """Another process of the run has ended, and this one cannot go on without it."""


@contextmanager
def memory_in_words(loop: Loop) -> Iterator[None]:
    """Make `OutOfMemory` of what libraries raise where memory is used up; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        plan = loop.plan
        raise OutOfMemory(
            f"out of memory at step {loop.step + 1} of {loop.steps} on {loop.place.name}: lower data.batch_size "
            f"({plan.batch_size} now; in psd.fit batch_size), or forward each batch in more parts: run.accumulate "
            f"{2 * plan.run.accumulate} ({_brief(error)})"
        ) from error


@contextmanager
def ranks_in_words() -> Iterator[None]:
    """Make `RankEnded` of what torch raises where another process of the run is gone; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        by_name = "Dist" in type(error).__name__  # torch.distributed's own, where torch was built with it
        if not by_name and not any(words in str(error) for words in NO_ANSWER):
            raise
        raise RankEnded(f"another process of this run has ended, or does not answer ({_brief(error)})") from error


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, WorkerEnded):  # whose own words speak of memory
        return False
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in NO_MEMORY)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
