"""What a run leaves on disk: its record, its weights and, until it is finished, its checkpoints."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor, nn

from psd import files
from psd.checks import Refused, check_inside
from psd.training import checkpoints, config
from psd.training.config import RunConfig
from psd.training.records import Record

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP)  # what some file systems of networks answer


# What a run goes on from.
STATE = ("step", "sums", "seconds_training", "optimizer", "schedule", "method", "epochs", "seconds", "settings")


class RunFolder:
    """`<output>/<name>.json`, and `<output>/<name>/` with model.safetensors, metrics.jsonl and checkpoints.

    One process alone writes there, from `take` to `close`: the operating system's lock on `.lock` ends with it, however
    it ends, and `.owner` says who it is. Both go with it, unless it is killed.

    A run is the same as another if no setting that shapes its result differs; its name alone does not tell.

    Args:
        run: with its output and what `resume` and `overwrite` say.
        name: of the record.
        settings: of the run, with the device and the precision that it has here.
    """

    def __init__(self, run: RunConfig, name: str, settings: dict[str, Any]) -> None:
        self.run, self.settings = run, settings
        check_inside(name, "the record's name")
        output = Path(run.output)
        self.path, self.record_file = output / name, output / f"{name}.json"
        self.checkpoints = self.path / "checkpoints"
        self.was_begun = False  # before this process took it
        self._first = True
        self._lock_file, self._owner = self.path / ".lock", self.path / ".owner"
        self._lock = FileLock(self._lock_file)

    def finished(self) -> Record | None:
        """The record of this very run, where `resume` "auto" leaves it as it is; None where there is something to do.

        Raises:
            ValueError: another run's record stands in this one's place, and `overwrite` does not give it away.
        """
        if not self.record_file.is_file():
            return None
        record = Record.read(self.record_file)
        changed = config.differences(record.config, self.settings)
        if changed and self.run.overwrite:
            return None
        if changed:
            raise Refused(
                f"{self.record_file} is the record of a run with other settings: {'; '.join(changed)}. Give this run "
                "a name of its own, as in --run.variant NAME, or have the record replaced: --run.overwrite true"
            )
        return record if self.run.resume == "auto" else None

    def take(self) -> None:
        """Keep other processes out; where nothing can be written, stop now and not at the end.

        Raises:
            ValueError: another process is at work on this run.
        """
        self.was_begun = self.path.is_dir()
        files.make_folder(self.path)
        try:
            self._lock.acquire(blocking=False)
            while not self._lock_file.exists():  # who had it has just taken it away
                self._lock.release()
                self._lock.acquire(blocking=False)
        except Timeout:
            raise Refused(
                f"{self.path} is taken by {self._who()}, which is at work on this run. Wait for its end, or end it and "
                "go on with --run.resume auto; a second run beside it needs --run.output FOLDER or --run.variant NAME"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._owner.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
        for file in (self.record_file, self.path / "model.safetensors", self.path / "metrics.jsonl"):
            for left in files.left_behind(file):
                left.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others in."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            with contextlib.suppress(PermissionError):  # Windows lets it go when it is released
                self._lock_file.unlink(missing_ok=True)
            self._lock.release()

    def _who(self) -> str:
        with contextlib.suppress(OSError):  # it may be about to write who it is, or about to end
            return self._owner.read_text(encoding="utf-8") or "another process"
        return "another process"

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What the run goes on from, weights and the rest, as `resume` says; None to begin anew.

        Raises:
            ValueError: a checkpoint of another run.
        """
        if self.run.resume == "never":
            return None
        path = Path(self.run.resume)
        if self.run.resume == "auto":
            found = checkpoints.every(self.checkpoints)
            if not found:
                return None
            path = found[-1]
        weights, state = checkpoints.load(path)
        missing = [key for key in STATE if not isinstance(state, dict) or key not in state]
        if missing:
            raise Refused(
                f"run.resume: {path} lacks {', '.join(missing)}, as if another version of psd had written it; go on "
                "with that one, or start anew with --run.resume never"
            )
        changed = config.differences(state["settings"], self.settings)
        if changed:
            raise Refused(
                f"run.resume: {path} belongs to another configuration: {'; '.join(changed)}. "
                "Give these values back, or start anew with --run.resume never"
            )
        self._first = path.parent.resolve() != self.checkpoints.resolve()
        return weights, state

    def save(self, step: int, model: nn.Module, state: dict[str, Any]) -> Path:
        """Write a checkpoint; the first one of a run that was begun anew takes the place of all that lie there."""
        left = checkpoints.every(self.checkpoints) if self._first else []
        path = checkpoints.save(self.checkpoints, step, model, {**state, "settings": self.settings})
        for other in left:
            if other != path:
                checkpoints.remove(other)
        self._first = False
        return path

    def finish(self, record: Record, model: nn.Module, metadata: dict[str, str]) -> None:
        """Write weights and record; what the run would have gone on from is no longer needed."""
        checkpoints.save_model(self.path / "model.safetensors", model, metadata)
        record.write(self.record_file)
        checkpoints.remove(self.checkpoints)
