"""One training run: from a `Config` to a `Record`.

>>> import psd                                                                                  # doctest: +SKIP
>>> record = psd.train(psd.Config())                                                            # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psd import checkpoints, config, models, records
from psd.config import Config, DataConfig
from psd.data import ImageData, load
from psd.data.batches import Batches, normalised
from psd.evaluation import evaluate
from psd.methods import Progress, Step
from psd.records import Record
from psd.seeding import seed_for

LOOK_EVERY = 50  # steps between two looks at the loss; each look waits for the device
REMEDY = "Lower optimizer.lr, add optimizer.warmup, or set optimizer.clip_norm"  # of a run that diverged


class Diverged(RuntimeError):
    """The loss of a training step or of the test became NaN or infinite."""


def train(config: Config, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Record:
    """Train as `config` says; write weights, checkpoints and the record under `config.run.output`.

    Args:
        config: see `psd.Config`.
        on_epoch: called after each epoch with that epoch's entry of the record.

    Returns:
        the record, also written to `<output>/<name>.json`; the weights lie in `<output>/<name>/model.safetensors`.

    Raises:
        ValueError: bad settings or data. OSError: a place that cannot be written. Diverged: a loss that is not finite.
    """
    return _Run(config).train(on_epoch)


def load_model(path: str | Path) -> nn.Module:
    """The trained network of a run's folder or of its `model.safetensors`, in eval mode on the CPU.

    Raises:
        ValueError: naming the path where there is no such file, or it is not one of ours, or of another model.
    """
    from safetensors import safe_open

    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: neither a model.safetensors nor the folder of a finished run")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # safetensors raises its own kind
        raise ValueError(f"{file}: not readable as safetensors: {error}") from error
    if "model" not in metadata:
        raise ValueError(f"{file}: does not say which model it holds; give the folder of a finished run of psd.train")
    model = models.build(metadata["model"], int(metadata["classes"]))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{file}: its weights are not those of a {metadata['model']}: {error}") from error
    return model.eval()


def load_data(data: DataConfig) -> tuple[ImageData, ImageData]:
    """The images to train on and those to measure on, as a run's `data` section says."""

    def split(name: str, **subset: Any) -> ImageData:
        chosen = {key: value for key, value in subset.items() if value is not None}
        images = load(data.name, data.root, name, seed=data.seed, verify=data.verify, **chosen)
        if not isinstance(images, ImageData):
            raise ValueError(f"data.size: {data.name} is trained in memory; say to which side in pixels to resize")
        return images

    same = {"classes": data.classes, "size": data.size}
    measured = {"train": "test", "fit": "tune"}[data.split]
    return split(data.split, per_class=data.per_class, count=data.count, **same), split(measured, **same)


class _Run:
    """The state of one run: built, perhaps resumed, then trained to its end."""

    def __init__(self, config: Config) -> None:
        self.config, self.method = config, config.method
        output = Path(config.run.output)
        self.folder, self.record_file = output / config.name, output / f"{config.name}.json"
        self.checkpoints = self.folder / "checkpoints"

    def train(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> Record:
        finished = self._finished()
        if finished is not None:
            return finished
        self._set_up()
        self._resume()
        begin = time.perf_counter()
        with self._bar() as bar:
            for epoch in range(self.step // self.per_epoch, -(-self.steps // self.per_epoch)):
                entry = self._epoch(epoch, bar)
                last = self.step == self.steps
                every = self.config.run.evaluate_every
                if last or (every and (epoch + 1) % every == 0):
                    entry["test"] = self._measure(epoch)
                self.record.epochs.append(entry)
                self.record.seconds += time.perf_counter() - begin
                begin = time.perf_counter()
                every = self.config.run.checkpoint_every
                if every and (epoch + 1) % every == 0 and not last:
                    self._checkpoint()
                if on_epoch is not None:
                    on_epoch(entry)
        return self._finish()

    def _set_up(self) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        run = self.config.run
        train_data, self.test = load_data(self.config.data)
        # Accelerate keeps one state per process and refuses another precision in a later run.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=run.device == "cpu", mixed_precision="bf16" if self._bf16() else "no")
        if self.accelerator.num_processes > 1:
            raise ValueError("training in several processes is not supported yet; start a single one")
        device = self.accelerator.device
        if run.device is not None and device.type != run.device:
            raise ValueError(f"run.device {run.device!r} is not there; this machine offers {device.type!r}")
        data = self.config.data
        self.batches = Batches(
            train_data, data.batch_size, run.seed, self.method.needs, data.crop_padding, data.flip, device
        )
        self.per_epoch = self.batches.steps_per_epoch
        self.passes_per_step = data.batch_size * self.method.passes_per_anchor
        self.steps = self.config.budget.steps(self.per_epoch, self.passes_per_step)
        classes = len(train_data.classes)
        self.method.setup(classes, len(train_data))
        torch.manual_seed(seed_for(run.seed, "weights"))
        model = models.build(self.config.model.name, classes).to(memory_format=torch.channels_last)
        _check_fit(self.config.model.name, model, train_data)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=self.config.optimizer.lr,
            momentum=self.config.optimizer.momentum,
            nesterov=self.config.optimizer.nesterov,
            weight_decay=self.config.optimizer.weight_decay,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.step, self.seconds_training = 0, 0.0
        self.record = self._new_record(device)
        self.folder.mkdir(parents=True, exist_ok=True)  # where nothing can be written, stop now and not at the end

    def _bf16(self) -> bool:
        precision, device = self.config.run.precision, self.config.run.device
        on_gpu = device in (None, "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return precision == "bf16" or (precision == "auto" and on_gpu)

    def _new_record(self, device: torch.device) -> Record:
        settings = self.config.to_dict()
        settings["data"]["root"] = settings["run"]["output"] = None  # a machine's path is nobody's result
        settings["run"]["resume"] = "never"  # it may name a path too; and a run that was resumed is the same run
        return Record(
            name=self.config.name,
            data=self.config.data.label,
            model=self.config.model.name,
            method=self.method.name,
            seed=self.config.run.seed,
            budget=self.config.budget.label,
            config=settings,
            device=records.device_name(device),
            versions=records.versions(),
            revision=records.revision(),
        )

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        return tqdm(
            total=self.steps * self.passes_per_step,
            initial=self.step * self.passes_per_step,
            unit=" images",
            unit_scale=True,
            desc=self.config.name.rpartition("/")[2],
            disable=not self.config.run.progress,
            delay=1e-3,  # no bar before the first step, so that what that step refuses is one line
        )

    def _epoch(self, epoch: int, bar: Any) -> dict[str, Any]:
        """Train to the end of an epoch, or of the budget, and return its entry for the record."""
        begin, first = time.perf_counter(), self.step
        device = self.accelerator.device
        sums = torch.zeros(6, device=device)  # total, cross-entropy, distillation, feature, right, logits
        self.first_bad = torch.full((), self.steps, device=device)
        self.model.train()
        while self.step < min((epoch + 1) * self.per_epoch, self.steps):
            sums += self._step(epoch)
            bar.update(self.passes_per_step)
            if self.step % LOOK_EVERY == 0:
                self._show(bar, epoch, sums, first)
        self._show(bar, epoch, sums, first)
        self.seconds_training += time.perf_counter() - begin
        total, cross_entropy, distillation, feature = (sums[:4] / (self.step - first)).tolist()
        return {
            "epoch": epoch + 1,
            "steps": self.step - first,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": total,
            "cross_entropy": cross_entropy,
            "distillation": distillation,
            "feature": feature,
            "train_top1": 100 * float(sums[4] / sums[5]),
        }

    def _step(self, epoch: int) -> Tensor:
        """One optimiser step; the loss terms and accuracy counts it adds, still on the device."""
        run, settings = self.config.run, self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.step, self.steps)
        batch = self.batches[self.step]
        torch.manual_seed(seed_for(run.seed, "step", self.step))
        progress = Progress(self.step, self.steps, epoch, self.steps / self.per_epoch)
        result = self.method.step(self.model, batch, progress)
        self.accelerator.backward(result.terms.total)
        if settings.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        terms = torch.stack([term.detach() for term in result.terms])
        here = torch.full_like(self.first_bad, self.step)
        self.first_bad = torch.where(terms[0].isfinite() | (self.first_bad < here), self.first_bad, here)
        self.step += 1
        return torch.cat([terms, _hits(result)])

    def _show(self, bar: Any, epoch: int, sums: Tensor, first: int) -> None:
        """Read what the device has summed up, stop if a loss was not finite, and show the rest."""
        if int(self.first_bad) < self.steps:
            finite = [entry["loss"] for entry in self.record.epochs[-1:]]
            last = f"; the last epoch's mean loss was {finite[0]:.4g}" if finite else ""
            raise Diverged(
                f"the loss is NaN or infinite at step {int(self.first_bad)} (epoch {epoch + 1}){last}. {REMEDY}"
            )
        loss, top1 = float(sums[0]) / (self.step - first), 100 * float(sums[4] / sums[5])
        bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", top1=f"{top1:.1f}%")

    def _measure(self, epoch: int) -> dict[str, Any]:
        """The test's metrics; the last step may leave weights of which no training loss tells."""
        metrics = evaluate(self.model, self.test)
        if not math.isfinite(metrics.nll):
            raise Diverged(f"the loss of the test is NaN or infinite after epoch {epoch + 1}. {REMEDY}")
        return dataclasses.asdict(metrics)

    def _checkpoint(self) -> None:
        state = {
            "step": self.step,
            "seconds_training": self.seconds_training,
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "config": self.config.to_dict(),
            "record": dataclasses.asdict(self.record),
        }
        checkpoints.save(self.checkpoints, self.step, self.accelerator.unwrap_model(self.model), state)

    def _resume(self) -> None:
        resume = self.config.run.resume
        if resume == "never":
            checkpoints.remove(self.checkpoints)
            return
        path = Path(resume)
        if resume == "auto":
            found = checkpoints.every(self.checkpoints)
            if not found:
                return
            path = found[-1]
        weights, state = checkpoints.load(path)
        self._refuse_another_run(path, state["config"])
        self.accelerator.unwrap_model(self.model).load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        self.step, self.seconds_training = state["step"], state["seconds_training"]
        for key in ("epochs", "seconds"):
            setattr(self.record, key, state["record"][key])

    def _finished(self) -> Record | None:
        """The record of this run where it is already done and `resume` says to leave it.

        Beside checkpoints, which the end of a run removes, a record is of an earlier run that was begun anew.
        """
        unfinished = checkpoints.every(self.checkpoints) or not self.record_file.is_file()
        if self.config.run.resume != "auto" or unfinished:
            return None
        record = Record.read(self.record_file)
        self._refuse_another_run(self.record_file, record.config)
        return record

    def _refuse_another_run(self, path: Path, saved: dict[str, Any]) -> None:
        changed = config.differences(saved, self.config.to_dict())
        if changed:
            raise ValueError(
                f"run.resume: {path} belongs to another configuration: {'; '.join(changed)}. "
                "Give these values back, or start anew with --run.resume never"
            )

    def _finish(self) -> Record:
        record = self.record
        record.final = record.epochs[-1]["test"]
        record.image_passes = self.steps * self.passes_per_step
        record.images_per_second = record.image_passes / self.seconds_training
        metadata = {"model": record.model, "classes": str(len(self.test.classes)), "name": record.name}
        model = self.accelerator.unwrap_model(self.model)
        checkpoints.save_model(self.folder / "model.safetensors", model, metadata)
        record.write(self.record_file)
        checkpoints.remove(self.checkpoints)
        return record


@torch.no_grad()
def _check_fit(name: str, model: nn.Module, data: ImageData) -> None:
    """Refuse a network that cannot take images of this size, before anything is written."""
    try:
        model.eval()(normalised(data, slice(0, 1), "cpu"))
    except Exception as error:  # each network fails in its own way
        height, width = data.images.shape[2:]
        raise ValueError(
            f"model.name {name!r} does not take images of {height} x {width} pixels ({error}); "
            "choose another model or, where the data has it, another data.size"
        ) from error


def _hits(result: Step) -> Tensor:
    """Right predictions, and predictions in all; a soft target's class is its largest."""
    target = result.target.argmax(1) if result.target.ndim == 2 else result.target
    right = (result.logits.detach().argmax(1) == target).sum()
    return torch.stack([right, torch.full_like(right, len(target))]).float()
