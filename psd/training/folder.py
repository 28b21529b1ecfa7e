"""What a run leaves on disk: its record, its weights and, until it is finished, its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from psd.checks import Refused
from psd.training import checkpoints, config
from psd.training.config import RunConfig
from psd.training.records import Record


class RunFolder:
    """`<output>/<name>.json`, and `<output>/<name>/` with model.safetensors, metrics.jsonl and checkpoints.

    A run is the same as another if no setting that shapes its result differs; its name alone does not tell.

    Args:
        run: with its output and what `resume` and `overwrite` say.
        name: of the record.
        settings: of the run, with the device and the precision that it has here.
    """

    def __init__(self, run: RunConfig, name: str, settings: dict[str, Any]) -> None:
        self.run, self.settings = run, settings
        output = Path(run.output)
        self.path, self.record_file = output / name, output / f"{name}.json"
        self.checkpoints = self.path / "checkpoints"
        self._first = True

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

    def prepare(self) -> None:
        """Where nothing can be written, stop now and not at the end."""
        self.path.mkdir(parents=True, exist_ok=True)

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
