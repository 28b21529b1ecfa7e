"""What the processes of one run have to agree on, and the signal by which a batch system ends them."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the exit code of a command that SIGTERM has stopped and that can go on

T = TypeVar("T")
M = TypeVar("M", bound=Any)


class Processes:
    """The processes of a run, this one among them; with a single one every method is the identity.

    Args:
        accelerator: an `accelerate.Accelerator`, which knows how this process was launched.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self._launcher = os.getppid()
        atexit.unregister(_leave)
        atexit.register(_leave)

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether what has launched several processes has ended without ending them, as by SIGKILL.

        A process alone may well outlive who started it, as under nohup.
        """
        return self.world > 1 and os.getppid() != self._launcher

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, in every process; what it raises is raised in every process.

        Files are touched by one process alone, and processes on other machines need not see them.
        """
        if self.world == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        done: list[Any] = [None, None]
        if self.main:
            try:
                done = [work(), None]
            except Exception as error:
                done = [None, error]
        result, failure = broadcast_object_list(done)
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]

    def every(self, values: Tensor) -> Tensor:
        """(K,) numbers of each process, in all of them: (processes, K)."""
        gathered: Tensor = self.accelerator.gather(values[None])
        return gathered

    def rows(self, n: int) -> range:
        """This process's rows of n, one after another: every row is of one process."""
        size = -(-n // self.world)
        return range(min(self.rank * size, n), min((self.rank + 1) * size, n))

    def merged(self, meter: M) -> M:
        """What the meters of all processes have seen, in every process, in the order of their rows."""
        if self.world == 1:
            return meter
        from accelerate.utils import gather_object

        first, *others = gather_object([meter])
        for other in others:
            first.merge(other)
        return first  # type: ignore[no-any-return]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers: BatchNorm's statistics are of each process's own images."""
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """While this context is open, SIGTERM and Ctrl-C end this process without a word, if it is one of several.

    It is for the wait for the others, which is PyTorch's own and lets no handler of Python's run: a process whose
    partner never comes would heed no signal before PyTorch's time limit.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) < 2 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if callable(handler)}  # Python's, not ignored
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave() -> None:
    """Leave the other processes before the interpreter goes.

    A thread of Gloo that lets go of a tensor only then aborts the process (github.com/pytorch/pytorch/pull/179291). It
    needs Python's lock for it, which nobody else wants while this thread sleeps.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


class Termination:
    """While this context is open, SIGTERM sets `asked` instead of ending the process.

    Outside the main thread, where Python takes no signal handlers, it changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Termination:
        self._here = threading.current_thread() is threading.main_thread()
        if self._here:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
