"""The command line: `psd COMMAND`, also `python -m psd COMMAND`.

Bad input ends with one line on stderr and exit code 2, a training that diverges or loses a worker process with exit
code 1, Ctrl-C with 130.
SIGTERM in a training writes a checkpoint and ends with 75, "try again", upon which a batch system can requeue the job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from psd import models, tasks
from psd.checks import Refused, did_you_mean
from psd.cli.settings import at_home, list_settings, read_settings
from psd.training import config
from psd.training.comparison import comparison, shortened
from psd.training.processes import TRY_AGAIN

OVERRIDES = (
    "Any setting can be changed: --model.name resnet20 --optimizer.lr 0.05; null stands for no value.\n"
    "`psd train CONFIG --help` lists all settings with their values in that recipe or file."
)
TRAINS = ("demo", "train", "compare", "bench")
GO_ON = "the same command with `--run.resume auto` goes on from the last checkpoint"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; SystemExit(0) after `--help`."""
    from psd.data.decoding import WorkerEnded
    from psd.training.jobs import Failed
    from psd.training.loop import Interrupted
    from psd.training.watch import Diverged

    remedy = ""
    try:
        options = _parse(list(sys.argv[1:] if arguments is None else arguments))
        remedy = options.remedy
        with _one_process_speaks():
            options.run(options)
    except (Refused, OSError) as error:
        print(f"psd: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (Diverged, Failed, WorkerEnded) as error:
        print(f"psd: {_one_line(error)}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"psd: {_one_line(error)}; {remedy}", file=sys.stderr)
        return TRY_AGAIN
    except KeyboardInterrupt:
        print("\npsd: interrupted" + (f"; {remedy}" if remedy else ""), file=sys.stderr)
        return 130
    return 0


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
    print(Path(run.run.output) / f"{record.name}.json")
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
    settings = {"run.output": "runs/demo", **options.settings}
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
        print(f"Records: {figure.parent}\nFigure:  {figure}")
    return tables


def _save_details(tables: list[list[Path]]) -> None:
    """The numbers of every table beside its records, and the differences to cross-entropy as a figure."""
    from psd.reporting import plots
    from psd.reporting import tables as reporting
    from psd.training.records import write_atomically

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
    from psd.reporting import tables as reporting
    from psd.training.records import write_atomically

    if bool(options.fill) == bool(options.paths):
        raise Refused("give either PATHs, such as results/, or --fill FILE, such as --fill README.md")
    if options.fill:
        write_atomically(options.fill, reporting.fill(options.fill.read_text(encoding="utf-8"), options.fill.parent))
        print(f"{options.fill}: tables made anew")
    else:
        print(reporting.report(options.paths))


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
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        near = did_you_mean(options.action, ("get", "check"))
        raise Refused(f"ACTION {options.action!r} is neither get nor check{near}")


def _env(options: argparse.Namespace) -> None:
    from psd.cli.environment import describe

    print(describe())


# --- arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line in place of the usage and a line."""
        raise Refused(f"{message}; see `{self.prog} --help`")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for.

    `run` is the command's function, `settings` the text given to each dotted key, `remedy` what to do after Ctrl-C.
    """
    parser, commands = _parsers()
    first = arguments[0] if arguments else None
    if first is None:
        raise Refused(f"COMMAND is missing: {', '.join(commands)}; begin with `psd demo`, or see `psd --help`")
    if first not in commands and not first.startswith("-"):
        raise Refused(f"COMMAND {first!r} is none of {', '.join(commands)}{did_you_mean(first, commands)}")
    settings: dict[str, str] = {}
    keys: list[str] = []
    if first in TRAINS:
        arguments, settings = _split(arguments)
        keys = [f"--{key}" for key in config.known_keys("patch_swap")]
    options, rest = parser.parse_known_args(arguments)
    if rest:
        given = rest[0].partition("=")[0]
        known = re.findall(r"^ +(?:-\w, )?(--[\w.]+)", commands[options.command].format_help(), re.MULTILINE)
        hint = did_you_mean(given, [*known, *keys]) or f"; see `psd {options.command} --help`"
        raise Refused(f"psd {options.command}: unexpected {given!r}{hint}")
    options.settings = settings
    return options


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The settings (`--section.key value`, `--section.key=value`), wherever they stand, apart from the rest."""
    rest: list[str] = []
    settings: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        if not re.match(r"--\w+\.", argument):
            rest.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        settings[key] = value if equals else next(left, "--")
        if settings[key].startswith("--"):
            raise Refused(f"{key} has no value; give it one, as in --{key} VALUE")
    return rest, settings


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="psd",
        description="Self-distillation by intra-class patch swap: train, compare, report.",
        epilog="example: psd demo",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    recipes = f"a recipe ({config.recipes_in_brief()}) or the path of a YAML file"

    def add(name: str, run: Any, text: str, example: str, remedy: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            usage=f"psd {name} CONFIG [--key value ...]" if name == "train" else None,
            epilog=f"example: {example}" + (f"\n\n{OVERRIDES}" if name in TRAINS else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=name != "train",
        )
        sub.set_defaults(run=run, remedy=remedy)
        return sub

    def of_run(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("run_folder", metavar="RUN", type=_run_folder, help="folder of a finished run, or its record")

    demo = add("demo", _demo, "See patch swap and cross-entropy on the embedded data, in minutes.", "psd demo", GO_ON)
    demo.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to train (default: 0)")

    train = add("train", _train, "Train one network.", "psd train shapes --run.seed 1 --method.name cutmix", GO_ON)
    train.add_argument("config", metavar="CONFIG", nargs="?", help=recipes)
    train.add_argument("-h", "--help", action="store_true", help="show every setting and exit")
    train.set_defaults(parser=train)

    compare = add(
        "compare",
        _compare,
        "Train methods x seeds x budgets; print a table, save figures and numbers. Finished runs are not repeated.",
        "psd compare shapes --methods cross_entropy patch_swap --seeds 0 1 2",
        "the same command goes on from the last checkpoint",
    )
    compare.add_argument("config", metavar="CONFIG", help=recipes)
    compare.add_argument("--methods", nargs="+", metavar="NAME", help="methods to train (default: the recipe's)")
    compare.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to train (default: the recipe's)")
    compare.add_argument(
        "--fast", action="store_true", help="a few steps of two seeds each, under runs/fast: to see that all of it runs"
    )
    compare.add_argument(
        "--replicates",
        action="store_true",
        help="every seed draws classes and training images of its own (data.replicate), so that intervals cover the "
        "choice of images too",
    )
    compare.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs side by side, each a process with its share of the threads or GPUs; a line per run as it ends",
    )
    compare.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="stop after that time, with a checkpoint and exit code 75; the same command goes on",
    )

    evaluate = add(
        "evaluate",
        _evaluate,
        "Measure a trained network on its test images.",
        f"psd evaluate runs/{config.recipe('shapes').name}",
    )
    of_run(evaluate)
    evaluate.add_argument("--data.root", dest="root", metavar="PATH", type=at_home, help="folder of the data sets")

    export = add(
        "export",
        _export,
        "Write a trained network into a file that other programs read.",
        f"psd export runs/{config.recipe('shapes').name} --format onnx",
    )
    of_run(export)
    export.add_argument(
        "--format",
        choices=("safetensors", "onnx", "torch_export"),
        default="onnx",
        help="weights alone, or the whole network for onnxruntime or for torch.export.load (default: onnx)",
    )
    export.add_argument("--output", metavar="FILE", type=_path, help="file to write (default: in the run's folder)")
    export.add_argument(
        "--normalised", action="store_true", help="the network takes normalised float32 images instead of uint8 pixels"
    )
    export.add_argument("--overwrite", action="store_true", help="let the file take the place of another")

    push = add(
        "push",
        _push,
        "Put a trained network on the Hugging Face hub, with a model card written from its record.",
        f"psd push runs/{config.recipe('shapes').name} me/my-network",
    )
    of_run(push)
    push.add_argument("repository", metavar="OWNER/NAME", help="model repository, made if it is not there")
    push.add_argument("--private", action="store_true", help="nobody else sees a repository that is made")

    bench = add(
        "bench",
        _bench,
        "Measure how fast this machine trains a recipe, what limits it, and what the whole run would take.",
        "psd bench imagenet/resnet50-patch_swap --gpus 1 8 64 --price 2.50",
    )
    bench.add_argument("config", metavar="CONFIG", help=recipes)
    bench.add_argument(
        "--gpus", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="devices to plan for (default: 1 8 64)"
    )
    bench.add_argument("--price", type=float, metavar="P", help="of one device for one hour, in any currency")
    bench.add_argument(
        "--efficiency",
        type=float,
        default=0.9,
        metavar="E",
        help="assumed rate of each of several devices, as a share of one alone (default: 0.9)",
    )
    bench.add_argument("--seconds", type=float, default=20, metavar="S", help="to measure, about (default: 20)")
    bench.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="training images to plan for, where those found are only a part (ImageNet has 1281167)",
    )

    report = add("report", _report, "Print the tables of records.", "psd report results/cifar100-small")
    report.add_argument("paths", metavar="PATH", nargs="*", type=_path, help="records, or folders of them")
    report.add_argument(
        "--fill",
        metavar="FILE",
        type=_path,
        help="instead: rewrite the tables between this file's 'psd report' comments",
    )

    data = add(
        "data",
        _data,
        "Get a data set, or check which are there.",
        "psd data get cifar100",
        "the same command goes on where it stopped",
    )
    data.add_argument("action", metavar="ACTION", help="get or check")
    data.add_argument("name", metavar="NAME", nargs="?", help="data set to get")
    data.add_argument(
        "--root", metavar="PATH", type=_path, help="folder of the data sets (default: PSD_DATA, else ./data)"
    )
    add("env", _env, "Print versions, machine and data, as an issue asks for them.", "psd env")
    return parser, dict(commands.choices)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _run_folder(text: str) -> Path:
    path = _path(text).resolve()
    return path.with_name(path.name.removesuffix(".json"))


# --- messages


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


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"  # without its number
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
