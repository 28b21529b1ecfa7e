"""One training run: from a `Config` to a `Record`.

>>> import psd                                                                                  # doctest: +SKIP
>>> record = psd.train(psd.Config())                                                            # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from psd import models
from psd.data import TUNE_APART, ImageData, load
from psd.data.batches import Batches, Share
from psd.data.stream import CentreCrops, Stream
from psd.methods import Progress, Step
from psd.seeding import seed_for
from psd.training import checkpoints, config, records
from psd.training.calibration import fit_temperature
from psd.training.config import Config, DataConfig
from psd.training.evaluation import measure, predict
from psd.training.logs import MetricsLog
from psd.training.processes import Processes, Termination
from psd.training.records import Record

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

LOOK_EVERY = 50  # steps between two looks at the loss; each look waits for the device
LOOK_SECONDS = 5  # between two looks of several processes, where 50 steps would take longer
COMPILE_FROM = 1000  # steps of a run for which compiling, a minute or so, is worth it
REMEDY = "Lower optimizer.lr, add optimizer.warmup, or set optimizer.clip_norm"  # of a run that diverged


class Diverged(RuntimeError):
    """The loss of a training step or of the test became NaN or infinite."""


class Interrupted(RuntimeError):
    """SIGTERM came. A checkpoint is written, and with `run.resume` "auto" the run goes on from it."""


def train(config: Config, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Record:
    """Train as `config` says; write weights, checkpoints and the record under `config.run.output`.

    Args:
        config: see `psd.Config`.
        on_epoch: called after each epoch with that epoch's entry of the record.

    Returns:
        the record, also written to `<output>/<name>.json`; the weights lie in `<output>/<name>/model.safetensors`.

    Raises:
        ValueError: bad settings or data. OSError: a place that cannot be written. Diverged: a loss that is not finite.
        Interrupted: SIGTERM came, and a checkpoint was written.
    """
    return Run(config).train(on_epoch)


def load_data(data: DataConfig) -> tuple[ImageData | ImageFolder, ImageData | CentreCrops]:
    """The images to train on and those to measure on, as a run's `data` section says: in memory, or as files."""

    def split(name: str, **subset: Any) -> ImageData | ImageFolder:
        chosen = {key: value for key, value in subset.items() if value is not None}
        return load(data.name, data.root, name, seed=data.seed, verify=data.verify, **chosen)

    same = {"classes": data.classes, "size": data.size}
    measured = split({"train": "test", "fit": "tune"}[data.split], **same)
    if not isinstance(measured, ImageData):
        measured = CentreCrops(measured, data.crop_size, data.workers)
    return split(data.split, per_class=data.per_class, count=data.count, **same), measured


def load_tune(data: DataConfig) -> ImageData | None:
    """The tune images of a run that neither trains on them nor is measured on them; None where there are none."""
    if data.split != "train" or data.name not in TUNE_APART:
        return None
    size = {} if data.size is None else {"size": data.size}  # which not every data set takes
    tune = load(data.name, data.root, "tune", classes=data.classes, seed=data.seed, verify=data.verify, **size)
    assert isinstance(tune, ImageData)  # all of TUNE_APART are
    return tune


def finished(config: Config) -> Record | None:
    """The record of a run that is already done and that `run.resume` "auto" leaves as it is; None where it is to do.

    Beside checkpoints, which the end of a run removes, a record is of an earlier run that was begun anew.

    Raises:
        ValueError: the record is of a run with other settings.
    """
    _, file, kept = _places(config)
    if config.run.resume != "auto" or checkpoints.every(kept) or not file.is_file():
        return None
    record = Record.read(file)
    _refuse_another_run(file, record.config, config)
    return record


def _places(config: Config) -> tuple[Path, Path, Path]:
    """A run's folder, its record and the folder of its checkpoints."""
    output = Path(config.run.output)
    return output / config.name, output / f"{config.name}.json", output / config.name / "checkpoints"


def _refuse_another_run(path: Path, saved: dict[str, Any], asked: Config) -> None:
    changed = config.differences(saved, asked.to_dict())
    if changed:
        raise ValueError(
            f"run.resume: {path} belongs to another configuration: {'; '.join(changed)}. "
            "Give these values back, or start anew with --run.resume never"
        )


class Run:
    """The state of one run: built, perhaps resumed, then trained to its end. Every process of a run has one."""

    def __init__(self, config: Config) -> None:
        self.config, self.method = config, config.method
        self.folder, self.record_file, self.checkpoints = _places(config)

    def train(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> Record:
        self.start()
        done = self.processes.on_main(lambda: finished(self.config))
        if done is not None:
            return done
        with Termination() as self.termination:
            self.set_up()
            self._prepare_folder()
            self._resume()
            self._open_log()
            self.since = time.perf_counter()
            records.forget_peak_memory(self.device)
            with self._bar() as bar, contextlib.closing(self.batches):
                while self.step < self.steps:
                    self._whole_epoch(bar, on_epoch)
        return self._finish()

    def start(self) -> None:
        """Find the device and the other processes."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        run = self.config.run
        # Accelerate keeps one state per process and refuses another precision in a later run.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=run.device == "cpu",
            mixed_precision="bf16" if self._bf16() else "no",
            log_with="tensorboard" if run.tensorboard else None,
            project_dir=self.folder,
        )
        self.processes = Processes(self.accelerator)
        self.device = self.accelerator.device
        if run.device is not None and self.device.type != run.device:
            raise ValueError(f"run.device {run.device!r} is not there; this machine offers {self.device.type!r}")
        if run.sync_batchnorm and self.device.type != "cuda":
            raise ValueError("run.sync_batchnorm needs GPUs: PyTorch's SyncBatchNorm has no other implementation")

    def set_up(self) -> None:
        """Load the data, build the network and its optimiser."""
        run, data, optimizer = self.config.run, self.config.data, self.config.optimizer
        train_data, self.test = load_data(data)
        self.tune = load_tune(data)
        self.share = Share(self.processes.rank, self.processes.world, run.accumulate)
        self.batches = _batches(train_data, data, run.seed, self.method.needs, self.device, self.share)
        self.per_epoch = self.batches.steps_per_epoch
        self.passes_per_step = data.batch_size * self.method.passes_per_anchor
        self.steps = self.config.budget.steps(self.per_epoch, self.passes_per_step)
        classes = len(train_data.classes)
        self.method.setup(classes, len(train_data))
        if self.share.parts > 1 and self.method.state_dict():
            raise ValueError(
                f"method {self.method.name} keeps a state from step to step, which the parts of a batch do not share: "
                "train it in one process, with run.accumulate 1"
            )
        torch.manual_seed(seed_for(run.seed, "weights"))
        model = models.build(self.config.model.name, classes).to(memory_format=torch.channels_last)
        _check_fit(self.config.model.name, model, self.test)
        if isinstance(self.test, ImageData):
            self.test = dataclasses.replace(self.test, images=self.test.images.to(self.device))
        if run.sync_batchnorm and self.processes.world > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # the shapes of a run do not change
        sgd = torch.optim.SGD(
            model.parameters(),
            lr=optimizer.lr,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
            weight_decay=optimizer.weight_decay,
            fused=on_gpu,  # one kernel for all weights; on a CPU it gains little and rounds otherwise
        )
        self.network = model  # as it is built; `model` is what trains: perhaps compiled, perhaps one of many
        self.model, self.optimizer = self.accelerator.prepare(model, sgd)
        self.compiled = self._compile_mode()
        if self.compiled is not None:
            self.model = torch.compile(self.model, mode=self.compiled)
        self.step, self.next_look, self.seconds_training = 0, 0, 0.0
        self.sums = torch.zeros(6, device=self.device)  # total, cross-entropy, distillation, feature, right, logits
        self.first_bad = torch.full((), self.steps, device=self.device)
        self.last_finite = torch.full((), math.nan, device=self.device)
        self.record = self._new_record()

    def _bf16(self) -> bool:
        precision, device = self.config.run.precision, self.config.run.device
        on_gpu = device in (None, "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return precision == "bf16" or (precision == "auto" and on_gpu)

    def _compile_mode(self) -> str | None:
        asked = self.config.run.compile
        if asked != "auto":
            return None if asked == "off" else asked
        pays = self.steps >= COMPILE_FROM and self.processes.world == 1 and isinstance(self.batches, Batches)
        return "reduce-overhead" if pays and self.device.type == "cuda" else None

    def _new_record(self) -> Record:
        settings = self.config.to_dict()
        settings["data"]["root"] = settings["run"]["output"] = None  # a machine's path is nobody's result
        settings["run"]["resume"] = "never"  # it may name a path too; and a run that was resumed is the same run
        world = self.processes.world
        return Record(
            name=self.config.name,
            data=self.config.data.label,
            model=self.config.model.name,
            method=self.method.name,
            seed=self.config.run.seed,
            budget=self.config.budget.label,
            config=settings,
            device=(f"{world} x " if world > 1 else "") + records.device_name(self.device),
            versions=records.versions(),
            revision=records.revision(),
        )

    def _prepare_folder(self) -> None:
        """Where nothing can be written, stop now and not at the end."""
        self.processes.on_main(lambda: self.folder.mkdir(parents=True, exist_ok=True))

    def _open_log(self) -> None:
        tracked = self.config.run.tensorboard
        if tracked:
            self.accelerator.init_trackers("tensorboard")
        if self.processes.main:
            self.log = MetricsLog(self.folder, self.step, self.accelerator if tracked else None)

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        return tqdm(
            total=self.steps * self.passes_per_step,
            initial=self.step * self.passes_per_step,
            unit=" images",
            unit_scale=True,
            desc=self.config.name.rpartition("/")[2],
            disable=not self.config.run.progress or not self.processes.main,
            delay=1e-3,  # no bar before the first step, so that what that step refuses is one line
        )

    def _whole_epoch(self, bar: Any, on_epoch: Callable[[dict[str, Any]], None] | None) -> None:
        """Train to the end of the epoch that the run is in, measure, note and keep what is to be kept."""
        run = self.config.run
        epoch = self.step // self.per_epoch
        entry = self._epoch(epoch, bar)
        last = self.step == self.steps
        if last or (run.evaluate_every and (epoch + 1) % run.evaluate_every == 0):
            entry["test"] = self._measure(epoch, last)
        if isinstance(self.batches, Stream) and self.config.data.skip_corrupt:
            skipped = torch.tensor([float(self.batches.skipped)], device=self.device)
            entry["skipped"] = int(self.processes.every(skipped).sum())
        self.record.epochs.append(entry)
        self._note(entry)
        if run.checkpoint_every and (epoch + 1) % run.checkpoint_every == 0 and not last:
            self._checkpoint()
        if on_epoch is not None and self.processes.main:
            on_epoch(entry)
        if self.asked_to_stop and not last:
            self._interrupt()

    def _epoch(self, epoch: int, bar: Any) -> dict[str, Any]:
        """Train to the end of an epoch, or of the budget, and return its entry for the record."""
        first = epoch * self.per_epoch
        end = min(first + self.per_epoch, self.steps)
        if self.step == first:
            self.sums.zero_()  # inside an epoch, after a resume, they go on
        self.training_since, self.training_from = time.perf_counter(), self.step
        self.model.train()
        self.next_look = self.step + self._steps_to_next_look(0.0)
        while True:
            self.sums += self.train_step(epoch)
            bar.update(self.passes_per_step)
            alone = self.processes.world == 1  # then there is nobody to ask before stopping
            if self.step in (self.next_look, end) or (alone and self.termination.asked):
                entry = self._look(bar, epoch, first)
                if self.step == end:
                    self._count_training()
                    return entry
                passes = (self.step - self.training_from) * self.passes_per_step
                self._note({**entry, "images_per_second": passes / self._elapsed()})
                if self.asked_to_stop:
                    self._count_training()
                    self._interrupt()

    def train_step(self, epoch: int) -> Tensor:
        """One optimiser step; the loss terms and accuracy counts it adds, still on the device."""
        run, settings, share = self.config.run, self.config.optimizer, self.share
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.step, self.steps)
        added = []
        for turn in range(share.accumulate):
            batch = self.batches.get(self.step, turn)
            torch.manual_seed(seed_for(run.seed, "step", self.step))
            progress = Progress(
                self.step, self.steps, epoch, self.steps / self.per_epoch, share.part(turn), share.parts
            )
            if self.compiled is not None:
                torch.compiler.cudagraph_mark_step_begin()  # the outputs of the last replay are done with
            last = turn == share.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                result = self.method.step(self.model, batch, progress)
                self.accelerator.backward(result.terms.total / share.accumulate)
            terms = torch.stack([term.detach() for term in result.terms]) / share.accumulate
            added.append(torch.cat([terms, _hits(result)]))
        if settings.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        sums = torch.stack(added).sum(0)
        self._watch(sums[0])
        self.step += 1
        return sums

    def _watch(self, loss: Tensor) -> None:
        """Keep the first step whose loss is not finite and the loss before it, without reading either."""
        good = loss.isfinite() & (self.first_bad == self.steps)
        here = torch.full_like(self.first_bad, self.step)
        self.first_bad = torch.where(good, self.first_bad, torch.minimum(self.first_bad, here))
        self.last_finite = torch.where(good, loss, self.last_finite)

    def _look(self, bar: Any, epoch: int, first: int) -> dict[str, Any]:
        """Read what the devices have summed up, stop if a loss was not finite, and return the means over the epoch.

        The only place in an epoch where the host waits for the device, and processes for each other's host.
        """
        seconds = self._elapsed() / (self.step - self.training_from)
        mine = [self.first_bad, self.last_finite, torch.tensor(float(self.termination.asked)), torch.tensor(seconds)]
        state = torch.cat([self.sums, torch.stack([value.to(self.device).float() for value in mine])])
        rows = self.processes.every(state).double().cpu()
        sums, bad, stop, slowest = rows[:, :6], rows[:, 6], bool(rows[:, 8].any()), float(rows[:, 9].max())
        if int(bad.min()) < self.steps:
            step, last = int(bad.min()), float(rows[bad.argmin(), 7])
            known = f"; the last finite loss was {last:.4g}, at step {step - 1}" if math.isfinite(last) else ""
            raise Diverged(f"the loss is NaN or infinite at step {step} (epoch {epoch + 1}){known}. {REMEDY}")
        self.asked_to_stop = stop
        self.next_look = self.step + self._steps_to_next_look(slowest)
        total, cross_entropy, distillation, feature = (sums[:, :4].mean(0) / (self.step - first)).tolist()
        top1 = 100 * float(sums[:, 4].sum() / sums[:, 5].sum())
        bar.set_postfix(epoch=epoch + 1, loss=f"{total:.3f}", top1=f"{top1:.1f}%")
        return {
            "epoch": epoch + 1,
            "steps": self.step - first,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": total,
            "cross_entropy": cross_entropy,
            "distillation": distillation,
            "feature": feature,
            "train_top1": top1,
        }

    def _steps_to_next_look(self, seconds: float) -> int:
        """Processes hear of a SIGTERM at a look alone, and its sender does not wait for long."""
        if self.processes.world == 1:
            return LOOK_EVERY
        return max(1, min(LOOK_EVERY, int(LOOK_SECONDS / seconds))) if seconds > 0 else 1

    def _elapsed(self) -> float:
        return time.perf_counter() - self.training_since

    def _count_training(self) -> None:
        self.seconds_training += self._elapsed()

    def _note(self, entry: dict[str, Any]) -> None:
        if self.processes.main:
            self.log.add(self.step, entry)

    def _measure(self, epoch: int, last: bool) -> dict[str, Any]:
        """The test's metrics; the last step may leave weights of which no training loss tells.

        After it, where tune images are there that were not trained on, NLL and calibration once more with the
        temperature that fits these: `temperature`, `nll_scaled`, `ece_scaled`, `overconfidence_scaled`.
        """
        self.processes.share_buffers(self.network)
        logits = self._logits(self.test)
        metrics = measure(logits, self.test.targets)
        if not math.isfinite(metrics.nll):
            raise Diverged(f"the loss of the test is NaN or infinite after epoch {epoch + 1}. {REMEDY}")
        found = dataclasses.asdict(metrics)
        if last and self.tune is not None:
            temperature = fit_temperature(self._logits(self.tune), self.tune.targets)
            scaled = dataclasses.asdict(measure(temperature(logits), self.test.targets))
            found["temperature"] = temperature.value
            found |= {f"{key}_scaled": scaled[key] for key in ("nll", "ece", "overconfidence")}
        return found

    def _logits(self, data: ImageData | CentreCrops) -> Tensor:
        n = len(data)
        at_once = 500 if isinstance(data, ImageData) else 100  # images of files are larger
        return self.processes.joined(predict(self.network, data, at_once, self.processes.rows(n)), n)

    def _interrupt(self) -> None:
        path = self._checkpoint()
        raise Interrupted(f"stopped by SIGTERM at step {self.step} of {self.steps}; {path} is written")

    def _checkpoint(self) -> Path:
        now = time.perf_counter()
        self.record.seconds, self.since = self.record.seconds + now - self.since, now
        state = {
            "step": self.step,
            "sums": self.processes.every(self.sums).mean(0).cpu(),
            "seconds_training": self.seconds_training,
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "config": self.config.to_dict(),
            "record": dataclasses.asdict(self.record),
        }
        return self.processes.on_main(lambda: checkpoints.save(self.checkpoints, self.step, self.network, state))

    def _resume(self) -> None:
        found = self.processes.on_main(self._find_checkpoint)
        if found is None:
            return
        weights, state = found
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        self.step, self.seconds_training = state["step"], state["seconds_training"]
        self.sums.copy_(state["sums"])
        for key in ("epochs", "seconds"):
            setattr(self.record, key, state["record"][key])

    def _find_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What the run goes on from, as `run.resume` says; None to begin anew."""
        resume = self.config.run.resume
        if resume == "never":
            checkpoints.remove(self.checkpoints)
            return None
        path = Path(resume)
        if resume == "auto":
            found = checkpoints.every(self.checkpoints)
            if not found:
                return None
            path = found[-1]
        weights, state = checkpoints.load(path)
        _refuse_another_run(path, state["config"], self.config)
        return weights, state

    def _finish(self) -> Record:
        record = self.record
        record.seconds += time.perf_counter() - self.since
        record.final = record.epochs[-1]["test"]
        record.image_passes = self.steps * self.passes_per_step
        record.images_per_second = record.image_passes / self.seconds_training
        record.peak_memory = records.peak_memory(self.device)
        if self.config.run.tensorboard:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.processes.on_main(self._write_result)
        return record

    def _write_result(self) -> None:
        metadata = {"model": self.record.model, "classes": str(len(self.test.classes)), "name": self.record.name}
        checkpoints.save_model(self.folder / "model.safetensors", self.network, metadata)
        self.record.write(self.record_file)
        checkpoints.remove(self.checkpoints)


def _batches(
    data: ImageData | ImageFolder,
    settings: DataConfig,
    seed: int,
    needs: Collection[str],
    device: torch.device,
    share: Share,
) -> Batches | Stream:
    """The training batches: from memory where the images fit there, else streamed from their files."""
    if isinstance(data, ImageData):
        padding, flip = settings.crop_padding, settings.flip
        return Batches(data, settings.batch_size, seed, needs, padding, flip, device, share)
    if settings.crop_padding is not None:
        raise ValueError(
            f"data.crop_padding is for images in memory; those of {settings.name} are streamed from files, of which a "
            "random part is taken: set data.crop_scale, or data.size to decode them into memory"
        )
    return Stream(
        data,
        settings.batch_size,
        seed,
        needs,
        crop_size=settings.crop_size,
        crop_scale=settings.crop_scale,
        flip=True if settings.flip is None else settings.flip,
        device=device,
        workers=settings.workers,
        share=share,
        skip_corrupt=settings.skip_corrupt,
    )


@torch.no_grad()
def _check_fit(name: str, model: nn.Module, data: ImageData | CentreCrops) -> None:
    """Refuse a network that cannot take images of this size, before anything is written."""
    height, width = data.images.shape[2:] if isinstance(data, ImageData) else (data.crop_size, data.crop_size)
    try:
        model.eval()(torch.zeros(1, 3, height, width))
    except Exception as error:  # each network fails in its own way
        where = "data.size" if isinstance(data, ImageData) else "data.crop_size"
        raise ValueError(
            f"model.name {name!r} does not take images of {height} x {width} pixels ({error}); "
            f"choose another model or, where the data has it, another {where}"
        ) from error


def _hits(result: Step) -> Tensor:
    """Right predictions, and predictions in all; a soft target's class is its largest."""
    target = result.target.argmax(1) if result.target.ndim == 2 else result.target
    right = (result.logits.detach().argmax(1) == target).sum()
    return torch.stack([right, torch.full_like(right, len(target))]).float()
