"""What a run is, as dataclasses: data, model, method, budget, optimiser, and how to run it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from psd import data, methods, models, tasks
from psd.checks import Refused, check_settings, did_you_mean, plain
from psd.methods import Method
from psd.methods.patch_swap import PatchSwap

RECIPES = Path(__file__).parents[1] / "recipes"

# What may differ between the beginning of a run and its continuation, and is no part of its result.
NOT_PART_OF_THE_RESULT = (
    *("data.root", "data.workers"),
    *(
        "run.output",
        "run.resume",
        "run.progress",
        "run.checkpoint_every",
        "run.compile",
        "run.track",
        "run.tensorboard",  # of records from before run.track
        "run.overwrite",
    ),
)

CHOSEN_LATER = {("run", "device"): None, ("run", "precision"): "auto"}  # the values that leave it to the machine


@dataclass
class DataConfig:
    """Which images, and how they are augmented.

    name: one of `psd.data.names()`, your own registered ones among them. root: folder of the data sets; PSD_DATA if
    None.
    split: "train" (and the test split is what is measured) or "fit" (and "tune" is measured: for choosing settings).
    classes, per_class: a seeded subset of the training images, and of the classes in the test.
    size: side in pixels (shapes; folders, whose images are then decoded into memory once). count: training images to
    draw (shapes). seed: of the subset and of the drawing, not of the training. replicate: that seed is run.seed: every
    seed of a comparison then has its own classes and images. verify: check the content of CIFAR-100.
    label_noise: share of the training images whose label is drawn anew from the other classes, by that seed; the images
    that are measured, and the tune split, keep theirs.
    batch_size: anchors per step, over all processes; a pair method forwards twice as many images.
    crop_padding, flip: augmentation in memory; the data set's own if None.
    Folders without size are streamed from their files: crop_size: side in pixels of a random part of each image, which
    has at least the share crop_scale of its area; workers: processes that decode, as many as cores if None;
    skip_corrupt: an image that cannot be decoded is replaced by another of its class and counted, instead of an error.
    """

    name: str = "shapes"
    root: str | None = None
    split: Literal["train", "fit"] = "train"
    classes: int | None = None
    per_class: int | None = None
    size: int | None = None
    count: int | None = None
    seed: int = 0
    replicate: bool = False
    verify: bool = True
    label_noise: float = 0.0
    batch_size: int = 64
    crop_padding: int | None = None
    flip: bool | None = None
    crop_size: int = 224
    crop_scale: float = 0.08
    workers: int | None = None
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        data.check_name(self.name)
        counts = dict.fromkeys(("classes", "per_class", "batch_size"), ">= 1")
        sides = dict.fromkeys(("size", "crop_size"), ">= 1 and <= 4096")  # of squares in memory
        check_settings(
            "data",
            self,
            **counts,
            **sides,
            count=">= 1 and <= 10000000",
            label_noise=">= 0 and <= 1",
            crop_padding=">= 0 and <= 4096",
            crop_scale="> 0 and <= 1",
            workers=">= 0",
        )

    @property
    def label(self) -> str:
        """The data's name in records: whatever changes the images is part of it."""
        parts = [self.name]
        if data.at_a_path(self.name):
            parts = [os.path.basename(os.path.abspath(self.name.partition(":")[2]))]  # of "." too, which has no name
        parts += [f"{key}{value}" for key in ("classes", "per_class", "size", "count") if (value := getattr(self, key))]
        parts += [f"noise{self.label_noise:g}"] if self.label_noise else []
        draw = "replicates" if self.replicate else f"seed{self.seed}" if self.seed else None
        parts += [part for part in (draw, "fit" if self.split == "fit" else None) if part]
        return "-".join(parts)


@dataclass
class TaskConfig:
    """name: what is learnt, one of `psd.tasks.names()`."""

    name: str = "classification"

    def __post_init__(self) -> None:
        check_settings("task", self)
        tasks.find(self.name)


@dataclass
class ModelConfig:
    """name: one of `psd.models.names()`, torchvision:NAME or timm:NAME.

    weights: fresh ones if None; "default": the pretrained ones of that library; or a file, or of a name HEAD@NAME the
    folder of a run, whose backbone is moved (`psd.models.transfer`).
    options: of torchvision's or timm's constructor, such as {drop_path_rate: 0.1} or {img_size: 64}.
    freeze_backbone: train the classifier alone; the BatchNorm layers before it stay as they are, too.
    """

    name: str = "resnet8"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    freeze_backbone: bool = False

    def __post_init__(self) -> None:
        check_settings("model", self)
        self.options = {key: plain(value) for key, value in self.options.items()}
        for key, value in self.options.items():
            if not _is_plain(value):
                raise Refused(
                    f"model.options: {key} must be what a record can hold (numbers, texts, lists and mappings), got "
                    f"{_in_brief(value)}; psd.fit takes a model that you have built"
                )
        models.check_name(self.name)


@dataclass
class BudgetConfig:
    """How long to train: `epochs`, or `image_passes` (images through a training forward, partners included).

    Equal image passes are equal compute: a pair method then sees half the epochs of cross-entropy.
    """

    epochs: int | None = None
    image_passes: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.image_passes is None):
            raise Refused(
                f"budget: give either epochs or image_passes, got epochs={self.epochs} and "
                f"image_passes={self.image_passes}"
            )
        most = ">= 1 and <= 1000000000000"
        check_settings("budget", self, epochs=most, image_passes=most)

    @property
    def label(self) -> str:
        """The budget's name in records: 200ep, 10Mpass, 200kpass."""
        if self.image_passes is None:
            return f"{self.epochs}ep"
        for unit, letter in ((10**6, "M"), (10**3, "k")):
            if self.image_passes % unit == 0:
                return f"{self.image_passes // unit}{letter}pass"
        return f"{self.image_passes}pass"

    def steps(self, per_epoch: int, passes_per_step: int) -> int:
        """Number of optimiser steps; image passes are rounded to whole steps."""
        if self.image_passes is None:
            return self.epochs * per_epoch  # type: ignore[operator]
        return max(1, round(self.image_passes / passes_per_step))


@dataclass
class OptimizerConfig:
    """name: sgd (with momentum) or adamw, whose other settings are PyTorch's. lr: the highest rate.

    schedule: over all steps, "cosine" to 0, "constant", or "multistep": times `gamma` at each of the shares
    `milestones`. warmup: the share of all steps in which the rate rises linearly before. clip_norm: gradients are
    scaled down to this global norm; not at all if None. decay_norms: weight decay of norm layers and biases too.
    head_lr: the classifier's own highest rate; lr if None.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant", "multistep"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0
    clip_norm: float | None = None
    decay_norms: bool = True
    head_lr: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.milestones, Iterable) and not isinstance(self.milestones, str):  # YAML has no tuples
            self.milestones = tuple(map(plain, self.milestones))
        check_settings(
            "optimizer",
            self,
            lr="> 0",
            momentum="> 0 and < 1" if self.nesterov else ">= 0 and < 1",
            weight_decay=">= 0",
            milestones="> 0 and < 1",
            gamma="> 0 and <= 1",
            warmup=">= 0 and < 1",
            clip_norm="> 0",
            head_lr="> 0",
        )


@dataclass
class RunConfig:
    """seed: of weights, order, partners, crops and masks. variant: appended to the method's name in the record.

    output: folder of records, weights and checkpoints. resume: "never" starts anew, "auto" goes on from the newest
    checkpoint of this very run and leaves a finished run as it is, a path names a checkpoint folder.
    overwrite: let a run with other settings take the place of a record; it is refused otherwise.
    device: cpu, cuda, mps; the best there is if None. precision: "fp32", "bf16", or "auto": bf16 where a GPU has it. A
    record holds the device and the precision that it was trained with.
    evaluate_every, checkpoint_every: epochs; 0 = only at the end (evaluation), never (checkpoints, but for SIGTERM).
    compile: the network by torch.compile: "off", one of its modes, or "auto": "reduce-overhead" (CUDA graphs) on one
    GPU for images in memory and 1000 steps or more. accumulate: forward a step's batch in that many parts, one after
    another, to save memory; BatchNorm normalises each part by itself and moves its running statistics once for each,
    as where gradients are accumulated by hand. Of several processes, the running statistics are those of the main one,
    as in DistributedDataParallel. sync_batchnorm: BatchNorm over all processes' images.
    track: give settings and metrics to "tensorboard", "wandb", "trackio" or "mlflow" too, which has to be installed. It
    writes into the run's folder; but trackio into its own, TRACKIO_DIR, and mlflow to MLFLOW_TRACKING_URI where set.
    """

    seed: int = 0
    variant: str | None = None
    output: str = "runs"
    resume: str = "never"
    overwrite: bool = False
    device: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluate_every: int = 0
    checkpoint_every: int = 5
    progress: bool = True
    compile: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = "auto"
    accumulate: int = 1
    sync_batchnorm: bool = False
    track: Literal["tensorboard", "wandb", "trackio", "mlflow"] | None = None

    def __post_init__(self) -> None:
        check_settings("run", self, seed=">= 0", evaluate_every=">= 0", checkpoint_every=">= 0", accumulate=">= 1")
        if self.variant is not None and not self.variant.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise Refused(f"run.variant is part of a file name: letters, digits, '.-_' only, got {self.variant!r}")
        if self.device not in (None, "cpu", "cuda", "mps"):
            raise Refused(f"run.device must be cpu, cuda or mps, got {self.device!r}")
        if self.track is not None:
            from psd.training.tracking import check_installed

            check_installed(self.track)


@dataclass
class Config:
    """A whole run. `Config()` trains a ResNet-8 on `shapes` by patch swap for 80 epochs.

    >>> Config(method=methods.build("cross_entropy"), budget=BudgetConfig(image_passes=64_000)).name
    'shapes/resnet8/64kpass/cross_entropy-s0'
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Method = field(default_factory=PatchSwap)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(epochs=80))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        for name in SECTIONS:
            setattr(self, name, section(name, getattr(self, name)))
        self.method = _method(self.method)
        if self.data.replicate and self.data.seed != self.run.seed:
            if self.data.seed:
                raise Refused(
                    f"data.seed {self.data.seed} and run.seed {self.run.seed} differ, and data.replicate says that "
                    "they are one: leave data.seed out"
                )
            self.data = dataclasses.replace(self.data, seed=self.run.seed)

    @property
    def name(self) -> str:
        """The record's name: <data>/<model>/<budget>/<method>[-<variant>]-s<seed>."""
        method = self.method.name + (f"-{self.run.variant}" if self.run.variant else "")
        model = self.model.name.replace(":", "-")
        return f"{self.data.label}/{model}/{self.budget.label}/{method}-s{self.run.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, as YAML and JSON hold them."""

        plain = {f.name: options_of(getattr(self, f.name)) for f in dataclasses.fields(self)}
        plain["method"] = {"name": self.method.name, **plain["method"]}
        return plain


def options_of(section: Any) -> dict[str, Any]:
    """A section's or method's settings as YAML and JSON hold them."""
    return {key: _plain(value) for key, value in dataclasses.asdict(section).items()}


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "budget": BudgetConfig,
    "optimizer": OptimizerConfig,
    "run": RunConfig,
    "task": TaskConfig,
}
NAMED = ("task", "data", "model")  # sections that a name alone describes
ITSELF = ("data", "model", "optimizer")  # sections whose thing itself somebody may have in hand
FORMS = {  # what the others may be
    "budget": "a number of epochs, a mapping of settings such as {'image_passes': 200_000}",
    "optimizer": "a mapping of settings such as {'name': 'adamw', 'lr': 0.001}",
    "run": "a mapping of settings such as {'seed': 1}",
}


def section(name: str, given: Any) -> Any:
    """A section of a configuration as what it is, a mapping of its settings, a name, or a number of epochs."""
    kind = SECTIONS[name]
    if isinstance(given, kind):
        return given
    if isinstance(given, dict):
        for key in given:
            if key not in {f.name for f in dataclasses.fields(kind)}:
                raise Refused(_unknown(f"{name}.{key}", known_keys(None)))
        return kind(**given)
    if isinstance(given, str) and name in NAMED:
        return kind(name=given)
    if name == "budget" and isinstance(given, Integral) and not isinstance(given, bool):
        return kind(epochs=int(given))
    forms = FORMS.get(name, "a name, a mapping of settings")
    raise Refused(
        f"{name} must be {forms} or a psd.config.{kind.__name__}, got {_in_brief(given)}"
        + (f"; psd.fit takes the {name} itself" if name in ITSELF and not isinstance(given, str) else "")
    )


def _is_plain(value: Any) -> bool:
    """Whether YAML and JSON hold it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _in_brief(given: Any) -> str:
    """A value in part of a line: many a thing's repr fills a page."""
    plain = given is None or isinstance(given, (str, int, float, list, type))
    return repr(given) if plain and len(repr(given)) < 100 else f"an instance of {type(given).__name__}"


def _method(given: Any) -> Method:
    """A method as an instance, a mapping with its name, or a name."""
    if isinstance(given, Method):
        return given
    if isinstance(given, str):
        return methods.build(given)
    if isinstance(given, dict) and "name" in given:
        return methods.build(**given)
    remedy = "psd.methods.build('patch_swap', patch_size=4)"
    if isinstance(given, type) and issubclass(given, Method):
        remedy = f"an instance of it, {given.__name__}()"
    raise Refused(f"method must be a name or a method, such as {remedy}, got {_in_brief(given)}")


def from_dict(values: dict[str, Any]) -> Config:
    """The Config of `to_dict`'s form, parts left out taking their defaults; ValueError names an unknown key.

    A recipe's `compare` section is not part of a run and is passed over.
    """
    values = _without_old(values)
    check_keys(values)
    built: dict[str, Any] = {key: SECTIONS[key](**values[key]) for key in SECTIONS if key in values}
    if "method" in values:
        built["method"] = methods.build(**values["method"])
    return Config(**built)


def _without_old(values: dict[str, Any]) -> dict[str, Any]:
    """Without `run.tensorboard: false`, which records from before `run.track` hold and which asks for nothing."""
    run = values.get("run")
    if not isinstance(run, dict) or run.get("tensorboard") is not False:
        return values
    return {**values, "run": {key: value for key, value in run.items() if key != "tensorboard"}}


def check_keys(values: dict[str, Any]) -> None:
    """ValueError for the first unknown key of a nested dict, with the nearest known one; `compare` is passed over."""
    method = values.get("method", {})
    name = method.get("name") if isinstance(method, dict) else None
    if "method" in values and name is None:
        raise Refused(f"method.name is missing; known: {', '.join(methods.names())}")
    if name is not None and not isinstance(name, str):
        raise Refused(f"method.name must be a string, got {_in_brief(name)}; known: {', '.join(methods.names())}")
    for section, options in values.items():
        if section == "compare":
            continue
        if section not in (*SECTIONS, "method"):
            raise Refused(_unknown(section, [*SECTIONS, "method"]))
        check_mapping(section, options)
        for key in options:
            check_key(f"{section}.{key}", name)


def check_key(key: str, method: str | None) -> None:
    """ValueError if no setting of a run with this method has this dotted key."""
    if key not in known_keys(method):
        raise Refused(_unknown(key, known_keys(method)))


def known_keys(method: str | None) -> list[str]:
    """Every dotted key of a run with this method."""
    sections = {**SECTIONS, **({"method": methods.find(method)} if method else {})}
    keys = [f"{name}.{f.name}" for name, section in sections.items() for f in dataclasses.fields(section)]
    return [*keys, "method.name"]


def recipe_names() -> list[str]:
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def recipes_in_brief() -> str:
    """All recipes in a line: those in a folder as its name.

    >>> recipes_in_brief()
    'cifar100-small, shapes, cifar100/..., imagenet/..., tiny_imagenet/...'
    """
    names = recipe_names()
    folders = dict.fromkeys(f"{name.partition('/')[0]}/..." for name in names if "/" in name)
    return ", ".join([*(name for name in names if "/" not in name), *folders])


def recipe_path(name: str) -> Path:
    """The YAML file of a shipped recipe's name or of a path; ValueError with the nearest recipe's name."""
    if name in recipe_names():
        return RECIPES / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    hint = did_you_mean(name, recipe_names()) or "."
    raise Refused(f"CONFIG {name!r} is neither a file nor a recipe{hint} Recipes: {recipes_in_brief()}")


def read_yaml(name: str) -> dict[str, Any]:
    """The nested dict in a recipe's or file's YAML, its keys checked.

    With `extends: NAME`, of a recipe or of a file relative to this one, it is that one's dict, over which this file's
    keys are merged (see `merge`; a list takes the place of a list).

    Raises:
        ValueError: no such file, no YAML, an unknown key, files that extend one another in a circle.
    """
    return _read(recipe_path(name), ())


def _read(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """extending: the files that brought us here, each of which extends the next."""
    from psd.training import plain_yaml

    files = (*extending, path.resolve())
    if files[-1] in extending:
        circle = files[extending.index(files[-1]) :]
        raise Refused(f"extends goes in a circle: {' -> '.join(file.name for file in circle)}")
    found = plain_yaml.read(path)
    if not isinstance(found, dict):
        raise Refused(f"{path}: a recipe is a mapping with the keys {', '.join((*SECTIONS, 'method'))}")
    values: dict[str, Any] = _without_old(found)
    if "extends" in values:
        values = merge(_read(_extended(path, values.pop("extends")), files), values)
    check_keys(values)
    return values


def _extended(path: Path, given: Any) -> Path:
    """The file that `extends: given` in the file `path` means."""
    if given in recipe_names():
        return recipe_path(given)
    if isinstance(given, str) and (path.parent / given).is_file():
        return path.parent / given
    hint = did_you_mean(given, recipe_names()) or "."
    raise Refused(
        f"{path}: extends {given!r} is neither a recipe nor a file beside it{hint} Recipes: {recipes_in_brief()}"
    )


def recipe(name: str, **changes: dict[str, Any]) -> Config:
    """The Config of a shipped recipe's name or of a YAML file, with some of its values changed.

    >>> recipe("shapes", run={"seed": 3}, budget={"image_passes": 64_000}).name
    'shapes/resnet8/64kpass/patch_swap-s3'
    """
    return from_dict(merge(read_yaml(name), changes))


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with some keys changed.

    Another `method.name` drops the options of the method it replaces; one kind of budget alone replaces the other kind.
    """
    for key, section in changes.items():
        check_mapping(key, section)
    if len(changes.get("budget", {})) == 1 and not any(v is None or v == "null" for v in changes["budget"].values()):
        values = {**values, "budget": {}}
    method = changes.get("method", {}).get("name", None)
    if method is not None and method != values.get("method", {}).get("name"):
        values = {**values, "method": {}}
    return {**values, **{key: {**values.get(key, {}), **section} for key, section in changes.items()}}


ELSEWHERE = {"learning_rate": "lr", "scheduler": "schedule", "max_lr": "lr"}  # names that others give our settings


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Dotted keys, of those that shape the result, whose values differ between two `to_dict`s: 'key: x != y'.

    A setting that one of them lacks, because it is older than the setting, has its default there. The defaults of a
    method that is gone are not known, so of its options those are compared that both have.
    """
    found = []
    for section in sorted({*a, *b}):
        left, right = ({**_defaults(section, side.get(section, {})), **side.get(section, {})} for side in (a, b))
        gone = section == "method" and not {left.get("name"), right.get("name")} <= {*methods.names(), None}
        for key in sorted({*left} & {*right} if gone else {*left, *right}):
            values = left.get(key), right.get(key)
            if f"{section}.{key}" in NOT_PART_OF_THE_RESULT or values[0] == values[1]:
                continue
            if (section, key) in CHOSEN_LATER and CHOSEN_LATER[section, key] in values:
                continue  # one of them leaves it to the machine
            found.append(f"{section}.{key}: {values[0]!r} != {values[1]!r}")
    return found


def _defaults(section: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a setting that is not among the options of a section has."""
    kind = SECTIONS.get(section)
    if section == "method" and options.get("name") in methods.names():
        kind = methods.find(options["name"])
    return {} if kind is None else {f.name: _plain(_default(f)) for f in dataclasses.fields(kind)}


def _default(setting: dataclasses.Field[Any]) -> Any:
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()


def _plain(value: Any) -> Any:
    """As YAML and JSON hold it."""
    return list(value) if isinstance(value, tuple) else value


def _unknown(key: str, known: list[str]) -> str:
    if key == "run.tensorboard":
        return "run.tensorboard is no longer a setting: write run.track: tensorboard, or leave it out"
    section, _, option = key.rpartition(".")
    meant = f"{section}.{ELSEWHERE.get(option, option)}"
    near = f"; did you mean {meant!r}?" if meant in known else did_you_mean(key, known)
    hint = near or f"; sections are {', '.join((*SECTIONS, 'method'))}"
    return f"unknown key {key!r}{hint}"


def check_mapping(section: str, options: object) -> None:
    if isinstance(options, dict):
        return
    such = ""
    if isinstance(options, str) and section in (*NAMED, "method"):
        such = f" such as {{'name': {options!r}}}"
    if isinstance(options, int) and section == "budget":
        such = f" such as {{'epochs': {options}}}"
    raise Refused(f"{section} must be a mapping of settings{such}, got {_in_brief(options)}")
