"""What may stand on the command line: commands, their options, and settings by their dotted keys."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from psd.checks import Refused, did_you_mean
from psd.cli.settings import at_home
from psd.training import config

OVERRIDES = (
    "Any setting can be changed: --model.name resnet20 --optimizer.lr 0.05; null stands for no value.\n"
    "`psd train CONFIG --help` lists all settings with their values in that recipe or file."
)
DEBUG = "--debug"  # may stand anywhere, before the command too
TRAINS = ("demo", "train", "compare", "bench")
GO_ON = "the same command with `--run.resume auto` goes on from the last checkpoint, or begins anew without one"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line in place of the usage and a line."""
        raise Refused(f"{message}; see `{self.prog} --help`")


def parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for.

    `command` is its name, `settings` the text given to each dotted key, `remedy` what to do after Ctrl-C.
    """
    parser, commands = _parsers()
    arguments = [argument for argument in arguments if argument != DEBUG]
    first = arguments[0] if arguments else None
    if first is None:
        raise Refused(f"COMMAND is missing: {', '.join(commands)}; begin with `psd demo`, or see `psd --help`")
    if first not in commands and not first.startswith("-"):
        raise Refused(f"COMMAND {first!r} is none of {', '.join(commands)}{did_you_mean(first, commands)}")
    settings: dict[str, str] = {}
    keys: list[str] = []
    if first in TRAINS:
        arguments, settings = split(arguments)
        keys = [f"--{key}" for key in config.known_keys("patch_swap")]
    options, rest = parser.parse_known_args(arguments)
    if rest:
        given = rest[0].partition("=")[0]
        known = re.findall(r"^ +(?:-\w, )?(--[\w.]+)", commands[options.command].format_help(), re.MULTILINE)
        hint = did_you_mean(given, [*known, *keys]) or f"; see `psd {options.command} --help`"
        raise Refused(f"psd {options.command}: unexpected {given!r}{hint}")
    options.settings = settings
    return options


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
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

    def add(name: str, text: str, example: str, remedy: str = "") -> argparse.ArgumentParser:
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
        sub.set_defaults(remedy=remedy)
        sub.add_argument(DEBUG, action="store_true", help="show the traceback of an error, too")
        return sub

    def of_run(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("run_folder", metavar="RUN", type=_run_folder, help="folder of a finished run, or its record")

    demo = add("demo", "See patch swap and cross-entropy on the embedded data, in minutes.", "psd demo", GO_ON)
    demo.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to train (default: 0)")

    train = add("train", "Train one network.", "psd train shapes --run.seed 1 --method.name cutmix", GO_ON)
    train.add_argument("config", metavar="CONFIG", nargs="?", help=recipes)
    train.add_argument("-h", "--help", action="store_true", help="show every setting and exit")
    train.set_defaults(parser=train)

    compare = add(
        "compare",
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
        type=_count,
        metavar="N",
        help="runs side by side, each a process with its share of the threads or GPUs; a line per run as it ends",
    )
    compare.add_argument(
        "--time-limit",
        type=_amount,
        metavar="SECONDS",
        help="stop after that time, with a checkpoint and exit code 75; the same command goes on",
    )

    evaluate = add(
        "evaluate",
        "Measure a trained network on its test images.",
        f"psd evaluate runs/{config.recipe('shapes').name}",
    )
    of_run(evaluate)
    evaluate.add_argument("--data.root", dest="root", metavar="PATH", type=at_home, help="folder of the data sets")

    export = add(
        "export",
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
        "Put a trained network on the Hugging Face hub, with a model card written from its record.",
        f"psd push runs/{config.recipe('shapes').name} me/my-network",
    )
    of_run(push)
    push.add_argument("repository", metavar="OWNER/NAME", help="model repository, made if it is not there")
    push.add_argument("--private", action="store_true", help="nobody else sees a repository that is made")

    bench = add(
        "bench",
        "Measure how fast this machine trains a recipe, what limits it, and what the whole run would take.",
        "psd bench imagenet/resnet50-patch_swap --gpus 1 8 64 --price 2.50",
    )
    bench.add_argument("config", metavar="CONFIG", help=recipes)
    bench.add_argument(
        "--gpus", type=_count, nargs="+", default=[1, 8, 64], metavar="N", help="devices to plan for (default: 1 8 64)"
    )
    bench.add_argument("--price", type=_amount, metavar="P", help="of one device for one hour, in any currency")
    bench.add_argument(
        "--efficiency",
        type=_share,
        default=0.9,
        metavar="E",
        help="assumed rate of each of several devices, as a share of one alone (default: 0.9)",
    )
    bench.add_argument("--seconds", type=_amount, default=20, metavar="S", help="to measure, about (default: 20)")
    bench.add_argument(
        "--images",
        type=_count,
        metavar="N",
        help="training images to plan for, where those found are only a part (ImageNet has 1281167)",
    )

    report = add("report", "Print the tables of records.", "psd report results/cifar100-small")
    report.add_argument("paths", metavar="PATH", nargs="*", type=_path, help="records, or folders of them")
    report.add_argument(
        "--fill",
        metavar="FILE",
        type=_path,
        help="instead: rewrite the tables between this file's 'psd report' comments",
    )
    report.add_argument(
        "--figure",
        metavar="FILE",
        type=_path,
        help="save a figure, too: methods that have run at two budgets or more, against image passes",
    )
    report.add_argument(
        "--equal-epochs",
        action="store_true",
        help="with --figure: against epochs, in which methods of pairs take twice the image passes",
    )

    data = add(
        "data",
        "Get a data set, or check which are there.",
        "psd data get cifar100",
        "the same command goes on where it stopped",
    )
    data.add_argument("action", metavar="ACTION", help="get or check")
    data.add_argument("name", metavar="NAME", nargs="?", help="data set to get")
    data.add_argument(
        "--root", metavar="PATH", type=_path, help="folder of the data sets (default: PSD_DATA, else ./data)"
    )
    add("env", "Print versions, machine and data, as an issue asks for them.", "psd env")
    return parser, dict(commands.choices)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    if _amount(text) > 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return float(text)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _run_folder(text: str) -> Path:
    path = _path(text).resolve()
    return path.with_name(path.name.removesuffix(".json"))
