"""How fast this machine trains a recipe, what limits it, and what the whole run would take: `psd bench`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from psd.checks import Refused
from psd.data.stream import Stream
from psd.training.config import Config
from psd.training.fit import prepared
from psd.training.loop import Loop

WARM_UP = 3  # calls before the clock starts: kernels are chosen, compiled and recorded, memory is touched
PREFETCHED = 2  # batches that a loader's worker has ready, PyTorch's default
NEAR = 0.85  # of the bare rate: from here on it is said to be what limits


@dataclass
class Rates:
    """Images per second, where an image that goes through the network twice counts twice.

    step: whole training steps. bare: forward and backward alone, on one resident batch of the same size, in the same
    precision and mode. data: batches alone, made or decoded. share: step / bare, the median of the turns' own ratios.
    decode, crop: JPEG files decoded, and decoded and cropped, by one process; None for images in memory.
    workers: processes that decode; 0 for images in memory.
    """

    step: float
    bare: float
    data: float
    share: float
    decode: float | None
    crop: float | None
    workers: int
    images_per_step: int
    passes: int
    device: str
    mode: str
    memory: int | None  # bytes at the peak, on a GPU

    @property
    def limit(self) -> str:
        """What a faster version of would help most."""
        if self.share >= NEAR:
            return "forward and backward"
        if self.data < self.bare:
            return "decoding: more workers or cores" if self.workers else "making the batches"
        return "the rest of a step: loss, optimiser, and the host that launches them"


def measure(config: Config, seconds: float = 20, turns: int = 5) -> Rates:
    """Train some steps of a run, writing nothing, and time their parts in turn.

    Args:
        config: the run, with its data, model, method, precision and device.
        seconds: of measuring, about.
        turns: repetitions; each rate is the median over them.

    Raises:
        ValueError: what `psd.train` refuses; seconds or turns that are not positive.
    """
    if not (seconds > 0 and math.isfinite(seconds)) or turns < 1:
        raise Refused(f"seconds and turns must be positive, got seconds={seconds} and turns={turns}")
    with prepared(config) as loop:
        if loop.place.processes.world > 1:
            raise Refused("psd bench measures one process; the plan says what several of them would take")
        return _measure(loop, seconds / turns / 3, turns)


def _measure(run: Loop, seconds: float, turns: int) -> Rates:
    images = run.passes_per_step // run.share.parts
    per_anchor = 1 + len(run.method.needs - {"raw"})
    stream = run.loader if isinstance(run.loader, Stream) else None
    queue = PREFETCHED * stream.workers if stream else 0
    works = {
        "bare": (_bare(run, images), images, 0),
        "step": (lambda: run.train_step(run.step // run.per_epoch), run.passes_per_step, queue),
        "data": (_data(run), run.plan.batch_size * per_anchor, queue),
    }
    run.model.train()
    for work, _, _ in works.values():
        for _ in range(WARM_UP):
            work()
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, (work, count, waiting) in works.items():
            for _ in range(waiting):  # what was decoded while something else was timed
                work()
            rates[name].append(count * _per_second(work, run.place.device, seconds))
    decode, crop = _one_process(stream, seconds) if stream else (None, None)
    on_gpu = run.place.device.type == "cuda"
    return Rates(
        step=median(rates["step"]),
        bare=median(rates["bare"]),
        data=median(rates["data"]),
        share=median(step / bare for step, bare in zip(rates["step"], rates["bare"], strict=True)),
        decode=decode,
        crop=crop,
        workers=stream.workers if stream else 0,
        images_per_step=run.passes_per_step,
        passes=run.steps * run.passes_per_step,
        device=run.record.device,
        mode=f"{run.place.precision}, {'compiled: ' + run.compiled if run.compiled else 'eager'}",
        memory=torch.cuda.max_memory_allocated(run.place.device) if on_gpu else None,
    )


def _bare(run: Loop, images: int) -> Callable[[], object]:
    """Forward and backward of one batch that stays where it is, by cross-entropy or by a network's own losses, without
    an optimiser."""
    batch = run.loader.get(0)
    side = batch.x.shape[-1]
    x = torch.randn(images, 3, side, side, device=run.place.device).contiguous(memory_format=torch.channels_last)
    again = [k % len(batch.x) for k in range(images)]  # there may be more images than anchors
    y = batch.y[again] if isinstance(batch.y, Tensor) else [batch.y[k] for k in again]

    def work() -> None:
        if run.compiled is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with run.place.autocast():
            if isinstance(y, Tensor):
                loss = F.cross_entropy(run.forward(x).float(), y)
            else:
                loss = torch.stack(list(run.forward(x, y).values())).sum()
        run.place.accelerator.backward(loss)
        run.optimizer.zero_grad()

    return work


def _data(run: Loop) -> Callable[[], object]:
    """The batches of one step after another, beginning anew after those that were trained."""
    steps: Iterator[int] = iter(range(10**9, 2 * 10**9))

    def work() -> None:
        step = next(steps)
        for turn in range(run.share.accumulate):
            run.loader.get(step, turn)

    return work


def _one_process(stream: Stream, seconds: float) -> tuple[float, float]:
    """JPEG files per second that one process decodes, and that it decodes and crops."""
    from PIL import Image

    items = next(iter(stream.plan))

    def decode() -> None:
        for item in items:
            with Image.open(str(item.file)) as image:
                image.convert("RGB")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has them
    try:
        cpu = torch.device("cpu")
        rates = [
            len(items) * _per_second(work, cpu, seconds)
            for work in (decode, lambda: stream.decoder.__getitems__(items))
        ]
    finally:
        torch.set_num_threads(threads)
    return rates[0], rates[1]


def _per_second(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls per second, over about so many seconds; the device has finished them all."""
    _wait(device)
    begin, calls, block = time.perf_counter(), 0, 1
    while True:
        for _ in range(block):
            work()
        calls += block
        _wait(device)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return calls / elapsed
        block = max(1, min(calls, int(calls * (seconds - elapsed) / elapsed)))  # few waits, and none too long


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def for_images(rates: Rates, config: Config, images: int) -> Rates:
    """The same rates for a run on so many training images; ValueError where they do not fill a batch."""
    per_epoch = images // config.data.batch_size
    if per_epoch < 1:
        raise Refused(f"images must fill a batch of {config.data.batch_size}, got {images}")
    per_step = config.data.batch_size * config.method.passes_per_anchor
    return replace(rates, passes=config.budget.steps(per_epoch, per_step) * per_step)


def describe(rates: Rates) -> str:
    """The measured rates as a table, and what limits."""
    rows = [
        ("whole training steps", rates.step),
        ("forward and backward alone", rates.bare),
        ("batches alone" + (f", decoded by {rates.workers} workers" if rates.workers else ""), rates.data),
    ]
    if rates.decode is not None and rates.crop is not None:
        rows += [("JPEG decoding alone, one process", rates.decode), ("decoding and cropping, one process", rates.crop)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{rates.images_per_step:,} images per step on {rates.device} ({rates.mode})", ""]
    lines += [f"{'images/s':{width}}"] + [f"{name:{width}}  {rate:10,.0f}" for name, rate in rows]
    lines += [
        "",
        f"A step runs at {100 * rates.share:.0f} % of forward and backward alone. What limits: {rates.limit}.",
    ]
    if rates.memory is not None:
        lines.append(f"Peak memory of the GPU: {rates.memory / 2**30:.1f} GiB.")
    return "\n".join(lines)


def plan(rates: Rates, gpus: list[int], efficiency: float = 0.9, price: float | None = None) -> str:
    """Hours, GPU-hours and money of the whole run, as a table.

    Args:
        rates: as measured on one device.
        gpus: numbers of devices like it.
        efficiency: rate of each of several devices, as a share of the rate of one alone; assumed, not measured.
        price: of one device for one hour.

    Raises:
        ValueError: a number of devices below 1, an efficiency outside (0, 1], a negative price.
    """
    if not gpus or min(gpus) < 1:
        raise Refused(f"gpus must be numbers of at least 1, got {gpus}")
    if not 0 < efficiency <= 1:
        raise Refused(f"efficiency must lie above 0 and at most at 1, got {efficiency}")
    if price is not None and not (price >= 0 and math.isfinite(price)):
        raise Refused(f"price must be >= 0, got {price}")
    lines = [f"{'devices':>7}  {'hours':>9}  {'device-hours':>12}  {'money':>9}  {'workers':>7}"]
    for n in gpus:
        each = rates.step * (efficiency if n > 1 else 1)
        hours = rates.passes / (each * n) / 3600
        money = "-" if price is None else f"{hours * n * price:,.2f}"
        needed = "-" if rates.crop is None else f"{math.ceil(n * rates.bare / rates.crop)}"
        lines.append(f"{n:7}  {_hours(hours):>9}  {_hours(hours * n):>12}  {money:>9}  {needed:>7}")
    cost = "no price was given (--price)" if price is None else f"{price:g} for a device and hour"
    several = f"each of several devices is assumed to reach {100 * efficiency:g} % of the rate of one alone"
    lines += [
        "",
        f"The run is {rates.passes:,} image passes. Time is that of training steps at the rate above, without "
        f"evaluation; {several} (--efficiency), with a batch that is large enough for them; {cost}.",
    ]
    if rates.crop is not None:
        lines.append("workers: processes that must decode, over all machines, so that forward and backward never wait.")
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:.3f}" if hours < 10 else f"{hours:,.1f}"
