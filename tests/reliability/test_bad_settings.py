"""Bad settings, flags, recipes, checkpoints and records: each is one line that says what is wrong, and nothing is
written. Bad images and annotations have a file of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from psd import cli
from psd.checks import Refused
from psd.cli.settings import read_settings
from psd.data import shapes
from psd.reporting import tables
from psd.training import checkpoints, config, hub
from psd.training.records import Record, check_whole

pytestmark = pytest.mark.usefixtures("one_thread", "few_images")

SEEN = "one line that names thing, value and remedy"
TINY = {
    "data": {"name": "shapes", "size": 16, "count": 32, "batch_size": 8},
    "method": {"name": "patch_swap", "patch_size": 4},
    "budget": {"epochs": 1},
    "run": {"progress": False, "device": "cpu", "output": "out"},
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PSD_DATA", raising=False)


@pytest.fixture(scope="module")
def few_images() -> Any:
    """Test sets of 64 images."""
    draw = shapes.draw
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shapes, "draw", lambda count, **rest: draw(min(count, 64), **rest))
        yield


@dataclass
class Trained:
    """A finished run, and the checkpoint that one of the same settings would go on from."""

    recipe: Path
    output: Path
    folder: Path
    checkpoint: Path

    @property
    def record(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_images) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    recipe = root / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    kept, remove = root / "checkpoint", checkpoints.remove

    def keep(path: Path) -> None:  # at the end of a run its checkpoints go
        if path.name == "checkpoints" and path.exists():
            shutil.copytree(checkpoints.every(path)[-1], kept)
        remove(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "remove", keep)
        every = ["--run.output", str(root / "out"), "--budget.epochs", "2", "--run.checkpoint_every", "1"]
        assert cli.main(["train", str(recipe), *every]) == 0
    (record,) = (root / "out").rglob("*.json")
    recipe.write_text(yaml.safe_dump({**TINY, "budget": {"epochs": 2}}))
    return Trained(recipe, root / "out", record.with_suffix(""), kept)


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """`refused(arguments, words)`: the command ends with 2 and one line with these words, and writes nothing."""

    def refused(arguments: list[str], words: list[str]) -> str:
        before = files()
        capsys.readouterr()
        code = cli.main(arguments)
        err = capsys.readouterr().err
        assert code == 2, err
        assert err.startswith("psd: error: ") and err.count("\n") == 1 and err[:-1].isprintable(), err
        for word in words:
            assert word in err, err
        assert files() == before
        return err

    return refused


# --- settings on the command line: what is added to `psd train RECIPE`, and what the line holds

SETTINGS = {
    "--data.size 1000000": ["data.size", "<= 4096", "1000000"],
    "--data.size 0": ["data.size", ">= 1", "got 0"],
    "--data.size big": ["data.size", "an integer or null", "'big'"],
    "--data.count 1000000000000": ["data.count", "<= 10000000", "1000000000000"],
    "--data.count 1e3": ["data.count", "an integer", "'1e3'"],
    "--data.label_noise 1.5": ["data.label_noise", "<= 1", "1.5"],
    "--data.label_noise nan": ["data.label_noise", "a number", "nan"],
    "--data.label_noise x": ["data.label_noise", "a number", "'x'"],
    "--data.crop_padding -1": ["data.crop_padding", ">= 0", "-1"],
    "--data.crop_padding 1000000": ["data.crop_padding", "<= 4096", "1000000"],
    "--data.flip 2": ["data.flip", "true or false or null", "'2'"],
    "--data.workers -1": ["data.workers", ">= 0", "-1"],
    "--data.workers two": ["data.workers", "an integer or null", "'two'"],
    "--data.crop_size 0": ["data.crop_size", ">= 1", "got 0"],
    "--data.crop_scale 0": ["data.crop_scale", "> 0", "0.0"],
    "--data.crop_scale 2": ["data.crop_scale", "<= 1", "2.0"],
    "--data.verify maybe": ["data.verify", "true or false", "'maybe'"],
    "--data.replicate 3": ["data.replicate", "true or false", "'3'"],
    "--data.skip_corrupt no!": ["data.skip_corrupt", "true or false", "'no!'"],
    "--data.per_class 0": ["data.per_class", ">= 1", "got 0"],
    "--data.per_class x": ["data.per_class", "an integer or null", "'x'"],
    "--data.classes 1": ["num_classes", "at least 2", "1"],
    "--data.split test": ["data.split", "train or fit", "'test'"],
    "--data.batch_size 0": ["data.batch_size", ">= 1", "got 0"],
    "--data.seed x": ["data.seed", "an integer", "'x'"],
    "--data.name folder:": ["data.name", "'folder:PATH'"],
    "--data.name coco:x": ["x/annotations", "layout"],
    "--data.name voc:x": ["x/ImageSets", "layout"],
    "--data.name": ["data.name has no value", "--data.name VALUE"],
    "--task.name segment": ["task.name", "'segmentation'"],
    "--task.name segmentation": ["patch_swap", "segmentation", "cross_entropy"],
    "--task.name detection": ["patch_swap", "detection", "own_loss"],
    "--model.name @resnet8": ["model.name '@resnet8'", "fcn"],
    "--model.name fcn@fcn@resnet8": ["two heads", "fcn@resnet14"],
    "--model.name torchvision:resnet999": ["torchvision:resnet999", "did you mean"],
    "--model.name timm:nothing": ["timm:nothing", "Known"],
    "--model.name hub:x/y": ["hub:x/y", "Known"],
    "--model.weights nowhere.safetensors": ["model.weights", "nowhere.safetensors"],
    "--model.weights default": ["resnet8", "torchvision:resnet8"],
    "--model.options 3": ["model.options", "a mapping such as", "'3'"],
    "--model.freeze_backbone 7": ["model.freeze_backbone", "true or false", "'7'"],
    "--method.name kd": ["method.teacher is missing", "--method.teacher runs/..."],
    "--method.name kd --method.teacher nowhere": ["nowhere", "the folder of a finished run"],
    "--method.patch_size 0": ["method.patch_size", "positive integer", "got 0"],
    "--method.patch_size x": ["method.patch_size", "an integer or a list such as [4, 8]", "'x'"],
    "--method.patch_size [4,4,4]": ["method.patch_size", "a list such as [4, 8]", "[4,4,4]"],
    "--method.patch_size 5": ["method.patch_size 5", "16 x 16", "divisor"],
    "--method.before 3": ["method.before", "true or false", "'3'"],
    "--method.weight x": ["method.weight", "a number", "'x'"],
    "--method.p -0.1": ["method.p", "[0, 1]", "-0.1"],
    "--method.temperature inf": ["method.temperature", "inf"],
    "--method.direction both": ["method.direction", "symmetric", "'both'"],
    "--budget.epochs 0": ["budget.epochs", ">= 1", "got 0"],
    "--budget.epochs 1000000000000000000000": ["budget.epochs", "<= 1000000000000"],
    "--budget.image_passes 1e5": ["budget.image_passes", "an integer or null", "'1e5'"],
    "--budget.epochs null": ["epochs=None", "image_passes=None"],
    "--optimizer.name adam": ["optimizer.name", "did you mean 'adamw'?"],
    "--optimizer.lr -1": ["optimizer.lr", "> 0", "-1.0"],
    "--optimizer.lr 1e999": ["optimizer.lr", "finite", "inf"],
    "--optimizer.momentum 2": ["optimizer.momentum", "< 1", "2.0"],
    "--optimizer.weight_decay -1": ["optimizer.weight_decay", ">= 0", "-1.0"],
    "--optimizer.schedule linear": ["optimizer.schedule", "cosine or constant or multistep", "'linear'"],
    "--optimizer.milestones 0.5": ["optimizer.milestones", "a list such as [0.5, 0.75]", "'0.5'"],
    "--optimizer.milestones [2]": ["optimizer.milestones", "< 1", "(2.0,)"],
    "--optimizer.gamma 0": ["optimizer.gamma", "> 0", "0.0"],
    "--optimizer.warmup 1": ["optimizer.warmup", "< 1", "1.0"],
    "--optimizer.clip_norm 0": ["optimizer.clip_norm", "> 0", "0.0"],
    "--optimizer.decay_norms 3": ["optimizer.decay_norms", "true or false", "'3'"],
    "--optimizer.head_lr 0": ["optimizer.head_lr", "> 0", "0.0"],
    "--run.variant a/b": ["run.variant", "letters, digits", "'a/b'"],
    "--run.variant ../x": ["run.variant", "letters, digits", "'../x'"],
    "--run.output /dev/null": ["/dev/null"],
    "--run.output /proc/x": ["/proc/x"],
    "--run.overwrite 3": ["run.overwrite", "true or false", "'3'"],
    "--run.device tpu": ["run.device", "cpu, cuda or mps", "'tpu'"],
    "--run.precision fp16": ["run.precision", "did you mean 'bf16'?"],
    "--run.evaluate_every -1": ["run.evaluate_every", ">= 0", "-1"],
    "--run.checkpoint_every -1": ["run.checkpoint_every", ">= 0", "-1"],
    "--run.compile fast": ["run.compile", "reduce-overhead", "'fast'"],
    "--run.accumulate 0": ["run.accumulate", ">= 1", "got 0"],
    "--run.accumulate 3": ["data.batch_size 8", "3", "choose a multiple"],
    "--run.sync_batchnorm true": ["run.sync_batchnorm", "GPUs"],
    "--run.track nothing": ["run.track", "tensorboard", "'nothing'"],
    "--run.resume nowhere": ["run.resume", "nowhere", "--run.resume never"],
}


@pytest.mark.parametrize("given", SETTINGS)
def test_a_bad_setting_is_one_line(refused, tally, trained, given):
    if "sync_batchnorm" in given and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    shutil.copy(trained.recipe, "tiny.yaml")
    refused(["train", "tiny.yaml", *given.split()], SETTINGS[given])
    tally("Bad input", "settings", SEEN)


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\u202e", "\x00", "\udcff"])
@pytest.mark.parametrize("key", ["run.output", "data.root", "run.resume", "model.weights"])
def test_a_setting_with_a_control_character_is_one_line_that_shows_it(refused, tally, trained, key, text):
    shutil.copy(trained.recipe, "tiny.yaml")
    refused(["train", "tiny.yaml", f"--{key}", f"x{text}"], [key, "without control characters"])
    tally("Bad input", "settings", SEEN)


# --- flags of the commands

FLAGS = {
    "demo --seeds -1": ["run.seed", ">= 0", "-1"],
    "demo --seeds": ["--seeds", "at least one", "psd demo --help"],
    "demo --debugg": ["unexpected '--debugg'", "did you mean '--debug'?"],
    "compare shapes --jobs 0": ["--jobs", "at least 1", "'0'"],
    "compare shapes --jobs x": ["--jobs", "an integer", "'x'"],
    "compare shapes --jobs -2": ["--jobs"],
    "compare shapes --time-limit 0": ["--time-limit", "above 0", "'0'"],
    "compare shapes --time-limit nan": ["--time-limit", "above 0", "'nan'"],
    "compare shapes --time-limit soon": ["--time-limit", "a number", "'soon'"],
    "compare shapes --methods nothing": ["method.name 'nothing'"],
    "compare shapes --seeds 0 0": ["once"],
    "compare shapes --seeds -1": ["run.seed", ">= 0", "-1"],
    "compare shapes --replicates --data.seed 3": ["data.seed", "data.replicate", "leave data.seed out"],
    "bench shapes --gpus 0": ["--gpus", "at least 1", "'0'"],
    "bench shapes --gpus x": ["--gpus", "an integer", "'x'"],
    "bench shapes --price nan": ["--price", "above 0", "'nan'"],
    "bench shapes --efficiency 2": ["--efficiency", "at most 1", "'2'"],
    "bench shapes --efficiency 0": ["--efficiency", "above 0", "'0'"],
    "bench shapes --seconds 0": ["--seconds", "above 0", "'0'"],
    "bench shapes --seconds inf": ["--seconds", "above 0", "'inf'"],
    "bench shapes --images 0": ["--images", "at least 1", "'0'"],
    "bench nothing": ["CONFIG 'nothing'"],
    "bench": ["CONFIG", "psd bench --help"],
    "export": ["RUN", "psd export --help"],
    "export nowhere": ["nowhere", "the folder of a finished run"],
    "export nowhere --format tflite": ["--format", "tflite", "onnx"],
    "push": ["RUN", "psd push --help"],
    "push nowhere": ["OWNER/NAME", "psd push --help"],
    "push nowhere me": ["owner/name", "'me'"],
    "push nowhere me/x": ["nowhere", "the folder of a finished run"],
    "push nowhere ../x": ["nowhere"],
    "evaluate .": ["neither a model.safetensors"],
    "evaluate /dev/null": ["/dev/null"],
    "report /dev/null": ["/dev/null", "not readable as a record"],
    "report /dev/zero": ["/dev/zero", "larger than"],
    "report --fill": ["--fill", "psd report --help"],
    "report --fill .": ["."],
    "report --fill binary.md": ["binary.md", "UTF-8"],
    "data get shapes --rot x": ["--rot", "did you mean '--root'?"],
    "data put cifar100": ["ACTION 'put'"],
    "env x": ["unexpected 'x'"],
    "env --x": ["unexpected '--x'"],
}


@pytest.mark.parametrize("given", FLAGS)
def test_a_bad_flag_is_one_line(refused, tally, given):
    Path("binary.md").write_bytes(b"\xff\xfe")
    refused(given.split(), FLAGS[given])
    tally("Bad input", "flags", SEEN)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_traceback_is_shown_on_demand_wherever_that_is_said(capsys, place):
    arguments = ["train", "shapess"]
    arguments.insert(place, "--debug")
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and err.splitlines()[-1].startswith(
        "psd: error: CONFIG 'shapess'"
    )


# --- recipes

RECIPES = {
    "data: {size: [1, 2]}": ["data.size", "[1, 2]"],
    "data: {name: {a: 1}}": ["data.name", "text"],
    "data: 2020-99-99": ["bad.yaml", "month must be in 1..12"],
    "data: {classes: 2020-01-01}": ["data.classes", "an integer or null"],
    "model: {options: {1: 2}}": ["bad.yaml", "no text", "quotes"],
    "model: {options: [1]}": ["model.options", "a mapping such as"],
    "model: {name: 'timm:resnet18', options: {checkpoint_path: evil.pth}}": ["checkpoint_path", "model.weights"],
    "model: {name: 'torchvision:resnet18', options: {nothing: 1}}": ["model.options", "nothing"],
    "method: {name: [patch_swap]}": ["method.name must be a string", "patch_swap"],
    "method: {name: patch_swap, patch_size: {a: 1}}": ["method.patch_size", "{'a': 1}"],
    "run: {seed: 1}\nrun: {variant: x}": ["bad.yaml", "the key 'run' twice"],
    "run: &a {seed: *a}": ["bad.yaml", "an alias stands inside of what it names"],
    "1: 2": ["bad.yaml", "no text, '1'", "quotes"],
    "yes: {a: 1}": ["bad.yaml", "no text, 'yes'", "quotes"],
    "? [a]\n: b": ["bad.yaml", "no text"],
    "<<: 3": ["bad.yaml", "line 1", "mapping"],
    "!!python/object/apply:os.system ['true']": ["bad.yaml", "python/object"],
    "run: {seed: " + "1" * 6000 + "}": ["bad.yaml", "6000 digits", "30"],
    "[" * 40000: ["bad.yaml", "more than 20 levels deep"],
    "#" * 70000: ["bad.yaml", "larger than 65,536 bytes"],
    "data: [\x07]": ["bad.yaml", "special characters"],
    "extends: [shapes]": ["extends ['shapes'] is neither"],
    "extends: bad.yaml": ["circle"],
    "extends: /etc/passwd": ["a recipe is a mapping"],
    "compare: {methods: cutmix}": ["compare.methods", "a list of mappings", "'cutmix'"],
    "compare: {methods: [cutmix]}": ["compare.methods", "['cutmix']"],
    "compare: {seeds: 3}": ["compare.seeds", "a list of integers", "3"],
    "compare: {seeds: [a], methods: [{name: cutmix}]}": ["run.seed", "'a'"],
    "compare: {budgets: 3}": ["compare.budgets", "a list of mappings"],
    "compare: {methods: [{name: cutmix, run.seed: 3}]}": ["compare.methods", "data, model, optimizer"],
    "compare: {methods: [{name: kd, teacher: '{nothing}'}]}": ["{nothing}", "{output}"],
    "compare: {methods: [{name: kd, teacher: '{seed:>999999999999}'}]}": ["{seed:>999999999999}", "{output}"],
    "compare: {methods: [{name: kd, teacher: '{seed.__class__}'}]}": ["{seed.__class__}", "{output}"],
}


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text[:40])
def test_a_bad_recipe_is_one_line(refused, tally, text):
    Path("bad.yaml").write_text(text)
    refused(["compare" if text.startswith("compare") else "train", "bad.yaml"], RECIPES[text])
    tally("Bad input", "recipes", SEEN)


# --- checkpoints


def damaged(name: str, keep: int | None = None, content: bytes | None = None) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / name
        file.write_bytes(file.read_bytes()[:keep] if content is None else content)

    return spoil


def changed(**changes: Any) -> Callable[[Path], None]:
    """With other values in the state, or without those of None."""

    def spoil(path: Path) -> None:
        state = {**torch.load(path / "state.pt", weights_only=True), **changes}
        torch.save({key: value for key, value in state.items() if value is not None}, path / "state.pt")

    return spoil


def of_another_network(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3, 3)}, path / "model.safetensors")


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "weights cut short": (damaged("model.safetensors", 100), ["no readable checkpoint", "Remove it"]),
    "weights of half the length": (damaged("model.safetensors", -2000), ["no readable checkpoint", "Remove it"]),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), ["model.safetensors", "Remove it"]),
    "weights that are text": (damaged("model.safetensors", content=b"x" * 99), ["no readable checkpoint"]),
    "a state cut short": (damaged("state.pt", 100), ["no readable checkpoint", "--run.resume never"]),
    "a state of half the length": (damaged("state.pt", -2000), ["no readable checkpoint", "--run.resume never"]),
    "no state": (lambda path: (path / "state.pt").unlink(), ["state.pt", "Remove it"]),
    "an empty state": (damaged("state.pt", 0), ["no readable checkpoint", "--run.resume never"]),
    "a state that runs code": (damaged("state.pt", content=b"cos\nsystem\n(S'true'\ntR."), ["no readable checkpoint"]),
    "a state that is a list": (lambda path: torch.save([1], path / "state.pt"), ["lacks", "another version of psd"]),
    "of another version, without a step": (changed(step=None), ["lacks step", "another version of psd"]),
    "of another version, without its schedule": (changed(schedule=None), ["lacks schedule"]),
    "without settings": (changed(settings=None), ["lacks settings", "--run.resume never"]),
    "of another network": (of_another_network, ["not one of this network", "--run.resume never"]),
    "of another optimiser": (changed(optimizer={"a": 1}), ["not one of this network, optimiser"]),
    "of another method": (changed(method={"a": 1}), ["patch_swap", "['a']", "--run.resume never"]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_one_line(capsys, tally, trained, tmp_path, name):
    spoil, words = CHECKPOINTS[name]
    checkpoint = shutil.copytree(trained.checkpoint, "step-000000004")
    spoil(Path(checkpoint))
    assert cli.main(["train", str(trained.recipe), "--run.resume", checkpoint]) == 2
    err = capsys.readouterr().err
    assert err.startswith("psd: error: run.resume: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not [path for path in Path("out").rglob("*") if path.is_file()]
    tally("Bad input", "checkpoints", SEEN)


@pytest.mark.parametrize("setting", ["optimizer.lr 0.3", "data.batch_size 16", "method.p 0.25", "model.name resnet14"])
def test_a_checkpoint_of_another_configuration_names_the_key_and_both_values(capsys, tally, trained, setting):
    key, value = setting.split()
    shutil.copytree(trained.checkpoint, "step-000000004")
    assert cli.main(["train", str(trained.recipe), "--run.resume", "step-000000004", f"--{key}", value]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{key}: " in err and value in err and "--run.resume never" in err
    tally("Bad input", "checkpoints", SEEN)


def test_the_checkpoint_that_the_others_spoil_is_one_to_go_on_from(trained, capsys):
    shutil.copytree(trained.checkpoint, "step-000000004")
    assert cli.main(["train", str(trained.recipe), "--run.resume", "step-000000004"]) == 0


# --- weights of a finished run, which `psd evaluate`, `export`, `push` and a teacher read

HEADERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "no header": ({}, ["which model it holds"]),
    "an unknown network": ({"model": "resnet9", "classes": "16"}, ["model.name 'resnet9'"]),
    "no classes": ({"model": "resnet8"}, ["names no network"]),
    "classes that are no number": ({"model": "resnet8", "classes": "many"}, ["names no network", "'many'"]),
    "more classes than memory holds": ({"model": "resnet8", "classes": "9" * 15}, ["not those of a resnet8 of 999"]),
    "another network": ({"model": "resnet14", "classes": "16"}, ["not those of a resnet14"]),
    "options that are a list": ({"model": "resnet8", "classes": "16", "options": "[1]"}, ["options"]),
    "options that are no JSON": ({"model": "resnet8", "classes": "16", "options": "{"}, ["names no network"]),
    "options with a file": (
        {"model": "resnet8", "classes": "16", "options": '{"weights": "/etc/passwd"}'},
        ["without weights"],
    ),
    "options with a pickle": (
        {"model": "torchvision:resnet18", "classes": "16", "options": '{"checkpoint_path": "x.pth"}'},
        ["checkpoint_path"],
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_with_a_bad_header_are_refused_in_one_line(refused, tally, trained, name):
    metadata, words = HEADERS[name]
    folder = Path(shutil.copytree(trained.folder, "run"))
    shutil.copy(trained.record, "run.json")
    save_file(checkpoints.load_model(trained.folder).state_dict(), folder / "model.safetensors", metadata)
    refused(["evaluate", "run"], ["run/model.safetensors", *words])
    tally("Bad input", "checkpoints", SEEN)


# --- records

GONE = object()


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    for part in path:
        values = values[int(part) if part.isdigit() else part]
    if value is GONE:
        del values[last]
    else:
        values[last] = value
    return values


RECORDS: dict[str, tuple[str, Any]] = {
    "schema of the future": ("schema", 2),
    "seed as text": ("seed", "0"),
    "seed below 0": ("seed", -1),
    "name as a number": ("name", 3),
    "name with a line's end": ("name", "a\nb"),
    "seconds as text": ("seconds", "long"),
    "seconds not a number": ("seconds", float("nan")),
    "seconds out of all bounds": ("seconds", 1e300),
    "image passes beyond what a float can hold": ("image_passes", 10**400),
    "memory beyond what a float can hold": ("peak_memory", 10**400),
    "config as a list": ("config", []),
    "config without data": ("config.data", GONE),
    "config.run as text": ("config.run", "x"),
    "budget of both kinds": ("config.budget", {"epochs": 1, "image_passes": 1}),
    "budget of none": ("config.budget", {}),
    "budget as text": ("config.budget.epochs", "2"),
    "batch size below 1": ("config.data.batch_size", 0),
    "no epochs": ("epochs", []),
    "epochs as numbers": ("epochs", [1, 2]),
    "steps below 1": ("epochs.0.steps", 0),
    "loss as text": ("epochs.0.loss", "low"),
    "final as a list": ("final", []),
    "a figure as text": ("final.top1", "high"),
    "a figure out of all bounds": ("final.top1", 10**400),
    "n_test as text": ("final.n_test", "all"),
    "metrics as numbers": ("metrics", [1]),
    "a metric without its title": ("metrics.0.title", GONE),
    "a metric of unknown better": ("metrics.0.better", "left"),
    "a metric of a thousand digits": ("metrics.0.digits", 1000),
    "no device": ("device", GONE),
    "peak memory as text": ("peak_memory", "much"),
    "revision as a number": ("revision", 3),
    "versions as a list": ("versions", []),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_bad_record_is_one_line(refused, tally, trained, name):
    key, value = RECORDS[name]
    values = json.loads(trained.record.read_text())
    put(values, key, value)
    Path("a.json").write_text(json.dumps(values))
    refused(["report", "a.json"], ["a.json: ", key.partition(".")[0]])
    tally("Bad input", "records", SEEN)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'{"schema": 1', b"1" * 5000, b"null"])
def test_a_file_that_is_no_record_is_one_line(refused, tally, content):
    Path("a.json").write_bytes(content)
    refused(["report", "a.json"], ["a.json: not "])
    tally("Bad input", "records", SEEN)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "C:\\x", "..\\x", "", ".", "a//b", "a\x1b[2Jb"])
@pytest.mark.parametrize("command", ["report", "evaluate", "push", "compare"])
def test_a_record_s_name_that_leads_elsewhere_is_refused_by_whoever_reads_it(refused, tally, trained, command, name):
    folder = Path("out") / trained.folder.relative_to(trained.output)
    shutil.copytree(trained.output, "out")
    record = folder.with_name(f"{folder.name}.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "name": name}))
    rest = {
        "report": [str(record)],
        "evaluate": [str(folder)],
        "push": [str(folder), "me/x"],
        "compare": [str(trained.recipe), "--methods", "patch_swap", "--seeds", "0"],
    }
    refused([command, *rest[command]], [f"{record.name}: record.name "])
    tally("Untrusted files", "records whose name leads elsewhere", "refused, nothing written")


# --- whatever else: random settings and records

KEYS = [*config.known_keys("patch_swap"), "method.alpha", "data.nothing"]
TEXTS = ["", "null", "shapes", "cutmix", "folder:.", "2020-01-01", "1e3", "torchvision:resnet18", "x@y@z", "~", "\x1b"]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(TEXTS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner, max_size=2), st.just(10**400)
    ),
    max_leaves=4,
)


def many(long: bool, short: int) -> Any:
    """As many examples as the short form tries; forty times that in the long one."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    count = short * (40 if long else 1)
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=not long, suppress_health_check=health
    )


def valid_or_refused(read: Callable[[], object]) -> None:
    try:
        read()
    except Refused as error:
        assert "\n" not in str(error) and len(str(error)) < 5000


def test_random_settings_make_a_configuration_or_are_refused(long, tally, tmp_path):
    file, tried = tmp_path / "random.yaml", []
    sections = st.dictionaries(st.sampled_from([k.partition(".")[2] for k in KEYS]), VALUES, max_size=3)
    names = st.sampled_from([*config.SECTIONS, "method", "compare", "extends", "nothing"])

    @many(long, 25)
    @given(st.dictionaries(names, st.one_of(sections, VALUES), max_size=3))
    def whole(values: dict[str, Any]) -> None:
        valid_or_refused(lambda: config.from_dict(values))
        file.write_text(yaml.safe_dump(values))
        valid_or_refused(lambda: config.from_dict(read_settings(str(file), {})))
        tried.append(1)

    @many(long, 40)
    @given(st.sampled_from(KEYS), VALUES)
    def single(key: str, value: Any) -> None:
        section, _, option = key.partition(".")
        name = {"name": "patch_swap"} if section == "method" else {}
        valid_or_refused(lambda: config.from_dict({section: {**name, option: value}}))
        tried.append(1)

    whole()
    single()
    tally("Bad input", "random settings", "a configuration, or one line", len(tried))


def test_random_bytes_as_a_recipe_or_a_record_are_read_or_refused(long, tally, tmp_path):
    file, tried = tmp_path / "random", []
    pieces = st.lists(
        st.sampled_from(["run: ", "{", "}", "[", "&a ", "*a", "seed", ": ", "\n", "- ", "'", "1", '"', ","])
    )

    @many(long, 100)
    @given(
        st.one_of(
            st.binary(), st.text().map(lambda t: t.encode("utf-8", "replace")), pieces.map("".join).map(str.encode)
        )
    )
    def read(content: bytes) -> None:
        file.write_bytes(content)
        valid_or_refused(lambda: config.read_yaml(str(file)))
        valid_or_refused(lambda: Record.read(file))
        tried.append(1)

    read()
    tally("Bad input", "random bytes", "read, or one line", len(tried))


def test_a_record_with_random_changes_is_reported_or_refused(long, tally, trained, tmp_path):
    original, tried = json.loads(trained.record.read_text()), []

    def places(value: Any, where: str = "") -> list[str]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        inner = [place for key, item in items for place in places(item, f"{where}.{key}".lstrip("."))]
        return [*([where] if where and not where[-1].isdigit() else []), *inner]

    def card(file: Path) -> None:
        record = hub.without_paths(Record.read(file))
        check_whole(record)  # as `push` does before it writes the card
        hub.card(record, "me/x")

    every = [place for place in places(original) if "versions" not in place]

    @many(long, 15)
    @given(st.lists(st.tuples(st.sampled_from(every), st.one_of(VALUES, st.just(GONE))), min_size=1, max_size=2))
    def read(changes: list[tuple[str, Any]]) -> None:
        values = json.loads(json.dumps(original))
        for place, value in changes:
            try:
                put(values, place, value)
            except (KeyError, TypeError, IndexError):  # a change before this one has taken its place away
                continue
        (tmp_path / "a.json").write_text(json.dumps(values))
        valid_or_refused(lambda: tables.report([tmp_path / "a.json"], costs=True))
        valid_or_refused(lambda: tables.csv([tmp_path / "a.json"]))
        valid_or_refused(lambda: card(tmp_path / "a.json"))
        tried.append(1)

    read()
    tally("Bad input", "records with random changes", "tables, or one line", len(tried))
