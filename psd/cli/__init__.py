"""The command line: `psd COMMAND`, also `python -m psd COMMAND`.

Bad input, and a place that cannot be written, end with one line on stderr and exit code 2; a training that diverges,
loses another process or runs out of memory with exit code 1, Ctrl-C with 130, and with 141 where nobody reads the
output any more. `--debug` shows the traceback, too.
SIGTERM in a training writes a checkpoint and ends with 75, "try again", upon which a batch system can requeue the job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from psd import models, tasks
from psd.checks import Refused, did_you_mean, printable, refusing
from psd.cli.arguments import DEBUG, parse
from psd.cli.settings import list_settings, read_settings
from psd.training import config
from psd.training.comparison import comparison, shortened
from psd.training.processes import TRY_AGAIN


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; SystemExit(0) after `--help`."""
    from psd.data.decoding import WorkerEnded
    from psd.training.jobs import Failed
    from psd.training.loop import Interrupted
    from psd.training.trouble import OutOfMemory, RankEnded
    from psd.training.watch import Diverged

    given, remedy = list(sys.argv[1:] if arguments is None else arguments), ""
    try:
        with _signals(), _traceback(DEBUG in given):
            try:
                options = parse(given)
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            remedy = options.remedy
            with _one_process_speaks():
                COMMANDS[options.command](options)
            sys.stdout.flush()  # here, where what hinders it gets its line
    except Refused as error:
        code, line = 2, f"psd: error: {_one_line(error)}"
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # `psd report | head` has what it wanted
            return 141
        code, line = 2, f"psd: error: {_one_line(error)}" + (f"; once that is mended, {remedy}" if remedy else "")
    except (Diverged, Failed, OutOfMemory) as error:
        code, line = 1, f"psd: {_one_line(error)}"
    except (WorkerEnded, RankEnded) as error:
        code, line = 1, f"psd: {_one_line(error)}; {remedy}"
    except Interrupted as error:
        code, line = TRY_AGAIN, f"psd: {_one_line(error)}; {remedy}"
    except _Terminated:
        code, line = TRY_AGAIN, "psd: stopped by SIGTERM" + (f"; {remedy}" if remedy else "")
    except (KeyboardInterrupt, RuntimeError) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise  # Python below 3.12 makes a RuntimeError of a Ctrl-C that comes in a class's __set_name__
        code, line = 130, "\npsd: interrupted" + (f"; {remedy}" if remedy else "")
    else:
        return 0
    print(line, file=sys.stderr)
    return code


# --- commands


def _train(options: argparse.Namespace) -> None:
    if options.help:
        settings = list_settings(options.config, options.settings)
        print(f"{options.parser.format_help()}\n{settings}")
        return
    if options.config is None:
        raise Refused(f"CONFIG is missing: name a recipe ({config.recipes_in_brief()}) or a YAML file")
    from psd.training.fit import train

    run = config.from_dict(read_settings(options.config, options.settings))
    record = train(run)
    print(printable(Path(run.run.output) / f"{record.name}.json"))
    if record.epochs[-1].get("skipped"):
        print(f"files that could not be read, with others shown in their place: {record.epochs[-1]['skipped']}")
    _print_final(record.final, record.task)


def _compare(options: argparse.Namespace) -> None:
    settings = {"run.resume": "auto", **options.settings}
    if options.replicates:
        settings["data.replicate"] = "true"
    side_by_side = None if options.jobs is None and options.time_limit is None else options.jobs or 1
    tables = _run_comparison(
        options.config, settings, options.methods, options.seeds, options.fast, side_by_side, options.time_limit
    )
    _save_details(tables)


def _demo(options: argparse.Namespace) -> None:
    print("Two small networks learn to name drawn shapes from few images, with the same compute: one by")
    print("cross-entropy, one by patch swap. Each is then tested on new images. This takes minutes.\n")
    suits_both = {"optimizer.lr": "0.3"}  # RESULTS.md, "each method at its best batch and learning rate"
    settings = {"run.output": "runs/demo", **suits_both, **options.settings}
    _run_comparison("shapes", settings, ["cross_entropy", "patch_swap"], options.seeds or [0])


def _run_comparison(
    name: str,
    settings: Mapping[str, str],
    chosen: list[str] | None,
    seeds: list[int] | None,
    fast: bool | None = None,
    jobs: int | None = None,
    seconds: float | None = None,
) -> list[list[Path]]:
    """Train what is not trained yet, print a table for each budget, and return its records' files.

    `fast` is None for the demonstration, whose table does not tell of costs. `jobs` is None for runs in this process.
    """
    if "run.seed" in settings:
        raise Refused(f"run.seed {settings['run.seed']!r} is one seed; say which to train with --seeds 0 1 2")
    if fast:
        settings = {"run.output": "runs/fast", **settings}
    values = read_settings(name, settings)
    if any(key.startswith("budget.") for key in settings):  # then it is the only one
        values["compare"] = {key: value for key, value in values.get("compare", {}).items() if key != "budgets"}
    compared = comparison(values, chosen, seeds)
    for key in settings:
        own = [method["name"] for method in compared.methods if key in method]
        if own:
            raise Refused(f"{key} {settings[key]!r} would be ignored: in {name} {own[0]} has a value of its own")
    configs = (shortened(compared) if fast else compared).configs()
    if not configs:
        raise Refused(f"{name}: no methods or no seeds to compare; name some, as in --methods cutmix --seeds 0 1 2")
    from psd.reporting import plots
    from psd.reporting import tables as reporting
    from psd.training.fit import train
    from psd.training.jobs import train_all

    if jobs is None:
        for run in configs:
            train(run)
    else:
        train_all(configs, jobs, seconds, lambda line: print(line, flush=True))
    files = [Path(run.run.output) / f"{run.name}.json" for run in configs]
    print("\n" + reporting.report(files, costs=fast is not None))
    tables = []
    for records in reporting.groups(files):
        tables.append([Path(configs[0].run.output) / f"{record.name}.json" for record in records])
        figure = tables[-1][0].with_name("comparison.png")
        plots.save(plots.comparison(records), figure)
        print(f"Records: {printable(figure.parent)}\nFigure:  {printable(figure)}")
    return tables


def _save_details(tables: list[list[Path]]) -> None:
    """The numbers of every table beside its records, and the differences to cross-entropy as a figure."""
    from psd.files import write_atomically
    from psd.reporting import plots
    from psd.reporting import tables as reporting

    for files in tables:
        numbers, figure = files[0].with_name("comparison.csv"), files[0].with_name("forest.png")
        write_atomically(numbers, reporting.csv(files))
        print(f"Numbers: {numbers}")
        (records,) = reporting.groups(files)
        rows = reporting.by_method(records)
        if any(reporting.differences(rows, name) for name in rows if name != reporting.BASELINE):
            plots.save(plots.forest(records), figure)
            print(f"Forest:  {figure}")


def _evaluate(options: argparse.Namespace) -> None:
    from psd.data.loaders import measured
    from psd.data.normalisation import Normalisation
    from psd.training.checkpoints import load_model
    from psd.training.evaluation import meter
    from psd.training.fit import load_data, load_tune
    from psd.training.records import Record

    folder = options.run_folder
    model = load_model(folder)
    record = Record.read(folder.with_name(f"{folder.name}.json"))
    data = config.from_dict({"data": {**record.config.get("data", {}), "root": options.root}}).data
    network, task = record.config.get("model", {}), tasks.find(record.task)
    statistics = models.normalisation(record.model, network.get("weights"))
    how: dict[str, Any] = {"crop_size": data.crop_size, "workers": data.workers, "learns": task.learns}
    how["normalisation"] = None if statistics is None else Normalisation(*statistics)
    test, tune = measured(load_data(data)[1], **how), load_tune(data)
    if len(test.classes) != model.num_classes:
        raise Refused(
            f"{data.name} now has {len(test.classes)} classes, the network of {folder} knows {model.num_classes}; "
            "give the data that it was trained on"
        )
    fitted_on = None if tune is None else meter(model, measured(tune, **how), task)
    _print_final(meter(model, test, task).compute(fitted_on), record.task)


def _export(options: argparse.Namespace) -> None:
    from psd.training.export import ENDINGS, export

    run = options.run_folder
    file = options.output or run / f"exported{ENDINGS[options.format]}"
    made = export(run, file, options.format, pixels=not options.normalised, overwrite=options.overwrite)
    print(made if options.output else made.relative_to(Path.cwd()) if made.is_relative_to(Path.cwd()) else made)


def _push(options: argparse.Namespace) -> None:
    from psd.training.hub import push

    print(push(options.run_folder, options.repository, private=options.private))


def _bench(options: argparse.Namespace) -> None:
    from psd.training import bench

    run = config.from_dict(read_settings(options.config, options.settings))
    rates = bench.measure(run, options.seconds)
    if options.images is not None:
        rates = bench.for_images(rates, run, options.images)
    print(bench.describe(rates) + "\n\n" + bench.plan(rates, options.gpus, options.efficiency, options.price))


def _report(options: argparse.Namespace) -> None:
    from psd.files import write_atomically
    from psd.reporting import tables as reporting

    if bool(options.fill) == bool(options.paths):
        raise Refused("give either PATHs, such as results/, or --fill FILE, such as --fill README.md")
    if options.fill and options.figure:
        raise Refused("--figure is of the records under PATHs; give them in the place of --fill")
    if options.equal_epochs and not options.figure:
        raise Refused("--equal-epochs is of the figure; give --figure FILE, too")
    if options.fill:
        with refusing(f"{options.fill} is no text in UTF-8: "):
            text = options.fill.read_text(encoding="utf-8")
        write_atomically(options.fill, reporting.fill(text, options.fill.parent))
        print(f"{options.fill}: tables made anew")
    else:
        print(reporting.report(options.paths))
        if options.figure:
            from psd.reporting import plots

            records = [record for group in reporting.groups(options.paths) for record in group]
            drawn = plots.against_compute(plots.at_several_lengths(records), epochs=options.equal_epochs)
            plots.save(drawn, options.figure)
            print(f"\nFigure: {printable(options.figure)}")


def _data(options: argparse.Namespace) -> None:
    from psd.data import download

    if options.action == "get":
        if options.name is None:
            raise Refused("the name of a data set is missing: psd data get cifar100")
        download.get(options.name, options.root)
    elif options.action == "check":
        if options.name is not None:
            raise Refused(f"psd data check looks at all data sets; leave {options.name!r} out")
        rows = [("data set", "layout", "path", "state"), *download.check(options.root)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        near = did_you_mean(options.action, ("get", "check"))
        raise Refused(f"ACTION {options.action!r} is neither get nor check{near}")


def _env(options: argparse.Namespace) -> None:
    from psd.cli.environment import describe

    print(describe())


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "train": _train,
    "compare": _compare,
    "evaluate": _evaluate,
    "export": _export,
    "push": _push,
    "bench": _bench,
    "report": _report,
    "data": _data,
    "env": _env,
}


# --- signals


class _Terminated(BaseException):
    """SIGTERM came while nothing was trained; a training waits for the end of its step."""


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM is an exception; and so is Ctrl-C again, which was none while psd was loaded (psd/__init__.py)."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may say so
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)


# --- messages


@contextlib.contextmanager
def _traceback(wanted: bool) -> Iterator[None]:
    """Where an error comes from, before the line that says what it is."""
    try:
        yield
    except BaseException:
        if wanted:
            traceback.print_exc()
        raise


@contextlib.contextmanager
def _one_process_speaks() -> Iterator[None]:
    """Of the processes that a launcher has started, the first one prints results."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _print_final(final: dict[str, Any], task: str) -> None:
    known = [metric for metric in tasks.find(task).metrics if final.get(metric.name) is not None]
    print("   ".join([*(metric.text(final[metric.name]) for metric in known), f"n {final['n_test']}"]))


def _nobody_reads() -> bool:
    """Whether it is stdout whose reader has ended; what Python still flushes there at its end is dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")  # without its number
    return printable(" ".join(str(error).split()))


if __name__ == "__main__":
    sys.exit(main())
