"""What a run is: round trips, names, budgets, learning rates, and every bad value named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from psd import methods, tasks
from psd.training import config
from psd.training.comparison import comparison
from psd.training.config import (
    BudgetConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    differences,
    from_dict,
    merge,
    read_yaml,
    recipe,
    recipe_names,
    recipe_path,
)
from psd.training.optim import rate

NAN, INF = float("nan"), float("inf")
EVERYTHING: dict[str, Any] = {  # no value is its default
    "data": {"name": "cifar100", "root": "somewhere", "split": "fit", "classes": 10, "per_class": 100, "size": 64}
    | {"count": 500, "seed": 4, "replicate": True, "verify": False, "label_noise": 0.2}
    | {"batch_size": 32, "crop_padding": 1, "flip": False}
    | {"crop_size": 64, "crop_scale": 0.25, "workers": 3, "skip_corrupt": True},
    "model": {"name": "timm:vit_tiny_patch16_224", "weights": "default", "options": {"img_size": 64}}
    | {"freeze_backbone": True},
    "method": {"name": "patch_swap", "temperature": 2.0, "weight": 0.5, "detach": True, "direction": "a_to_b"}
    | {"cross_entropy": "a", "feature_weight": 0.1, "feature_distance": "mse", "patch_size": 8, "p": 0.9}
    | {"ratio": "uniform", "before": True},
    "budget": {"epochs": None, "image_passes": 3000},
    "optimizer": {"name": "adamw", "lr": 0.2, "momentum": 0.8, "nesterov": False, "weight_decay": 1e-4}
    | {"schedule": "multistep", "milestones": [0.3], "gamma": 0.2, "warmup": 0.1, "clip_norm": 5.0}
    | {"decay_norms": False, "head_lr": 1.0},
    "run": {"seed": 4, "variant": "T2", "output": "elsewhere", "resume": "auto", "overwrite": True, "device": "cpu"}
    | {"precision": "fp32"}
    | {"evaluate_every": 1, "checkpoint_every": 2, "progress": False, "compile": "off", "accumulate": 2}
    | {"sync_batchnorm": True, "track": "tensorboard"},
    "task": {"name": "classification"},  # the only one
}


# --- to_dict and from_dict


def test_from_dict_undoes_to_dict():
    assert from_dict(EVERYTHING).to_dict() == EVERYTHING


def test_the_round_trip_has_every_setting():
    default = Config().to_dict()
    for section, options in EVERYTHING.items():
        assert list(options) == list(default[section])
        assert all(default[section][key] != value for key, value in options.items() if key not in ("name", "epochs"))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_s_options_make_the_round_trip(name):
    made = Config(method=methods.build(name))
    again = from_dict(made.to_dict())
    assert again == made and type(again.method) is methods.find(name)


def test_a_config_survives_json_and_yaml():
    made = from_dict(EVERYTHING)
    assert from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert from_dict(yaml.safe_load(yaml.safe_dump(made.to_dict()))) == made


def test_a_rectangular_patch_is_the_same_run_after_json():
    made = Config(method=methods.build("patch_swap", patch_size=(4, 8)))
    again = from_dict(json.loads(json.dumps(made.to_dict())))
    assert differences(made.to_dict(), again.to_dict()) == []


def test_sections_left_out_take_their_defaults():
    assert from_dict({}) == Config()


def test_keys_left_out_take_their_defaults():
    assert from_dict({"optimizer": {"lr": 0.3}}).optimizer == OptimizerConfig(lr=0.3)


def test_from_dict_leaves_its_argument_alone():
    values = {"method": {"name": "cutmix", "p": 0.2}, "compare": {"seeds": [1]}}
    from_dict(values)
    assert values == {"method": {"name": "cutmix", "p": 0.2}, "compare": {"seeds": [1]}}


def test_the_default_run_is_patch_swap():
    assert Config().method == methods.build("patch_swap")


# --- recipes

FULL_SCALE = ("cifar100", "imagenet", "tiny_imagenet")


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.partition("/")[0] in FULL_SCALE])
def test_every_value_of_a_full_scale_recipe_has_its_source_or_reason_beside_it(name):
    text = recipe_path(name).read_text(encoding="utf-8").partition("compare:")[0]
    values = [line for line in text.splitlines() if re.match(r"  \w+: ", line)]
    plain = re.compile(r"  (name|evaluate_every|checkpoint_every): ")
    silent = [line for line in values if "#" not in line and not plain.match(line)]
    assert silent == [] and len(values) > (0 if "\nextends: " in text else 10)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("-patch_swap")])
def test_the_baseline_of_a_recipe_differs_in_the_method_alone(name):
    ours, baseline = recipe(name), recipe(name.replace("patch_swap", "cross_entropy"))
    assert {d.partition(".")[0] for d in differences(ours.to_dict(), baseline.to_dict())} == {"method"}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_trained_as_it_is(name):
    made = recipe(name)
    assert tasks.find(made.task.name).learns in made.method.learns


SETTINGS = {  # what the recipes of a family have in common: data, optimiser, length
    "shapes": ("shapes", 64, 16, 0.1, 5e-4, 0.0, "96kpass"),
    "cifar100-small": ("cifar100-small", 100, 4, 0.1, 5e-4, 0.0, "200kpass"),
    "cifar100": ("cifar100", 128, 4, 0.1, 5e-4, 0.025, "200ep"),
    "imagenet": ("imagenet", 256, 32, 0.1, 1e-4, 0.055, "90ep"),
    "tiny_imagenet": ("tiny-imagenet", 128, 8, 0.1, 5e-4, 0.025, "200ep"),
}


def families() -> list[tuple[str, str]]:
    """Every recipe with its family: its folder, or in `compare` what its name begins with."""
    begins = {name: name.removeprefix("compare/").removesuffix("-ablations") for name in recipe_names()}
    named = [(name, begin.partition("/")[0]) for name, begin in begins.items()]
    return [(name, family) for name, family in named if family in SETTINGS]


def test_every_family_has_recipes():
    assert {family for _, family in families()} == set(SETTINGS)


@pytest.mark.parametrize(("name", "family"), families())
def test_a_recipe_has_its_family_s_settings(name, family):
    data, batch_size, patch_size, lr, decay, warmup, length = SETTINGS[family]
    made = recipe(name)
    assert (made.data.name, made.data.batch_size, made.budget.label) == (data, batch_size, length)
    optimizer = OptimizerConfig(lr=lr, momentum=0.9, nesterov=True, weight_decay=decay, warmup=warmup)
    assert made.optimizer == optimizer
    if made.method.name == "patch_swap":
        p = 1.0 if family == "shapes" else 0.5
        ours = methods.build("patch_swap", patch_size=patch_size, p=p, ratio=0.5, temperature=4.0, weight=1.0)
        assert made.method == ours


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.partition("/")[0] in FULL_SCALE])
def test_a_full_scale_recipe_has_the_network_and_the_method_of_its_name(name):
    family, _, rest = name.partition("/")
    model, _, method = rest.partition("-")
    assert recipe(name).model.name == ("torchvision:" if family == "imagenet" else "") + model
    assert recipe(name).method.name == method


@pytest.mark.parametrize(("family", "rows"), [("shapes", 32), ("cifar100-small", 2)])
def test_every_ablation_changes_what_its_name_says(family, rows):
    listed = read_yaml(f"compare/{family}-ablations")["compare"]["methods"]
    ours = recipe(family).to_dict()["method"]
    changed = {
        row["variant"]: {key: value for key, value in row.items() if key != "variant" and ours[key] != value}
        for row in listed
        if row["name"] == "patch_swap"
    }
    assert len(changed) == rows
    letters = {"m": "patch_size", "p": "p", "ratio": "ratio", "T": "temperature", "w": "weight"}
    words: dict[str, dict[str, Any]] = {
        "ratio-uniform": {"ratio": "uniform"},
        "detach": {"detach": True},
        "one-ce": {"cross_entropy": "a"},
        "cosine0.1": {"feature_weight": 0.1},
        "cosine1": {"feature_weight": 1.0},
        "mse1": {"feature_weight": 1.0, "feature_distance": "mse"},
        "before": {"before": True},
    }
    directions = ("a-to-b", "easy-to-hard", "hard-to-easy")
    words |= {name: {"direction": name.replace("-", "_")} for name in directions}
    words |= {f"{name}-detach": {**words[name], "detach": True} for name in directions}
    for variant, difference in changed.items():
        numbers = [re.fullmatch(r"([a-zA-Z]+)([\d.]+)", part) for part in variant.split("-")]
        told = words.get(variant) or {letters[n[1]]: float(n[2]) for n in numbers if n is not None}
        assert difference == told, variant


# --- recipes that extend others


def test_a_recipe_that_extends_another_changes_what_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: cifar100-small\nmethod: {p: 0.9}\nrun: {variant: p0.9}\ncompare: {seeds: [7]}\n")
    theirs, mine = read_yaml("cifar100-small"), read_yaml(str(path))
    assert mine["method"] == {**theirs["method"], "p": 0.9} and mine["run"] == {"variant": "p0.9"}
    assert mine["compare"] == {**theirs["compare"], "seeds": [7]}  # a list takes the place of a list
    assert {key: mine[key] for key in ("data", "model", "budget", "optimizer")} == {
        key: theirs[key] for key in ("data", "model", "budget", "optimizer")
    }


def test_another_method_or_kind_of_budget_leaves_nothing_of_the_extended_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: shapes\nmethod: {name: cutmix}\nbudget: {epochs: 3}\n")
    assert read_yaml(str(path))["method"] == {"name": "cutmix"} and read_yaml(str(path))["budget"] == {"epochs": 3}


def test_a_file_is_extended_that_lies_relative_to_the_one_that_extends_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text("extends: shapes\nrun: {seed: 5}\n")
    (tmp_path / "deep" / "mine.yaml").write_text("extends: ../base.yaml\noptimizer: {lr: 0.5}\n")
    monkeypatch.chdir(tmp_path)  # not where the file lies
    made = recipe("deep/mine.yaml")
    assert (made.data.batch_size, made.run.seed, made.optimizer.lr) == (64, 5, 0.5)


def test_a_circle_of_recipes_is_refused_in_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}.yaml\n")
    with pytest.raises(ValueError, match=r"^extends goes in a circle: b\.yaml -> c\.yaml -> b\.yaml$"):
        recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("shape", r"extends 'shape' is neither a recipe nor a file beside it; did you mean 'shapes'\? Recipes: "),
        ("other.yaml", "mine.yaml: extends 'other.yaml' is neither"),
        ("3", "extends 3 is neither"),
        ("[shapes]", r"extends \['shapes'\] is neither"),
        ("", "extends None is neither"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_line(tmp_path, given, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {given}\n")
    with pytest.raises(ValueError, match=message) as raised:
        recipe(str(path))
    assert "\n" not in str(raised.value)


def test_an_unknown_key_is_found_in_the_recipe_that_is_extended_too(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {batchsize: 8}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(ValueError, match=r"unknown key 'data\.batchsize'"):
        recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_loads_with_every_value_it_writes(name):
    written, loaded = read_yaml(name), recipe(name).to_dict()
    for section, options in written.items():
        if section != "compare":
            assert options == {key: loaded[section][key] for key in options}, section


@pytest.mark.parametrize("name", recipe_names())
def test_every_run_of_a_recipe_s_comparison_is_valid_and_has_its_own_record(name):
    runs = [made.name for made in comparison(read_yaml(name)).configs()]
    assert runs and len(set(runs)) == len(runs)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_compares_with_cross_entropy(name):
    baseline = "own_loss" if read_yaml(name).get("task") == {"name": "detection"} else "cross_entropy"
    assert baseline in [method["name"] for method in comparison(read_yaml(name)).methods]


def test_a_recipe_takes_changes():
    changed = recipe("shapes", run={"seed": 7}, optimizer={"lr": 0.5})
    assert (changed.run.seed, changed.optimizer.lr) == (7, 0.5)
    assert changed.method == recipe("shapes").method


def test_a_recipe_may_be_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: label_smoothing, smoothing: 0.2}\n")
    assert recipe(str(path)) == Config(method=methods.build("label_smoothing", smoothing=0.2))


def test_a_recipe_s_name_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").write_text("data: {name: cifar100}\n")
    assert recipe("shapes").data.name == "shapes"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match=r"'cifar-small' is neither .*did you mean 'cifar100-small'\? .*shapes"):
        recipe("cifar-small")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not readable as YAML"),
        ("- model", "a recipe is a mapping with the keys data, model, "),
        ("", "a recipe is a mapping"),
        ("model: {nam: resnet8}", "unknown key 'model.nam'; did you mean 'model.name'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        recipe(str(path))


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"mine\.yaml: not readable as YAML"):
        recipe(str(path))


# --- unknown keys


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"learning_rate": 1}}, "'optimizer.learning_rate'; did you mean 'optimizer.lr'"),
        ({"data": {"batchsize": 1}}, "'data.batchsize'; did you mean 'data.batch_size'"),
        ({"optimiser": {"lr": 0.1}}, "unknown key 'optimiser.*did you mean 'optimizer"),
        ({"method": {"name": "patch_swap", "patchsize": 4}}, "'method.patchsize'; did you mean 'method.patch_size'"),
        ({"method": {"name": "cutmix", "patch_size": 4}}, "unknown key 'method.patch_size'"),
        ({"zzz": 3}, "unknown key 'zzz'; sections are data, model, budget, optimizer, run, task, method"),
        ({"method": {"name": "patchswap"}}, "method.name 'patchswap' is unknown; did you mean 'patch_swap'"),
        ({"method": {"p": 0.5}}, "method.name is missing; known: cross_entropy, "),
        ({"method": "patch_swap"}, "method.name is missing"),
    ],
)
def test_an_unknown_key_names_the_nearest(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_an_unknown_section_is_refused_even_where_it_is_empty():
    with pytest.raises(ValueError, match="unknown key 'optimiser'"):
        from_dict({"optimiser": {}})


@pytest.mark.parametrize("value", [None, 3, "cifar100"])
def test_a_section_that_holds_no_keys_is_refused_as_such(value):
    with pytest.raises(ValueError, match="data must be a mapping"):
        from_dict({"data": value})


def test_the_compare_section_is_no_part_of_a_run():
    assert from_dict({"compare": {"seeds": [1, 2]}}) == Config()


# --- merge


def test_merge_changes_single_keys():
    merged = merge({"run": {"seed": 1, "variant": "x"}, "data": {"size": 8}}, {"run": {"seed": 2}})
    assert merged == {"run": {"seed": 2, "variant": "x"}, "data": {"size": 8}}


def test_merge_drops_the_options_of_a_replaced_method():
    merged = merge({"method": {"name": "patch_swap", "patch_size": 8}}, {"method": {"name": "cutmix", "alpha": 2.0}})
    assert merged == {"method": {"name": "cutmix", "alpha": 2.0}}


@pytest.mark.parametrize("change", [{"p": 0.9}, {"name": "patch_swap", "p": 0.9}])
def test_merge_keeps_the_options_of_the_same_method(change):
    merged = merge({"method": {"name": "patch_swap", "patch_size": 8, "p": 0.1}}, {"method": change})
    assert merged == {"method": {"name": "patch_swap", "patch_size": 8, "p": 0.9}}


def test_merge_leaves_its_arguments_alone():
    values, changes = {"method": {"name": "cutmix", "p": 0.1}}, {"method": {"name": "cross_entropy"}}
    merge(values, changes)
    assert values == {"method": {"name": "cutmix", "p": 0.1}} and changes == {"method": {"name": "cross_entropy"}}


# --- names


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        ({"epochs": 200}, "200ep"),
        ({"image_passes": 10_000_000}, "10Mpass"),
        ({"image_passes": 200_000}, "200kpass"),
        ({"image_passes": 1_500_000}, "1500kpass"),
        ({"image_passes": 1234}, "1234pass"),
    ],
)
def test_a_budget_s_label(budget, label):
    assert BudgetConfig(**budget).label == label


@pytest.mark.parametrize(
    ("data", "label"),
    [
        ({}, "shapes"),
        ({"name": "cifar100-small"}, "cifar100-small"),
        ({"name": "cifar100", "classes": 10, "per_class": 50}, "cifar100-classes10-per_class50"),
        ({"size": 64, "count": 500, "seed": 2}, "shapes-size64-count500-seed2"),
        ({"split": "fit"}, "shapes-fit"),
        ({"name": "folder:/some/where/birds"}, "birds"),
    ],
)
def test_the_data_s_label_says_what_changes_the_images(data, label):
    assert DataConfig(**data).label == label


def test_a_record_s_name_holds_data_model_budget_method_variant_and_seed():
    made = from_dict(
        {
            "data": {"name": "cifar100"},
            "model": {"name": "resnet18"},
            "method": {"name": "cross_entropy"},
            "budget": {"epochs": 200},
            "run": {"variant": "no-decay", "seed": 3},
        }
    )
    assert made.name == "cifar100/resnet18/200ep/cross_entropy-no-decay-s3"


def test_a_model_of_another_library_makes_no_drive_letter():
    made = Config(model=ModelConfig("torchvision:resnet18"))
    assert made.name == "shapes/torchvision-resnet18/80ep/patch_swap-s0"


# --- steps and learning rates


def test_epochs_are_as_many_times_the_steps_of_one():
    assert BudgetConfig(epochs=7).steps(per_epoch=12, passes_per_step=64) == 84


@pytest.mark.parametrize("passes", [12_800, 200_000, 1_000_000])
@pytest.mark.parametrize("anchors", [32, 50, 128])
def test_equal_image_passes_are_equal_passes_for_single_images_and_pairs(passes, anchors):
    budget = BudgetConfig(image_passes=passes)
    for passes_per_step in (anchors, 2 * anchors):
        steps = budget.steps(per_epoch=10, passes_per_step=passes_per_step)
        assert abs(steps * passes_per_step - passes) <= passes_per_step / 2


def test_pairs_take_half_the_steps_of_single_images():
    budget = BudgetConfig(image_passes=128_000)
    assert budget.steps(12, 64) == 2000 and budget.steps(12, 128) == 1000


def test_a_budget_smaller_than_a_step_is_one_step():
    assert BudgetConfig(image_passes=1).steps(12, 64) == 1


def test_the_rate_begins_at_lr_and_falls_to_nearly_0():
    optimizer = OptimizerConfig(lr=0.4)
    assert rate(optimizer, optimizer.lr, 0, 1000) == pytest.approx(0.4)
    assert rate(optimizer, optimizer.lr, 500, 1000) == pytest.approx(0.2)
    assert 0 < rate(optimizer, optimizer.lr, 999, 1000) < 1e-5


def test_the_rate_follows_a_cosine():
    optimizer = OptimizerConfig(lr=0.4)
    for step in range(0, 100, 7):
        assert rate(optimizer, optimizer.lr, step, 100) == pytest.approx(0.4 * math.cos(math.pi * step / 200) ** 2)


def test_the_warm_up_rises_linearly_to_lr():
    optimizer = OptimizerConfig(lr=0.4, warmup=0.1)
    assert [rate(optimizer, optimizer.lr, step, 40) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_cosine_begins_where_the_warm_up_ends():
    optimizer = OptimizerConfig(lr=0.4, warmup=0.1)
    assert rate(optimizer, optimizer.lr, 4, 40) == pytest.approx(0.4)
    assert rate(optimizer, optimizer.lr, 22, 40) == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 97])
def test_every_step_of_every_run_has_a_rate_between_0_and_lr(warmup, steps):
    optimizer = OptimizerConfig(lr=0.4, warmup=warmup)
    assert all(0 < rate(optimizer, optimizer.lr, step, steps) < 0.4001 for step in range(steps))


# --- differences

HOW_TO_RUN = (
    *("data.root", "data.workers", "run.output", "run.resume", "run.progress", "run.checkpoint_every"),
    *("run.compile", "run.track", "run.overwrite"),
)


def test_differences_name_the_key_and_both_values():
    a, b = Config().to_dict(), Config(optimizer=OptimizerConfig(lr=0.2)).to_dict()
    assert differences(a, b) == ["optimizer.lr: 0.1 != 0.2"]


def test_a_setting_that_an_old_record_lacks_had_its_default():
    old, now = Config().to_dict(), Config().to_dict()
    del old["run"]["accumulate"]
    assert differences(old, now) == []
    assert differences(old, {**now, "run": {**now["run"], "accumulate": 2}}) == ["run.accumulate: 1 != 2"]


@pytest.mark.parametrize("tracked", [False, True])
def test_a_record_that_holds_run_tensorboard_is_of_the_same_run(tracked):
    old = Config().to_dict()
    old["run"]["tensorboard"] = tracked
    del old["run"]["track"]
    assert differences(old, Config(run=RunConfig(track="tensorboard")).to_dict()) == []


def test_settings_that_hold_run_tensorboard_false_are_read_as_before(tmp_path):
    old = {**Config().to_dict(), "run": {"seed": 3, "tensorboard": False}}
    assert from_dict(old) == Config(run=RunConfig(seed=3))
    (tmp_path / "old.yaml").write_text("run: {seed: 3, tensorboard: false}\n")
    assert read_yaml(str(tmp_path / "old.yaml")) == {"run": {"seed": 3}}


def test_run_tensorboard_true_says_what_to_write_now(tmp_path):
    (tmp_path / "old.yaml").write_text("run: {tensorboard: true}\n")
    for read in (
        lambda: from_dict({"run": {"tensorboard": True}}),
        lambda: Config(run={"tensorboard": True}),
        lambda: read_yaml(str(tmp_path / "old.yaml")),
        lambda: config.check_key("run.tensorboard", None),
    ):
        with pytest.raises(
            ValueError, match=r"^run\.tensorboard is no longer a setting: write run\.track: tensorboard"
        ):
            read()


def test_options_of_a_method_that_is_gone_are_compared_where_both_have_them():
    older, newer = {"name": "once_tried", "p": 1.0, "end": 0.5}, {"name": "once_tried", "p": 1.0, "end": 0.5, "new": 0}
    assert differences({"method": older}, {"method": newer}) == []
    assert differences({"method": older}, {"method": {**newer, "p": 0.5}}) == ["method.p: 1.0 != 0.5"]
    assert differences({"method": older}, {"method": {**newer, "name": "cutmix"}})[0].startswith("method.name: ")


def test_differences_tell_methods_apart():
    a, b = (Config(method=methods.build(name)).to_dict() for name in ("pair_distillation", "patch_swap"))
    assert "method.name: 'pair_distillation' != 'patch_swap'" in differences(a, b)
    assert "method.patch_size: None != 4" in differences(a, b)


def test_an_option_that_an_old_record_of_a_method_lacks_had_its_default():
    old, now = Config().to_dict(), Config().to_dict()
    del old["method"]["before"]
    assert differences(old, now) == []
    assert differences(old, {**now, "method": {**now["method"], "before": True}}) == ["method.before: False != True"]


@pytest.mark.parametrize("key", HOW_TO_RUN)
def test_what_does_not_change_the_result_is_no_difference(key):
    section, _, name = key.partition(".")
    changed = from_dict({section: {name: EVERYTHING[section][name]}})
    assert changed.to_dict() != Config().to_dict()
    assert differences(Config().to_dict(), changed.to_dict()) == []


@pytest.mark.parametrize("other", [{"epochs": 3}, {"image_passes": 90}])
def test_one_kind_of_budget_takes_the_place_of_the_other(other):
    for recipe_s in ({"epochs": 200}, {"image_passes": 5000}):
        assert merge({"budget": recipe_s}, {"budget": other}) == {"budget": other}


def test_every_other_setting_is_a_difference():
    unseen = []
    for section, options in EVERYTHING.items():
        for name, value in options.items():
            key = f"{section}.{name}"
            default = Config(run=RunConfig(device="mps", precision="bf16")).to_dict()
            if value != default[section][name] and key not in HOW_TO_RUN:
                changed = {**default, section: {**default[section], name: value}}
                unseen += [key] if [d.partition(":")[0] for d in differences(default, changed)] != [key] else []
    assert unseen == []


@pytest.mark.parametrize(("key", "value"), [("device", "cpu"), ("precision", "fp32")])
def test_what_a_run_leaves_to_the_machine_is_no_difference(key, value):
    found = Config(run=RunConfig(**{key: value})).to_dict()
    assert differences(found, Config().to_dict()) == differences(Config().to_dict(), found) == []


# --- bad values


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "name", None),
        ("data", "split", "test"),
        ("data", "batch_size", 0),
        ("data", "batch_size", 1.5),
        ("data", "batch_size", True),
        ("data", "classes", 0),
        ("data", "per_class", -1),
        ("data", "size", "32"),
        ("data", "count", 0),
        ("data", "crop_padding", -1),
        ("data", "seed", "a"),
        ("data", "flip", "no"),
        ("data", "verify", None),
        ("model", "name", "resnet9"),
        ("model", "name", None),
        ("budget", "epochs", 0),
        ("budget", "epochs", "3"),
        ("budget", "image_passes", -1),
        ("budget", "image_passes", 1e6),
        ("optimizer", "lr", NAN),
        ("optimizer", "lr", INF),
        ("optimizer", "lr", -0.1),
        ("optimizer", "lr", 0),
        ("optimizer", "lr", "1e-1"),
        ("optimizer", "lr", True),
        ("optimizer", "momentum", 1.0),
        ("optimizer", "momentum", NAN),
        ("optimizer", "nesterov", "no"),
        ("optimizer", "momentum", 0),  # Nesterov needs some
        ("optimizer", "weight_decay", -1e-4),
        ("optimizer", "weight_decay", INF),
        ("optimizer", "warmup", 1.0),
        ("optimizer", "warmup", -0.1),
        ("optimizer", "clip_norm", 0),
        ("optimizer", "clip_norm", NAN),
        ("run", "seed", -1),
        ("run", "seed", 0.5),
        ("run", "variant", "a/b"),
        ("run", "variant", ".."),
        ("run", "variant", 3),
        ("run", "device", "cuda:1"),
        ("run", "precision", "fp16"),
        ("run", "progress", 1),
        ("run", "evaluate_every", -1),
        ("run", "checkpoint_every", 0.5),
    ],
)
def test_a_bad_value_is_named_with_its_key(section, key, value):
    with pytest.raises(ValueError, match=rf"{section}\.{key} ") as raised:
        from_dict({section: {key: value}})
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "patch_swap", "p": 1.5}, "p must be a number in .0, 1., got 1.5"),
        ({"name": "patch_swap", "temperature": 0}, "temperature must be a finite number > 0, got 0"),
        ({"name": "patch_swap", "patch_size": -4}, "patch_size must be a positive integer .*got -4"),
        ({"name": "cutmix", "p": 1.5}, "method.p must .*got 1.5"),
        ({"name": "cutmix", "p": "0.5"}, "method.p must .*got '0.5'"),
        ({"name": "cutmix", "alpha": INF}, "method.alpha must .*got inf"),
        ({"name": "label_smoothing", "smoothing": None}, "method.smoothing must .*got None"),
    ],
)
def test_a_bad_value_of_a_method_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        from_dict({"method": options})


def test_two_budgets_are_refused():
    with pytest.raises(ValueError, match="either epochs or image_passes, got epochs=3 and image_passes=4"):
        from_dict({"budget": {"epochs": 3, "image_passes": 4}})


def test_no_budget_is_refused():
    with pytest.raises(ValueError, match="either epochs or image_passes, got epochs=None and image_passes=None"):
        from_dict({"budget": {}})


def test_momentum_may_be_0_without_nesterov():
    assert OptimizerConfig(momentum=0, nesterov=False).momentum == 0


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"model.name 'resnt14' is unknown; did you mean 'resnet14'"):
        ModelConfig("resnt14")


def test_an_unknown_data_set_names_the_nearest():
    known = "Known: shapes, shapes-scenes, "
    with pytest.raises(ValueError, match=rf"data.name 'shape' is unknown; did you mean 'shapes'\? {known}"):
        DataConfig("shape")


@pytest.mark.parametrize("variant", ["T2", "no-decay", "p0.5", "a_to_b"])
def test_a_variant_may_hold_what_a_file_name_holds(variant):
    assert RunConfig(variant=variant).variant == variant


def test_known_keys_are_the_fields_of_all_sections():
    known = config.known_keys("cutmix")
    assert {"method.name", "method.alpha", "method.p"} <= set(known)
    assert {f"optimizer.{field.name}" for field in fields(OptimizerConfig)} <= set(known)
    assert "method.patch_size" not in known
