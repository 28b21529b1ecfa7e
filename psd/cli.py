"""The command line: `psd COMMAND`, also `python -m psd COMMAND`.

Bad input ends with one line on stderr and exit code 2; a training that diverges with exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psd import config, methods
from psd.config import SECTIONS

OVERRIDES = "Any setting can be changed: --model.name resnet20 --budget.epochs 10. `psd train RECIPE --help` lists all."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from psd.training import Diverged

    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.command(options, rest)
    except (ValueError, OSError) as error:
        print(f"psd: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"psd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npsd: interrupted; `--run.resume auto` goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="psd", description="Self-distillation by intra-class patch swap: train, compare, report."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Any, text: str, example: str, overrides: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            epilog=f"example: {example}" + (f"\n\n{OVERRIDES}" if overrides else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=name != "train",
        )
        sub.set_defaults(command=command, overrides=overrides)
        return sub

    recipes = f"a recipe ({', '.join(config.recipe_names())}) or the path of a YAML file"

    demo = add("demo", _demo, "See patch swap beat cross-entropy on the embedded data, in minutes.", "psd demo", True)
    demo.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to train (default: 0)")

    train = add("train", _train, "Train one network.", "psd train shapes --run.seed 1 --method.name cutmix", True)
    train.add_argument("config", metavar="CONFIG", nargs="?", help=recipes)
    train.add_argument("-h", "--help", action="store_true", help="show every setting and exit")
    train.set_defaults(parser=train)

    compare = add(
        "compare",
        _compare,
        "Train methods x seeds at one budget; print one table and save one figure. Finished runs are not repeated.",
        "psd compare shapes --methods cross_entropy patch_swap --seeds 0 1 2",
        True,
    )
    compare.add_argument("config", metavar="CONFIG", help=recipes)
    compare.add_argument("--methods", nargs="+", metavar="NAME", help="methods to train (default: the recipe's)")
    compare.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to train (default: the recipe's)")

    evaluate = add(
        "evaluate",
        _evaluate,
        "Measure a trained network on its test images.",
        "psd evaluate runs/shapes/resnet8/128kpass/patch_swap-s0",
    )
    evaluate.add_argument("run", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument("--data.root", dest="root", metavar="PATH", help="folder of the data sets")

    report = add("report", _report, "Print the tables of records.", "psd report results/cifar100-small")
    report.add_argument("paths", metavar="PATH", nargs="*", help="records, or folders of them")
    report.add_argument(
        "--fill", metavar="FILE", help="instead: rewrite the tables between this file's 'psd report' comments"
    )

    data = add("data", _data, "Get data sets, or say which are there.", "psd data get cifar100")
    data.add_argument("action", choices=("get", "check"))
    data.add_argument("name", nargs="?", help="data set to get")
    data.add_argument("--root", metavar="PATH", help="folder of the data sets (default: PSD_DATA, else ./data)")
    return parser


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    if options.help:
        options.parser.print_help()
        print("\nsettings, with their defaults:\n")
        values = config.read_yaml(options.config) if options.config else {"method": {"name": "patch_swap"}}
        _settings_parser(values["method"]["name"]).print_help()
        return
    if options.config is None:
        raise ValueError(f"CONFIG is missing: name a recipe ({', '.join(config.recipe_names())}) or a YAML file")
    from psd.training import train

    run = config.from_dict(read_settings(options.config, rest))
    record = train(run)
    print(f"{Path(run.run.output) / record.name}.json")
    _print_final(record.final)


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    values = read_settings(options.config, ["--run.resume", "auto", *rest])
    _run_comparison(config.comparison(values, options.methods, options.seeds))


def _demo(options: argparse.Namespace, rest: list[str]) -> None:
    print("Two small networks learn 16 classes of drawn shapes from 50 images each, with the same compute:")
    print("one by cross-entropy, one by patch swap. Each is then tested on 2,000 new images.\n")
    values = read_settings("shapes", ["--run.output", "runs/demo", *rest])
    _run_comparison(config.comparison(values, seeds=options.seeds))


def _run_comparison(comparison: config.Comparison) -> None:
    from psd import plots
    from psd.reporting import report
    from psd.training import train

    configs = comparison.configs()
    files = []
    for run in configs:
        record = train(run)
        files.append(Path(run.run.output) / f"{record.name}.json")
    print("\n" + report(files))
    from psd.records import Record

    figure = files[0].parent / "comparison.png"
    plots.save(plots.comparison([Record.read(file) for file in files]), figure)
    print(f"Records: {files[0].parent}\nFigure:  {figure}")


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from psd.evaluation import evaluate
    from psd.records import Record
    from psd.training import load_data, load_model

    folder = Path(options.run)
    model = load_model(folder)
    record = Record.read(folder.parent / f"{folder.name}.json")
    run = config.from_dict(config.merge(record.config, {"data": {"root": options.root}, "run": {"output": "runs"}}))
    _, test = load_data(run.data)
    _print_final(dataclasses.asdict(evaluate(model, test)))


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    from psd import reporting
    from psd.records import write_atomically

    if options.fill:
        file = Path(options.fill)
        write_atomically(file, reporting.fill(file.read_text(), file.parent))
        return
    if not options.paths:
        raise ValueError("PATH is missing: name a record or a folder of records, such as results/")
    print(reporting.report(options.paths))


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    from psd.data import download

    if options.action == "check":
        rows = [("data set", "layout", "path", "state"), *download.check(options.root)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    elif options.name is None:
        raise ValueError("the name of a data set is missing: psd data get cifar100")
    else:
        download.get(options.name, options.root)


def read_settings(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's or YAML file's nested dict with `--key value` overrides, all values of the right type.

    Raises:
        ValueError: naming the key and, for an unknown one, the nearest known one.
    """
    values = config.read_yaml(name)
    method = _override(overrides, "--method.name") or values.get("method", {}).get("name")
    if method is None:
        raise ValueError(f"method.name is missing; known: {', '.join(methods.names())}")
    values = config.merge(values, {"method": {"name": method}})
    for argument in overrides:
        if argument.startswith("--"):
            config.check_key(argument[2:].partition("=")[0], method)
    parser = _settings_parser(method)
    try:
        recipe = {key: value for key, value in values.items() if key != "compare"}
        typed = parser.parse_args(list(overrides), namespace=parser.parse_object(recipe)).as_dict()
    except argparse.ArgumentError as error:
        raise ValueError(_plain(str(error))) from None
    return {**typed, **{key: value for key, value in values.items() if key == "compare"}}


def _settings_parser(method: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="psd train CONFIG", exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_argument("--method.name", type=str, default=method)
    for name, section in {**SECTIONS, "method": methods.find(method)}.items():
        parser.add_class_arguments(section, name)
        group = (parser.groups or {})[name]
        group.title, group.description = name, (section.__doc__ or "").strip()
    return parser


def _override(overrides: Sequence[str], key: str) -> str | None:
    """The last value given to `key`, as `--key value` or `--key=value`."""
    found = None
    for argument, following in zip(overrides, [*overrides[1:], ""], strict=True):
        if argument == key:
            found = following
        elif argument.startswith(f"{key}="):
            found = argument.partition("=")[2]
    return found


def _plain(message: str) -> str:
    """jsonargparse's message as one line: the key, what was expected, and the value that was given."""
    line = " ".join(message.replace("Parser key ", "").split())
    for verbose in ("<class '", "'>", "typing.", "Does not validate against any of the Union subtypes "):
        line = line.replace(verbose, "")
    return line.replace('"', "'")


def _print_final(final: dict[str, Any]) -> None:
    top5 = "" if final["top5"] is None else f"top-5 {final['top5']:.2f} %   "
    print(f"top-1 {final['top1']:.2f} %   {top5}NLL {final['nll']:.4f}   ECE {final['ece']:.4f}   n {final['n_test']}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
