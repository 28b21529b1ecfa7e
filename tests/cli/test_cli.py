"""The command line: every command, its help, and one clear line for every bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from psd import cli, methods, models
from psd.checks import Refused
from psd.cli.settings import read_settings
from psd.data import download, shapes
from psd.reporting import tables as reporting
from psd.training import checkpoints, config
from psd.training import fit as training
from psd.training.loop import Loop
from psd.training.records import Record

COMMANDS = ("demo", "train", "compare", "evaluate", "report", "data")
SHAPES = config.read_yaml("shapes")
TINY = [  # settings of `psd train shapes` that make it take a blink
    *("--data.size", "16", "--data.batch_size", "8", "--method.patch_size", "4", "--budget.image_passes", "48"),
    *("--run.progress", "false", "--run.device", "cpu"),
]
NAME = "photos-size8/resnet8/1ep/patch_swap-s0"  # the record of `psd train small.yaml`


@dataclass
class Done:
    """What a command left: its exit code, stdout and stderr."""

    code: Any
    out: str
    err: str


@pytest.fixture
def run(capsys) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's way to end after --help
            code = end.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """folder:PATH with two classes of 6 and 4 images, 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for c, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * c, 100 * c + 100, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def small(photos) -> Path:
    """A YAML file of a run that takes a blink."""
    settings = {
        "data": {"name": f"folder:{photos}", "size": 8, "batch_size": 4},
        "method": {"name": "patch_swap", "patch_size": 2, "p": 0.75},
        "budget": {"epochs": 1},
        "run": {"progress": False, "device": "cpu"},
        "compare": {"seeds": [0, 1], "methods": [{"name": "cross_entropy"}, {"name": "cutmix", "alpha": 0.5}]},
    }
    file = photos.parent / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def trained(small) -> Path:
    """The folder of a finished run of small.yaml; do not write into it."""
    output = small.parent / "trained"
    assert cli.main(["train", str(small), "--run.output", str(output)]) == 0
    return output / NAME


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> None:
    """Every test runs in its own empty folder, without the data sets of this machine, and with few test images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PSD_DATA", raising=False)
    draw = shapes.draw
    monkeypatch.setattr(shapes, "draw", lambda count, **rest: draw(min(count, 64), **rest))


def files() -> list[str]:
    """Every file below the current folder."""
    return sorted(path.as_posix() for path in Path().rglob("*") if path.is_file())


def assert_refused(done: Done, *words: str) -> None:
    """One line on stderr that holds the words, and exit code 2."""
    assert done.code == 2
    assert done.err.startswith("psd: error: ") and done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err


def final_line(record: dict[str, Any]) -> str:
    """The final metrics as `psd train` and `psd evaluate` print them; the tests' data has 2 classes, so no top-5."""
    final = record["final"]
    calibration = f"ECE {final['ece']:.3f}   overconfidence {final['overconfidence']:.3f}"
    return f"top-1 {final['top1']:.2f} %   NLL {final['nll']:.3f}   {calibration}   n {final['n_test']}\n"


def read(file: Path | str) -> dict[str, Any]:
    return json.loads(Path(file).read_text())


def example(help_text: str) -> list[str]:
    (line,) = (line for line in help_text.splitlines() if line.startswith("example: "))
    return shlex.split(line.removeprefix("example: "))


# --- help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_ends_well_and_explains(run, command, flag):
    done = run(command, flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: psd {command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_help_is_one_that_works(run, command):
    program, *arguments = example(run(command, "--help").out)
    assert program == "psd" and arguments[0] == command
    options = cli.arguments.parse(arguments)
    if options.settings:
        config.from_dict(read_settings(options.config, options.settings))


def test_the_example_of_evaluate_is_what_train_writes(run):
    assert example(run("evaluate", "--help").out)[2] == f"runs/{config.recipe('shapes').name}"


def test_help_lists_every_command(run):
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert all(f"\n    {command} " in done.out for command in COMMANDS)
    assert example(done.out) == ["psd", "demo"]


def test_the_settings_in_the_help_of_overrides_are_settings(run):
    _, settings = cli.arguments.split(
        [word.strip(";:,") for word in cli.arguments.OVERRIDES.split() if word != "--help"]
    )
    assert settings
    config.from_dict(read_settings("shapes", settings))


def test_no_command_names_the_commands(run):
    assert_refused(
        run(),
        "COMMAND is missing: demo, train, compare, evaluate, export, push, bench, report, data, env",
        "psd --help",
    )


def test_env_says_what_an_issue_asks_for_and_no_path(run):
    done = run("env")
    assert done.code == 0
    told = dict(line.split(": ", 1) for line in done.out.splitlines())
    assert told["torch"] == torch.__version__.partition("+")[0] and told["devices"].endswith("cpu")
    assert {"python", "system", "cores", "revision", "data shapes", "data cifar100 train"} <= told.keys()
    assert str(Path.home()) not in done.out and str(Path.cwd()) not in done.out


def test_ctrl_c_while_a_package_makes_its_classes_is_an_interruption(run, monkeypatch):
    class Late:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "env", lambda options: type("Made", (), {"late": Late()}))
    done = run("env")
    assert (done.code, done.err) == (130, "\npsd: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipe that ends so")
@pytest.mark.parametrize(
    "arguments",
    [["data", "check", "--root", "nowhere"], ["report", "results/shapes"], ["train", "shapes", "--help"], ["--help"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_reader_that_has_enough_ends_a_command_without_a_word(arguments):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does
    done = subprocess.run(
        [sys.executable, "-m", "psd", *arguments],
        **{"stdout": writing, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]},
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's device that is always full")
def test_an_output_that_takes_nothing_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "psd", "env"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "psd: error: [Errno 28] No space left on device\n")


def test_the_help_of_train_lists_every_setting_with_its_default(run):
    done = run("train", "--help")
    assert done.code == 0
    for section, options in config.Config().to_dict().items():
        for key, value in options.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            (line,) = (line for line in done.out.splitlines() if line.startswith(f"    --{section}.{key} "))
            assert line.removeprefix(f"    --{section}.{key}").strip().startswith(shown)


def test_the_help_of_train_with_a_recipe_shows_the_recipe_s_values(run):
    lines = [line.split()[:2] for line in run("train", "shapes", "--help").out.splitlines()]
    for section in ("data", "method", "budget"):
        for key, value in SHAPES[section].items():
            assert [f"--{section}.{key}", str(value)] in lines


def test_the_help_of_train_lists_the_options_of_the_chosen_method(run):
    out = run("train", "shapes", "--method.name", "cutmix", "--help").out
    assert "--method.alpha" in out and "--method.patch_size" not in out


def test_the_help_of_train_names_all_methods(run):
    (line,) = (line for line in run("train", "--help").out.splitlines() if line.startswith("    --method.name "))
    assert line.endswith(", ".join(methods.names()))


def test_the_help_of_train_works_for_a_file_without_a_method(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("run: {seed: 7}\n")
    done = run("train", "mine.yaml", "--help")
    assert done.code == 0 and ["--run.seed", "7"] in [line.split()[:2] for line in done.out.splitlines()]


def test_the_help_of_train_with_an_unknown_recipe_is_refused(run):
    assert_refused(run("train", "shapess", "--help"), "'shapess'", "did you mean 'shapes'?")


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # the command and its own options
        ("trian shapes", ["COMMAND 'trian'", "did you mean 'train'?"]),
        ("zzz", ["COMMAND 'zzz'", "demo, train, compare"]),
        ("--trian shapes", ["COMMAND", "psd --help"]),
        ("--verbose train shapes", ["unexpected '--verbose'", "did you mean '--debug'?"]),
        ("train", ["CONFIG is missing", "cifar100-small", "shapes"]),
        ("train shapes extra", ["unexpected 'extra'", "psd train --help"]),
        ("train shapes run.seed=1", ["unexpected 'run.seed'", "did you mean '--run.seed'?"]),
        ("train shapes --seed=1234567890", ["unexpected '--seed'", "did you mean '--run.seed'?"]),
        ("train shapes --hel", ["unexpected '--hel'", "did you mean '--help'?"]),
        ("compare", ["CONFIG", "psd compare --help"]),
        ("compare shapes --method cutmix", ["unexpected '--method'", "did you mean '--methods'?"]),
        ("compare shapes --seed 1", ["unexpected '--seed'", "did you mean '--seeds'?"]),
        ("compare shapes --seeds one", ["--seeds", "'one'", "psd compare --help"]),
        ("compare shapes --methods", ["--methods", "at least one", "psd compare --help"]),
        ("demo --seeds one", ["--seeds", "'one'", "psd demo --help"]),
        ("demo --run.sed 1", ["unknown key 'run.sed'", "did you mean 'run.seed'?"]),
        ("demo shapes", ["unexpected 'shapes'", "psd demo --help"]),
        ("evaluate", ["RUN", "psd evaluate --help"]),
        ("evaluate nowhere", ["nowhere", "the folder of a finished run"]),
        ("evaluate nowhere --data.roo x", ["unexpected '--data.roo'", "did you mean '--data.root'?"]),
        ("report", ["PATH", "--fill FILE"]),
        ("report nowhere", ["nowhere", "no such record or folder"]),
        ("report nowhere --fill README.md", ["PATH", "--fill FILE"]),
        ("report --fil README.md", ["unexpected '--fil'", "did you mean '--fill'?"]),
        ("report --fill nowhere.md", ["psd: error: nowhere.md: No such file"]),
        ("data", ["ACTION", "psd data --help"]),
        ("data gett cifar100", ["ACTION 'gett'", "get nor check", "did you mean 'get'?"]),
        ("data get", ["name of a data set is missing", "psd data get cifar100"]),
        ("data get cifr100", ["'cifr100'", "did you mean 'cifar100'?"]),
        ("data get shapes extra", ["unexpected 'extra'"]),
        ("data check cifar100", ["'cifar100'", "leave"]),
        ("data check --roo x", ["unexpected '--roo'", "did you mean '--root'?"]),
        # keys
        ("train shapes --optimizer.lrr 1", ["unknown key 'optimizer.lrr'", "did you mean 'optimizer.lr'?"]),
        ("train shapes --optimiser.lr=1", ["unknown key 'optimiser.lr'", "did you mean 'optimizer.lr'?"]),
        ("train shapes --run.res auto", ["unknown key 'run.res'", "did you mean 'run.resume'?"]),
        ("train shapes --method.alpha 1", ["unknown key 'method.alpha'"]),
        ("train shapes --method.name cutmix --method.patch_size 4", ["unknown key 'method.patch_size'"]),
        ("train shapes --run.seed", ["run.seed has no value"]),
        ("train shapes --run.seed --run.variant x", ["run.seed has no value"]),
        ("compare shapes --optimizer.lrr 1", ["unknown key 'optimizer.lrr'", "did you mean 'optimizer.lr'?"]),
        # names
        ("train shapess", ["CONFIG 'shapess'", "did you mean 'shapes'?"]),
        ("train missing.yaml", ["CONFIG 'missing.yaml'", "cifar100-small", "shapes"]),
        ("compare shapess", ["CONFIG 'shapess'", "did you mean 'shapes'?"]),
        ("train shapes --method.name patchswap", ["method.name 'patchswap'", "did you mean 'patch_swap'?"]),
        ("train shapes --model.name resnt8", ["model.name 'resnt8'", "did you mean 'resnet8'?"]),
        ("train shapes --data.name cifar10", ["'cifar10'", "did you mean 'cifar100'?"]),
        ("compare shapes --methods cutmx", ["method.name 'cutmx'", "did you mean 'cutmix'?"]),
        ("compare shapes --methods cutmix cutmix", ["cutmix-s0", "once"]),
        # values
        ("train shapes --budget.epochs ten", ["budget.epochs must be an integer or null, got 'ten'"]),
        ("train shapes --run.seed 1.5", ["run.seed must be an integer, got '1.5'"]),
        ("train shapes --run.seed -1", ["run.seed", ">= 0", "got -1"]),
        ("train shapes --run.seed null", ["run.seed must be an integer, got 'null'"]),
        ("train shapes --run.seed=", ["run.seed must be an integer, got ''"]),
        ("train shapes --optimizer.lr fast", ["optimizer.lr must be a number, got 'fast'"]),
        ("train shapes --optimizer.lr .inf", ["optimizer.lr", "inf"]),
        ("train shapes --optimizer.nesterov maybe", ["optimizer.nesterov must be true or false, got 'maybe'"]),
        ("train shapes --data.split fitt", ["data.split must be train or fit, got 'fitt'", "did you mean 'fit'?"]),
        ("train shapes --run.precision bf15", ["run.precision", "got 'bf15'", "did you mean 'bf16'?"]),
        ("train shapes --run.device gpu", ["run.device", "cuda", "'gpu'"]),
        ("train shapes --method.direction symetric", ["method.direction", "did you mean 'symmetric'?"]),
        ("train shapes --method.ratio uniforn", ["method.ratio", "'uniforn'", "did you mean 'uniform'?"]),
        ("train shapes --method.p 1.5", ["p must be", "got 1.5"]),
        ("train shapes --method.temperature 0", ["temperature must be", "> 0", "got 0"]),
        ("train shapes --budget.epochs 3 --budget.image_passes 90", ["epochs=3", "image_passes=90"]),
        ("train shapes --data.count 0", ["data.count", "got 0"]),
        ("train shapes --data.size 8", ["size", "16", "8"]),
        ("train shapes --data.classes 99", ["classes", "16", "99"]),
        ("train shapes --data.size 16 --data.batch_size 65", ["data.batch_size", "64 training images", "65"]),
        ("compare shapes --run.seed 3", ["run.seed '3'", "--seeds"]),
        ("demo --run.seed 3", ["run.seed '3'", "--seeds"]),
        ("demo --method.p 1.5", ["p must be", "got 1.5"]),
        # data that is not there
        ("train cifar100-small", ["CIFAR-100", "psd data get cifar100"]),
        ("train shapes --data.name cifar100 --data.root elsewhere", ["elsewhere", "psd data get cifar100"]),
        ("compare cifar100-small", ["CIFAR-100", "psd data get cifar100"]),
        ("train shapes --data.name folder:nowhere --data.size 8", ["nowhere", "<class>/<image>"]),
        ("train shapes --data.name imagenet --data.size 8", ["imagenet", "<class>/<image>"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, arguments, words):
    done = run(*arguments.split())
    assert_refused(done, *words)
    assert files() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--method.patch_size 3 --run.progress true", ["patch_size 3", "8 x 8"]),
        ("--method.patch_size 16", ["patch_size 16", "8 x 8"]),
        ("--run.resume nowhere", ["run.resume", "nowhere"]),
        ("--data.size null --data.crop_padding 2", ["data.crop_padding", "data.size"]),
        ("--data.count 5", ["count=5", "leave it out"]),
        ("--data.per_class 7", ["per_class", "6", "'ant'", "7"]),
        ("--data.per_class 1 --data.batch_size 1", ["class 0", "single image"]),
        ("--data.split fit --data.per_class 6", ["per_class", "5", "'ant'", "6"]),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused_before_anything_is_written(run, small, arguments, words):
    done = run("train", small, *arguments.split())
    assert_refused(done, *words)
    assert files() == []


def test_a_device_that_is_not_there_is_refused(run, small):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    assert_refused(run("train", small, "--run.device", "cuda"), "run.device 'cuda'", "'cpu'")
    assert files() == []


@pytest.fixture
def copied(photos, tmp_path) -> Path:
    """The images, to be spoiled."""
    return shutil.copytree(photos, tmp_path / "copied")


def test_an_unreadable_image_is_named(run, small, copied):
    broken = copied / "train" / "bee" / "3.png"
    broken.write_bytes(b"no image")
    assert_refused(run("train", small, "--data.name", f"folder:{copied}"), str(broken), "replace or remove it")
    assert not Path("runs").exists()


def test_a_class_without_images_is_named(run, small, copied):
    for file in (copied / "train" / "bee").iterdir():
        file.unlink()
    assert_refused(run("train", small, "--data.name", f"folder:{copied}"), str(copied / "train"), "bee")
    assert not Path("runs").exists()


def test_a_folder_without_classes_is_named(run, small, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "bare" / split).mkdir(parents=True)
    assert_refused(run("train", small, "--data.name", f"folder:{tmp_path / 'bare'}"), str(tmp_path / "bare"), "class")
    assert files() == []


@pytest.mark.parametrize("settings", [[], ["--data.split", "fit"]])
def test_a_class_with_a_single_image_is_refused(run, small, copied, settings):
    for file in list((copied / "train" / "bee").iterdir())[1:]:
        file.unlink()
    assert_refused(run("train", small, "--data.name", f"folder:{copied}", *settings), "class")
    assert not Path("runs").exists()


def test_a_class_with_a_single_image_is_enough_without_partners(run, small, copied):
    for file in list((copied / "train" / "bee").iterdir())[1:]:
        file.unlink()
    done = run("train", small, "--data.name", f"folder:{copied}", "--method.name", "cross_entropy")
    assert done.code == 0


def test_an_output_that_is_a_file_is_refused_before_training(run, small, tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("mine")
    monkeypatch.setattr(Loop, "_epoch", lambda *_: pytest.fail("it trains"))
    assert_refused(run("train", small), "runs")
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", ["mine.yaml", "YAML"]),
        ("- model", ["mine.yaml", "mapping"]),
        ("data: {nme: shapes}", ["unknown key 'data.nme'", "did you mean 'data.name'?"]),
        ("data: {split: fitt}", ["data.split", "'fitt'", "did you mean 'fit'?"]),
        ("run: {seed: one}", ["run.seed must be an integer, got 'one'"]),
        ("run: {variant: 3}", ["run.variant must be text or null, got 3"]),
        ("method: {name: patch_swap, p: [1]}", ["method.p must be a number, got [1]"]),
        ("method: {p: 0.5}", ["method.name is missing"]),
        ("compare: {seed: [1]}", ["compare.seed", "compare.seeds"]),
        ("compare: {methods: [{name: cutmix, p: 2}]}", ["method.p", "got 2"]),
        ("run: {seed: 1}", ["mine.yaml", "--methods"]),
    ],
)
def test_a_file_with_something_wrong_is_refused(run, tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    assert_refused(run("compare", "mine.yaml"), *words)
    assert files() == ["mine.yaml"]


# --- train


def test_train_writes_the_record_and_prints_its_path_and_the_final_metrics(run, small):
    done = run("train", small, "--run.output", "out")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"out/{NAME}.json\n{final_line(read(f'out/{NAME}.json'))}"
    assert files() == [f"out/{NAME}.json", f"out/{NAME}/metrics.jsonl", f"out/{NAME}/model.safetensors"]


def test_train_prints_top5_where_there_are_classes_enough(run):
    done = run("train", "shapes", *TINY, "--data.count", "32")
    file = done.out.splitlines()[0]
    assert f"   top-5 {read(file)['final']['top5']:.2f} %   " in done.out


def test_a_bar_shows_progress_on_stderr_alone(run, small):
    done = run("train", small, "--run.progress", "true")
    assert done.code == 0 and "patch_swap-s0" in done.err and done.out.count("\n") == 2


def test_overrides_may_stand_before_the_config_and_take_an_equals_sign(run, small):
    done = run("train", "--run.seed", 5, "--run.variant=a-b", small, "--optimizer.lr=1e-3", "--data.flip=null")
    assert done.out.startswith("runs/photos-size8/resnet8/1ep/patch_swap-a-b-s5.json\n")
    settings = read(done.out.splitlines()[0])["config"]
    assert settings["optimizer"]["lr"] == 0.001 and settings["data"]["flip"] is None
    assert settings["method"]["p"] == 0.75  # what is not overridden is the file's


def values(*arguments: object) -> dict[str, Any]:
    """The settings that `psd train` would use."""
    options = cli.arguments.parse(["train", *map(str, arguments)])
    return config.from_dict(read_settings(options.config, options.settings)).to_dict()


def test_the_last_of_two_overrides_of_one_key_counts():
    assert values("shapes", "--run.seed", 1, "--run.seed=2")["run"]["seed"] == 2


def test_a_value_may_hold_an_equals_sign_or_begin_with_a_dash():
    made = values("shapes", "--run.output=a=b", "--data.seed", "-1")
    assert (made["run"]["output"], made["data"]["seed"]) == ("a=b", -1)


def test_text_that_looks_like_a_number_stays_text():
    assert values("shapes", "--run.variant", "3")["run"]["variant"] == "3"


def test_another_method_drops_the_recipe_s_options_of_the_old_one():
    assert values("cifar100-small", "--method.name", "cutmix", "--method.p=0.25")["method"] == {
        "name": "cutmix",
        "alpha": 1.0,
        "p": 0.25,
    }


def test_the_same_method_keeps_the_recipe_s_options():
    made = values("shapes", "--method.name", SHAPES["method"]["name"], "--method.p", 0.125)["method"]
    assert made == {**config.recipe("shapes").to_dict()["method"], "p": 0.125}


def test_a_rectangular_patch_can_be_given():
    assert values("shapes", "--method.patch_size", "[4, 8]")["method"]["patch_size"] == [4, 8]


def test_epochs_take_the_place_of_image_passes_that_are_null():
    made = values("shapes", "--budget.epochs", 1, "--budget.image_passes", "null")
    assert made["budget"] == {"epochs": 1, "image_passes": None}


def test_a_recipe_s_settings_are_the_run_s():
    assert values("cifar100-small") == config.recipe("cifar100-small").to_dict()


def test_a_file_without_a_method_trains_the_default_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("run: {seed: 1}\n")
    assert values("mine.yaml")["method"] == config.Config().to_dict()["method"]
    assert values("mine.yaml", "--method.p", 1)["method"] == {**config.Config().to_dict()["method"], "p": 1.0}


def test_yaml_may_write_numbers_as_yaml_does_not_read_them(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimizer: {lr: 1e-3}\n")  # text, to PyYAML
    assert values("mine.yaml")["optimizer"]["lr"] == 0.001


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.yaml").write_text("run: {output: ~/out, resume: ~/here}\ndata: {root: ~/data}\n")
    made = values("~/mine.yaml", "--data.name=folder:~/photos")
    assert made["run"]["output"] == os.path.expanduser("~/out") != "~/out"
    assert made["run"]["resume"] == os.path.expanduser("~/here")
    assert made["data"]["root"] == os.path.expanduser("~/data")
    assert made["data"]["name"] == "folder:" + os.path.expanduser("~/photos")


# --- training that does not come to its end


def test_a_training_that_diverges_ends_with_1_and_one_line(run, small):
    done = run("train", small, "--optimizer.lr", 1e30, "--budget.epochs", 3)
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("psd: ") and done.err.count("\n") == 1 and "Lower optimizer.lr" in done.err
    assert files() == []


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("arguments", ["train {small}", "demo"])
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(run, small, monkeypatch, arguments):
    monkeypatch.setattr(training, "train", interrupt)
    done = run(*arguments.format(small=small).split())
    assert done.code == 130
    assert done.err.startswith("\npsd: interrupted; the same command with `--run.resume auto` goes on from the last ")


def test_ctrl_c_of_a_comparison_says_that_the_same_command_goes_on(run, small, monkeypatch):
    monkeypatch.setattr(training, "train", interrupt)
    done = run("compare", small)
    assert (done.code, "the same command goes on" in done.err, "resume" in done.err) == (130, True, False)


def test_ctrl_c_of_a_download_does_not_speak_of_checkpoints(run, monkeypatch):
    monkeypatch.setattr(download, "get", interrupt)
    done = run("data", "get", "cifar100")
    assert (done.code, done.err) == (130, "\npsd: interrupted; the same command goes on where it stopped\n")


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Python leaves Ctrl-C alone where its parent ignores it, as shells do for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_ctrl_c_stopped_goes_on_to_the_same_result(run, small, monkeypatch, ctrl_c_is_heard):
    longer = ["--budget.epochs", 3, "--run.checkpoint_every", 1]
    run("train", small, *longer, "--run.output", "whole")
    save = checkpoints.save

    def save_and_press_ctrl_c(*arguments: Any) -> Path:
        monkeypatch.setattr(checkpoints, "save", save)
        path = save(*arguments)
        signal.raise_signal(signal.SIGINT)
        return path

    monkeypatch.setattr(checkpoints, "save", save_and_press_ctrl_c)
    assert run("train", small, *longer).code == 130
    assert not list(Path("runs").rglob("*.json"))
    first_epochs = []
    monkeypatch.setattr(Loop, "_epoch", noting(Loop._epoch, first_epochs))
    done = run("train", small, *longer, "--run.resume", "auto")
    name = NAME.replace("1ep", "3ep")
    assert done.code == 0 and len(first_epochs) == 2  # the first of three is not repeated
    assert read(f"runs/{name}.json")["final"] == read(f"whole/{name}.json")["final"]


def noting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The function, which leaves its arguments in `calls`."""

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return noted


# --- compare


@pytest.fixture
def trainings(monkeypatch) -> list[Any]:
    """A list that grows with every training that is not skipped."""
    calls: list[Any] = []
    monkeypatch.setattr(Loop, "run", noting(Loop.run, calls))
    return calls


def test_compare_trains_methods_times_seeds_and_saves_a_table_figures_and_numbers(run, small):
    done = run("compare", small, "--methods", "cross_entropy", "patch_swap", "--seeds", 0, 3)
    folder = Path("runs/photos-size8/resnet8/1ep")
    assert (done.code, done.err) == (0, "")
    records = sorted(file.name for file in folder.glob("*.json"))
    assert records == [f"{method}-s{seed}.json" for method in ("cross_entropy", "patch_swap") for seed in (0, 3)]
    assert reporting.report([folder], costs=True) in done.out and done.out.count("| method ") == 1
    names = {"Figure:  ": "comparison.png", "Numbers: ": "comparison.csv", "Forest:  ": "forest.png"}
    assert all(f"{word}{folder / name}\n" in done.out for word, name in names.items())
    assert [file for file in files() if file.endswith(".png")] == [
        str(folder / f"{n}.png") for n in ("comparison", "forest")
    ]
    for name in ("comparison.png", "forest.png"):
        with Image.open(folder / name) as figure:
            assert min(figure.size) > 100
    assert (folder / "comparison.csv").read_text() == reporting.csv([folder])


def with_two_budgets(recipe: Path) -> str:
    return recipe.read_text().replace("compare:\n", "compare:\n  budgets: [{epochs: 1}, {image_passes: 32}]\n")


def test_train_and_compare_take_a_file_that_extends_another(run, small):
    Path("mine.yaml").write_text(f"extends: {small}\nmethod: {{name: cutmix}}\ncompare: {{seeds: [1], methods: []}}\n")
    assert run("train", "mine.yaml").out.startswith(f"runs/{NAME.replace('patch_swap', 'cutmix')}.json\n")
    done = run("compare", "mine.yaml", "--run.output", "compared")
    assert done.code == 0
    assert [file.name for file in Path("compared").rglob("*-s*.json")] == ["cutmix-s1.json"]


def test_a_recipe_that_extends_what_there_is_not_is_refused(run):
    Path("mine.yaml").write_text("extends: shape\n")
    for command in ("train", "compare"):
        assert_refused(run(command, "mine.yaml"), "mine.yaml: extends 'shape' is neither", "did you mean 'shapes'?")


def test_compare_has_a_table_and_figures_for_every_budget(run, small):
    Path("two.yaml").write_text(with_two_budgets(small))
    done = run("compare", "two.yaml", "--seeds", 0)
    assert done.code == 0 and done.out.count("| method ") == 3  # the third has a column for each budget
    assert {file.parent.name for file in Path("runs").rglob("forest.png")} == {"1ep", "32pass"}


def test_a_budget_on_the_command_line_is_the_only_one(run, small):
    Path("two.yaml").write_text(with_two_budgets(small))
    assert run("compare", "two.yaml", "--seeds", 0, "--budget.image_passes", 16).code == 0
    assert {file.parent.name for file in Path("runs").rglob("*.json")} == {"16pass"}


def test_a_fast_comparison_of_all_methods_on_shapes_runs_to_its_end(run):
    done = run("compare", "compare/shapes", "--fast", "--run.progress", "false")
    assert done.code == 0, done.err
    listed = {row["name"] for row in config.read_yaml("compare/shapes")["compare"]["methods"]} | {"patch_swap"}
    (folder,) = {file.parent for file in Path("runs/fast").rglob("*.json")}
    assert {file.stem for file in folder.glob("*.json")} == {f"{name}-s{seed}" for name in listed for seed in (0, 1)}
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    again = run("compare", "compare/shapes", "--fast", "--run.progress", "false")
    assert again.out == done.out
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.json")} == before  # nothing is repeated


def test_compare_takes_methods_options_and_seeds_from_the_recipe(run, small):
    run("compare", small)
    records = {file.stem: read(file) for file in Path("runs").rglob("*.json")}
    assert set(records) == {f"{name}-s{seed}" for name in ("cross_entropy", "cutmix", "patch_swap") for seed in (0, 1)}
    assert records["cutmix-s1"]["config"]["method"]["alpha"] == 0.5


def test_compare_applies_overrides_to_every_run(run, small):
    run("compare", small, "--seeds", 0, "--optimizer.lr", 0.03)
    assert [read(file)["config"]["optimizer"]["lr"] for file in Path("runs").rglob("*.json")] == [0.03] * 3


def test_a_second_comparison_trains_nothing_and_prints_the_same(run, small, trainings):
    command = ["compare", small, "--methods", "cross_entropy", "patch_swap", "--seeds", 0]
    first = run(*command)
    assert len(trainings) == 2
    assert run(*command).out == first.out
    assert len(trainings) == 2


def test_a_comparison_trains_only_what_is_missing(run, small, trainings):
    run("compare", small, "--methods", "cross_entropy", "--seeds", 0)
    run("compare", small, "--methods", "cross_entropy", "--seeds", 0, 1)
    assert [made.plan.run.seed for (made,) in trainings] == [0, 1]


def test_a_comparison_can_be_made_to_train_again(run, small, trainings):
    command = ["compare", small, "--methods", "cross_entropy", "--seeds", 0]
    run(*command)
    run(*command, "--run.resume", "never")
    assert len(trainings) == 2


def test_a_comparison_refuses_the_records_of_other_settings(run, small):
    command = ["compare", small, "--methods", "cross_entropy", "--seeds", 0]
    run(*command)
    before = read("runs/photos-size8/resnet8/1ep/cross_entropy-s0.json")
    assert_refused(
        run(*command, "--optimizer.lr", 0.5), "optimizer.lr: 0.1 != 0.5", "--run.variant NAME", "--run.overwrite true"
    )
    assert read("runs/photos-size8/resnet8/1ep/cross_entropy-s0.json") == before


def test_a_comparison_of_listed_methods_needs_no_method_of_its_own(run, small):
    settings = yaml.safe_load(small.read_text())
    del settings["method"]
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    assert run("compare", "mine.yaml", "--seeds", 0).code == 0
    assert {file.stem for file in Path("runs").rglob("*.json")} == {"cross_entropy-s0", "cutmix-s0"}


def test_compare_refuses_a_bad_method_before_it_trains_the_others(run, small):
    assert_refused(run("compare", small, "--methods", "cross_entropy", "patchswap"), "'patchswap'", "'patch_swap'")
    assert files() == []


# --- evaluate


def test_evaluate_prints_the_record_s_final_metrics(run, trained):
    done = run("evaluate", trained)
    assert (done.code, done.err) == (0, "")
    assert done.out == final_line(read(f"{trained}.json"))


def test_evaluate_takes_the_record_in_place_of_the_folder(run, trained):
    assert run("evaluate", f"{trained}.json").out == run("evaluate", trained).out != ""


def test_evaluate_works_from_within_the_run_s_folder(run, trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert run("evaluate", ".").out == final_line(read(f"{trained}.json"))


def test_evaluate_writes_nothing(run, trained):
    before = sorted(trained.parent.rglob("*"))
    run("evaluate", trained)
    assert sorted(trained.parent.rglob("*")) == before and files() == []


def test_evaluate_normalises_as_the_run_s_weights_want_it(run):
    weights = models.build("torchvision:resnet18", 4).state_dict()
    save_file(weights, "weights.safetensors")
    network = ["--model.name", "torchvision:resnet18", "--model.weights", "weights.safetensors"]
    images = ["--data.classes", "4", "--data.count", "32"]
    file, metrics = run("train", "shapes", *TINY, *images, *network).out.splitlines()
    trained, evaluated = (re.findall(r"-?\d+\.?\d*", text) for text in (metrics, run("evaluate", file).out))
    # hardly trained, it has a large NLL, of which the last digit is one of rounding
    assert list(map(float, evaluated)) == pytest.approx(list(map(float, trained)), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        ["--data.count", "32"],
        ["--data.count", "24", "--data.classes", "2"],
        ["--data.per_class", "6", "--data.classes", "3", "--data.seed", "1", "--data.size=20"],
        ["--data.count", "32", "--data.split", "fit"],
    ],
)
def test_evaluate_measures_on_the_run_s_own_images(run, settings):
    file, metrics = run("train", "shapes", *TINY, *settings).out.splitlines()
    assert run("evaluate", file).out == metrics + "\n"


def test_evaluate_measures_a_subset_of_a_folder_s_classes(run, small, photos, copied):
    for split in ("train", "val"):
        shutil.copytree(photos / split / "ant", copied / split / "cat")
    settings = ["--data.name", f"folder:{copied}", "--data.classes", "2", "--data.split", "fit", "--data.size", "16"]
    file, metrics = run("train", small, *settings).out.splitlines()
    assert run("evaluate", file).out == metrics + "\n"


@pytest.fixture
def of_a_root(run, small, photos, tmp_path) -> tuple[Path, str]:
    """A run on data below a root, and what `psd train` printed of it; the root is moved away afterwards."""
    shutil.copytree(photos, tmp_path / "there" / "imagenet")
    file, metrics = run("train", small, "--data.name", "imagenet", "--data.root", "there").out.splitlines()
    (tmp_path / "there").rename(tmp_path / "moved")
    return tmp_path / file.removesuffix(".json"), metrics + "\n"


def test_evaluate_finds_the_data_under_the_root_it_is_given(run, of_a_root):
    folder, metrics = of_a_root
    assert run("evaluate", folder, "--data.root", "moved").out == metrics


def test_evaluate_finds_the_data_under_psd_data(run, of_a_root, monkeypatch):
    folder, metrics = of_a_root
    monkeypatch.setenv("PSD_DATA", "moved")
    assert run("evaluate", folder).out == metrics


def test_evaluate_refuses_a_run_whose_data_is_not_there(run, of_a_root):
    folder, _ = of_a_root
    assert_refused(run("evaluate", folder, "--data.root", "there"), "there")


def test_evaluate_refuses_data_of_other_classes(run, small, copied):
    file = run("train", small, "--data.name", f"folder:{copied}").out.splitlines()[0]
    for split in ("train", "val"):
        shutil.copytree(copied / split / "ant", copied / split / "cat")
    assert_refused(run("evaluate", file), str(copied), "3 classes", "knows 2")


def test_evaluate_refuses_a_record_without_weights(run, trained):
    shutil.copy(f"{trained}.json", "alone.json")
    assert_refused(run("evaluate", "alone.json"), "alone", "the folder of a finished run")


def test_evaluate_refuses_weights_without_a_record(run, trained):
    shutil.copytree(trained, "alone")
    assert_refused(run("evaluate", "alone"), "alone.json", "not readable as a record")


# --- report


def test_report_prints_the_tables_of_what_it_is_given(run, trained):
    done = run("report", f"{trained}.json")
    assert (done.code, done.err) == (0, "")
    assert done.out == reporting.report([f"{trained}.json"]) + "\n" and "| patch_swap |" in done.out


def test_report_takes_several_paths(run, trained):
    record = Record.read(f"{trained}.json")
    record.name, record.seed = record.name.replace("-s0", "-s1"), 1
    record.config["run"]["seed"] = 1
    record.write("other.json")
    assert "over seeds 0, 1" in run("report", f"{trained}.json", "other.json").out


@pytest.mark.parametrize("text", ["nothing", "{}", '{"schema": 1}', "[1]"])
def test_report_refuses_a_file_that_is_no_record(run, text):
    Path("mine.json").write_text(text)
    assert_refused(run("report", "mine.json"), "mine.json", "record")
    assert_refused(run("report", "."), "mine.json", "record")


def test_report_refuses_an_empty_folder(run):
    assert_refused(run("report", "."), "no records")


def filled(trained: Path, table: str = "old\n", end: str = "<!-- end of psd report -->\n") -> str:
    return f"before\n<!-- psd report {trained}.json -->\n{table}{end}after\n"


def test_report_fill_makes_the_tables_of_a_file_anew_in_place(run, trained):
    Path("mine.md").write_text(filled(trained))
    done = run("report", "--fill", "mine.md")
    assert (done.code, done.out, done.err) == (0, "mine.md: tables made anew\n", "")
    assert Path("mine.md").read_text() == filled(trained, f"\n{reporting.report([f'{trained}.json'])}\n")
    assert files() == ["mine.md"]


def test_report_fill_of_a_filled_file_changes_nothing(run, trained):
    Path("mine.md").write_text(filled(trained))
    run("report", "--fill", "mine.md")
    once = Path("mine.md").read_bytes()
    run("report", "--fill", "mine.md")
    assert Path("mine.md").read_bytes() == once


def test_report_fill_looks_for_records_beside_the_file(run, trained):
    Path("page").mkdir()
    shutil.copy(f"{trained}.json", "page/beside.json")
    Path("page/mine.md").write_text(filled(Path("beside")))
    assert run("report", "--fill", "page/mine.md").code == 0
    assert reporting.report(["page/beside.json"]) in Path("page/mine.md").read_text()


@pytest.mark.parametrize("what", ["no end", "no comment", "no record"])
def test_report_fill_leaves_a_file_alone_that_it_cannot_fill(run, trained, what):
    texts = {"no end": filled(trained, end=""), "no comment": "text\n", "no record": filled(Path("nowhere"))}
    Path("mine.md").write_text(texts[what])
    assert_refused(run("report", "--fill", "mine.md"))
    assert Path("mine.md").read_text() == texts[what] and files() == ["mine.md"]


def at_two_lengths(trained: Path) -> list[str]:
    """Records of two methods, each at the image passes of the trained run and at twice as many."""
    for method in ("cross_entropy", "patch_swap"):
        for factor in (1, 2):
            record = Record.read(f"{trained}.json")
            passes = record.image_passes * factor
            record.config["budget"], record.image_passes = {"epochs": None, "image_passes": passes}, passes
            record.config["method"], record.epochs = {"name": method}, record.epochs * factor
            record.name = f"{record.data}/{record.model}/{passes}pass/{method}-s0"
            record.write(f"{method}-{passes}.json")
    return sorted(str(file) for file in Path().glob("*.json"))


def test_report_saves_a_figure_of_methods_at_several_budgets(run, trained):
    given = at_two_lengths(trained)
    done = run("report", *given, "--figure", "mine.png")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{reporting.report(given)}\n\nFigure: mine.png\n"
    with Image.open("mine.png") as image:
        assert image.width > 1000
    assert run("report", *given, "--figure", "epochs.png", "--equal-epochs").code == 0
    assert Path("epochs.png").read_bytes() != Path("mine.png").read_bytes()


def test_report_refuses_a_figure_of_one_budget_and_one_beside_fill(run, trained):
    assert_refused(run("report", f"{trained}.json", "--figure", "mine.png"), "two lengths")
    Path("mine.md").write_text(filled(trained))
    assert_refused(run("report", "--fill", "mine.md", "--figure", "mine.png"), "--figure")
    assert_refused(run("report", f"{trained}.json", "--equal-epochs"), "--figure")
    assert files() == ["mine.md"] and Path("mine.md").read_text() == filled(trained)


# --- data


def test_data_check_has_a_row_for_every_data_set(run):
    done = run("data", "check")
    assert (done.code, done.err) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["data", "set", "layout", "path", "state"]
    assert [row.split("  ")[0] for row in rows] == [row.data for row in download.check()]
    assert "psd data get cifar100" in done.out


def test_data_check_looks_under_the_root_it_is_given(run, photos):
    shutil.copytree(photos, "there/imagenet")
    assert "ok (2 class folders" in run("data", "check", "--root", "there").out
    assert "ok (2 class folders" not in run("data", "check").out


def test_data_get_of_drawn_data_downloads_nothing(run):
    done = run("data", "get", "shapes")
    assert (done.code, done.err) == (0, "") and "nothing to download" in done.out
    assert files() == []


def test_data_get_passes_the_root_on(run):
    for name in ("imagenet", "tiny-imagenet"):
        assert str(Path("there") / name / "{train,val}") in run("data", "get", name, "--root", "there").out


def test_data_get_that_fails_is_one_line(run, monkeypatch):
    def fail(*_: object) -> None:
        raise Refused("https://somewhere could not be downloaded:\nno answer; run the command again later")

    monkeypatch.setattr(download, "_from_hub", fail)
    monkeypatch.setattr(download, "fetch", fail)
    assert_refused(run("data", "get", "cifar100"), "https://somewhere", "again later")
    assert files() == []


# --- demo


def test_demo_ends_with_a_table_and_a_figure(run):
    done = run("demo", *TINY, "--data.count", "32", "--run.output", "out")
    assert (done.code, done.err) == (0, "")
    (folder,) = Path("out").glob("*/*/*")
    assert done.out.count("| method ") == 1
    assert "\n| cross_entropy |" in done.out and "\n| patch_swap " in done.out
    assert done.out.endswith(f"Records: {folder}\nFigure:  {folder / 'comparison.png'}\n")
    assert (folder / "comparison.png").is_file()
    assert sorted(file.stem for file in folder.glob("*.json")) == ["cross_entropy-s0", "patch_swap-s0"]


def test_demo_writes_to_a_folder_of_its_own_and_takes_seeds(run, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(training, "train", noting(interrupt, asked))
    run("demo", "--seeds", 4)
    ((first,),) = asked
    assert (first.run.output, first.run.seed, first.data.name) == ("runs/demo", 4, "shapes")


# --- as a program


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "psd", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_python_m_psd_is_the_command_line():
    done = program("data", "get", "shapes")
    assert (done.returncode, done.stderr) == (0, "") and "nothing to download" in done.stdout


def test_python_m_psd_passes_the_exit_code_on(small):
    done = program("train", small, "--method.patch_size", 3, "--run.progress", "true")
    assert_refused(Done(done.returncode, done.stdout, done.stderr), "patch_size 3")
    assert files() == []
