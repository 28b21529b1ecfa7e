"""The training loop. What it trains, on what and how, are the pieces of a `Plan`; it knows none of them by name."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from psd.checks import Refused
from psd.data.batches import Batches, Share
from psd.data.loaders import loader, measured
from psd.methods import Method, Progress, Setup
from psd.seeding import generator_for, seed_for
from psd.tasks import Meter, Task
from psd.training import optim, records
from psd.training.callbacks import Callback, MetricsLog, ProgressBar
from psd.training.checkpoints import load_model
from psd.training.config import BudgetConfig, OptimizerConfig, RunConfig
from psd.training.evaluation import evaluating, meter
from psd.training.folder import RunFolder
from psd.training.place import Place
from psd.training.processes import Termination
from psd.training.records import Record
from psd.training.tracking import Tracking
from psd.training.trouble import memory_in_words
from psd.training.watch import REMEDY, Diverged, Watch, numbers_of

COMPILE_FROM = 1000  # steps of a run for which compiling, a minute or so, is worth it


class Interrupted(RuntimeError):
    """SIGTERM came, or the launcher of several processes has ended.

    A checkpoint is written, and with `run.resume` "auto" the run goes on from it.
    """


@dataclass
class Plan:
    """What is trained, on what, and how: the pieces of a run, as `psd.fit` is given them or `psd.train` builds them.

    name: of the record, with those of data and network. settings: what the record holds of all this. logits: what to
    make of the network's output, in the place of `task.logits`. loading: options of `psd.data.loaders.loader`.
    measuring: those of `measured`.
    """

    name: str
    data: str
    architecture: str
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    model: nn.Module
    train: Any
    test: Any
    tune: Any
    method: Method
    task: Task
    budget: BudgetConfig
    optimizer: Any
    schedule: OptimizerConfig | LRScheduler | Callable[[int, int], float]
    clip_norm: float | None
    batch_size: int
    run: RunConfig
    loading: dict[str, Any] = field(default_factory=dict)
    measuring: dict[str, Any] = field(default_factory=dict)
    logits: Callable[[Any], Tensor] | None = None
    train_mode: Callable[[nn.Module], object] = nn.Module.train
    metadata: dict[str, str] = field(default_factory=dict)  # in the header of the weights' file

    @property
    def classes(self) -> int:
        return len(self.class_names)


class Loop:
    """One run at its place: built, perhaps resumed, then trained to its end. Every process of a run has one."""

    def __init__(self, plan: Plan, place: Place, callbacks: Sequence[Callback] = ()) -> None:
        self.plan, self.place, self.method = plan, place, plan.method
        run = plan.run
        self.share = Share(place.processes.rank, place.processes.world, run.accumulate)
        self.loader = loader(
            plan.train,
            plan.batch_size,
            run.seed,
            plan.method.needs,
            device=place.device,
            share=self.share,
            learns=plan.task.learns,
            **plan.loading,
        )
        self.per_epoch = self.loader.steps_per_epoch
        self.passes_per_step = plan.batch_size * plan.method.passes_per_anchor
        self.steps = plan.budget.steps(self.per_epoch, self.passes_per_step)
        self.test, self.tune = (
            d if d is None else measured(d, learns=plan.task.learns, **plan.measuring) for d in (plan.test, plan.tune)
        )
        plan.method.setup(Setup(plan.classes, len(plan.train), load_model))
        if self.share.parts > 1 and plan.method.state_dict():
            raise Refused(
                f"method {plan.method.name} keeps a state from step to step, which the parts of a batch do not share: "
                "train it in one process, with run.accumulate 1"
            )
        _check_fit(plan, self.loader.shape)
        self.network = plan.model.to(place.device).to(memory_format=torch.channels_last)
        if run.sync_batchnorm and place.processes.world > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        optimizer = optim.build(plan.optimizer, self.network, place.device.type == "cuda")
        self.schedule = optim.Schedule(optimizer, plan.schedule, self.steps)
        # `network` is as it was built; `model` is what trains: perhaps compiled, perhaps one of many
        self.model, self.optimizer = place.accelerator.prepare(self.network, optimizer)
        self.compiled = self._compile_mode()
        if self.compiled is not None:
            self.model = torch.compile(self.model, mode=self.compiled)
        self.forward = _WithLogits(self.model, plan)
        self.step, self.seconds_training, self.since = 0, 0.0, time.perf_counter()
        self.watch = Watch(place, self.steps)
        self.folder = RunFolder(run, plan.name, plan.settings)
        self.record = _new_record(plan, place)
        main = place.processes.main
        self.callbacks, self.guests = self._own_callbacks() if main else [], list(callbacks) if main else []
        self.termination = Termination()

    def run(self) -> Record:
        """Train to the end and write the result."""
        on_main = self.place.processes.on_main
        on_main(self.folder.take)
        with contextlib.closing(self.folder), memory_in_words(self):
            self._resume(on_main(self.folder.newest))
            self._train()
            return self._finish()

    def _train(self) -> None:
        records.forget_peak_memory(self.place.device)
        self.since = time.perf_counter()
        with contextlib.ExitStack() as open_until_the_end:
            open_until_the_end.enter_context(self.termination)
            open_until_the_end.callback(self.loader.close)
            if self.compiled is not None:  # of many compiled runs in a process, torch would leave the last uncompiled
                open_until_the_end.callback(torch.compiler.reset)
            for callback in (*self.callbacks, *self.guests):
                callback.begin(self)
                open_until_the_end.callback(callback.end, self)
            while self.step < self.steps:
                self._epoch()

    def _epoch(self) -> None:
        """Train to the end of the epoch that the run is in, or of the budget; measure, note, keep what is asked for."""
        run, epoch = self.plan.run, self.step // self.per_epoch
        entry, stop = self._steps(epoch)
        last = self.step == self.steps
        if self.test is not None and (last or (run.evaluate_every and (epoch + 1) % run.evaluate_every == 0)):
            entry["test"] = self._measure(epoch, last)
        skipped = getattr(self.loader, "skipped", None)
        if skipped is not None and self.plan.loading.get("skip_corrupt"):
            counted = torch.tensor([float(skipped)], device=self.place.device)
            entry["skipped"] = int(self.place.processes.every(counted).sum())
        self.record.epochs.append(entry)
        for callback in self.callbacks:
            callback.epoch(self, entry)
        if run.checkpoint_every and (epoch + 1) % run.checkpoint_every == 0 and not last:
            self._checkpoint()
        for callback in self.guests:  # which may fail
            callback.epoch(self, entry)
        if stop and not last:
            self._interrupt()

    def _steps(self, epoch: int) -> tuple[dict[str, Any], bool]:
        """The steps of an epoch, and its entry for the record; whether a stop was asked for."""
        first = epoch * self.per_epoch
        end = min(first + self.per_epoch, self.steps)
        self.plan.train_mode(self.model)
        self.watch.begin(self.step, self.step == first)
        while True:
            self.watch.add(self.step, self.train_step(epoch))
            self.step += 1
            for callback in (*self.callbacks, *self.guests):
                callback.step(self)
            alone = self.place.processes.world == 1  # then there is nobody to ask before stopping
            if self.step not in (self.watch.next_look, end) and not (alone and self.termination.asked):
                continue
            asked = self.termination.asked or self.place.processes.orphaned
            means, stop = self.watch.look(self.step, first, epoch, asked)
            entry = {"epoch": epoch + 1, "steps": self.step - first, "lr": self.lr, **means}
            for callback in (*self.callbacks, *self.guests):
                callback.look(self, entry)
            if self.step == end or stop:
                self.seconds_training += self.watch.seconds
            if self.step == end:
                return entry, stop
            if stop:
                self._interrupt()

    def train_step(self, epoch: int) -> list[Tensor]:
        """One optimiser step; the numbers of each part of its batch, still on the device."""
        run, added = self.plan.run, []
        self.schedule.before(self.step)
        for turn in range(self.share.accumulate):
            batch = self.loader.get(self.step, turn)
            progress = self._progress(epoch, turn)
            if self.compiled is not None:
                torch.compiler.cudagraph_mark_step_begin()  # the outputs of the last replay are done with
            last = turn == self.share.accumulate - 1
            with contextlib.nullcontext() if last else self.place.accelerator.no_sync(self.model):
                with self.place.autocast():
                    result = self.method.step(self.forward, batch, progress)
                self.place.accelerator.backward(result.terms.total / run.accumulate)
            added.append(numbers_of(result, run.accumulate))
        if self.plan.clip_norm is not None:
            self.place.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.after()
        return added

    def _progress(self, epoch: int, turn: int) -> Progress:
        """Where the run stands, with torch's generators seeded: those of a part of a batch, and one for all parts."""
        keys, part, parts = (self.plan.run.seed, "step", self.step), self.share.part(turn), self.share.parts
        at = (self.step, self.steps, epoch, self.steps / self.per_epoch)
        if parts == 1:
            torch.manual_seed(seed_for(*keys))
            return Progress(*at)
        torch.manual_seed(seed_for(*keys, part))
        return Progress(*at, part, parts, generator_for(*keys, device=self.place.device))

    @property
    def lr(self) -> float:
        """The learning rate of the last step, of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def images_per_second(self) -> float:
        """Image passes per second of training in this epoch."""
        return self.watch.steps_since(self.step) * self.passes_per_step / self.watch.seconds

    def _measure(self, epoch: int, last: bool) -> dict[str, Any]:
        """The test's figures, in fp32 as by `psd.evaluate`; the last step may leave weights of which no loss tells."""
        self.place.processes.share_buffers(self.network)
        tune = self._meter(self.tune) if last and self.tune is not None else None
        found = dict(self._meter(self.test).compute(tune))  # plain, as a checkpoint holds it
        ruined = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
        if ruined:
            raise Diverged(f"{ruined[0]} of the test is NaN or infinite after epoch {epoch + 1}. {REMEDY}")
        return found

    def _meter(self, data: Any) -> Meter:
        rows = self.place.processes.rows(len(data))
        at_once = 500 if data.shape[-1] * data.shape[-2] <= 64 * 64 else 100
        mine = meter(self.network, data, self.plan.task, at_once, rows, self.plan.logits)
        return self.place.processes.merged(mine)

    def _checkpoint(self) -> Any:
        now = time.perf_counter()
        self.record.seconds, self.since = self.record.seconds + now - self.since, now
        state = {
            "step": self.step,
            "sums": self.place.processes.every(self.watch.sums).mean(0).cpu(),
            "seconds_training": self.seconds_training,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "method": self.method.state_dict(),
            "epochs": self.record.epochs,
            "seconds": self.record.seconds,
        }
        return self.place.processes.on_main(lambda: self.folder.save(self.step, self.network, state))

    def _resume(self, found: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if found is not None:
            try:
                self._load(*found)
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                raise Refused(
                    f"run.resume: the checkpoint is not one of this network, optimiser and method ({error}); remove "
                    "it, or start anew with --run.resume never"
                ) from error
        run = self.plan.run
        if run.resume == "auto" and run.progress and self.folder.was_begun:
            where = (
                f"after step {self.step} of {self.steps}"
                if found
                else "from its beginning, as it has no checkpoint yet"
            )
            print(f"{self.folder.path} goes on {where}", file=sys.stderr)

    def _load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.method.load_state_dict(state["method"])
        self.step, self.seconds_training = state["step"], state["seconds_training"]
        self.watch.sums.copy_(state["sums"])
        self.record.epochs, self.record.seconds = state["epochs"], state["seconds"]

    def _interrupt(self) -> None:
        path = self._checkpoint()
        why = "as its launcher has ended" if self.place.processes.orphaned else "by SIGTERM"
        raise Interrupted(f"stopped {why} at step {self.step} of {self.steps}; {path} is written")

    def _finish(self) -> Record:
        record = self.record
        record.seconds += time.perf_counter() - self.since
        record.final = record.epochs[-1].get("test", {})
        record.image_passes = self.steps * self.passes_per_step
        record.images_per_second = record.image_passes / self.seconds_training
        record.peak_memory = records.peak_memory(self.place.device)
        metadata = {**self.plan.metadata, "name": record.name, **self._images()}
        self.place.processes.on_main(lambda: self.folder.finish(record, self.network, metadata))
        return record

    def _images(self) -> dict[str, str]:
        """What who uses the network has to know of images and classes, as JSON."""
        known = {"class_names": list(self.plan.class_names), "size": self.loader.shape[-1]}
        if self.loader.statistics is not None:
            known["mean"], known["std"] = map(list, self.loader.statistics)
        return {key: json.dumps(value) for key, value in known.items()}

    def _own_callbacks(self) -> list[Callback]:
        run = self.plan.run
        tracking = None if run.track is None else Tracking(run.track, self.place.accelerator)
        others = [ProgressBar() if run.progress else None, tracking]
        return [*filter(None, others), MetricsLog(self.folder.path, tracking)]

    def _compile_mode(self) -> str | None:
        asked = self.plan.run.compile
        if asked != "auto":
            return None if asked == "off" else asked
        alone, in_memory = self.place.processes.world == 1, isinstance(self.loader, Batches)
        pays = self.steps >= COMPILE_FROM and alone and in_memory
        return "reduce-overhead" if pays and self.place.device.type == "cuda" else None


class _WithLogits(nn.Module):
    """What a method is given: x -> logits, whatever the network's output is; (x, targets) -> its own losses."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.model, self._logits = model, plan.logits or plan.task.logits
        if hasattr(model, "_orig_mod"):  # features are taken from the network that is not compiled
            self._orig_mod = _WithLogits(model._orig_mod, plan)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *targets: Any) -> Any:
        return self.model(x, *targets) if targets else self._logits(self.model(x))


def _new_record(plan: Plan, place: Place) -> Record:
    return Record(
        name=plan.name,
        data=plan.data,
        model=plan.architecture,
        method=plan.method.name,
        seed=plan.run.seed,
        budget=plan.budget.label,
        config=plan.settings,
        task=plan.task.name,
        metrics=[metric._asdict() for metric in plan.task.metrics],
        device=place.name,
        versions=records.versions(),
        revision=records.revision(),
    )


@torch.no_grad()
def _check_fit(plan: Plan, shape: tuple[int, ...]) -> None:
    """Refuse a network that cannot take images of this shape, or gives no logits, before anything is written."""
    with evaluating(plan.model):
        try:
            output = plan.model(torch.zeros(1, *shape, device=next(plan.model.parameters()).device))
        except Exception as error:  # each network fails in its own way
            side = shape[1] if shape[1] == shape[2] else shape[1:]
            one_size = any("Transformer" in type(module).__name__ for module in plan.model.modules())
            raise Refused(
                f"model {plan.architecture!r} does not take images of {shape[1]} x {shape[2]} pixels ({error}); choose "
                "another model, or another size: data.size, data.crop_size, or what the data's transform gives"
                + (
                    f"; timm's transformers are built for it by the option img_size={side}, torchvision's by "
                    f"image_size={side}: model.options, or psd.models.build"
                    if one_size
                    else ""
                )
            ) from error
        logits = (plan.logits or plan.task.logits)(output)
    given = logits.shape[1] if isinstance(logits, Tensor) else getattr(plan.model, "num_classes", plan.classes)
    if given != plan.classes:
        raise Refused(f"model {plan.architecture!r} gives {given} logits, the data has {plan.classes} classes")
    if isinstance(logits, Tensor) and logits.ndim > 2 and logits.shape[2:] != shape[1:]:
        sides = " x ".join(map(str, logits.shape[2:]))
        raise Refused(
            f"model {plan.architecture!r} gives logits at {sides} places of an image of {shape[1]} x {shape[2]} "
            "pixels; psd.fit takes a function that resizes them, logits=..."
        )
