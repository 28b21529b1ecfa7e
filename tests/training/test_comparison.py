"""Comparisons: which runs a recipe's methods, seeds and budgets make."""

from __future__ import annotations

from typing import Any

import pytest

from psd import methods
from psd.training.comparison import comparison, shortened
from psd.training.config import BudgetConfig

COMPARED: dict[str, Any] = {
    "method": {"name": "patch_swap", "p": 0.9},
    "budget": {"epochs": 3},
    "run": {"variant": "x"},
    "compare": {"seeds": [0, 1], "methods": [{"name": "cutmix", "alpha": 2.0}, {"name": "cross_entropy"}]},
}


def test_a_comparison_runs_its_methods_then_the_recipe_s_own():
    runs = comparison(COMPARED).configs()
    assert [(run.method.name, run.run.seed) for run in runs] == [
        ("cutmix", 0),
        ("cross_entropy", 0),
        ("patch_swap", 0),
        ("cutmix", 1),
        ("cross_entropy", 1),
        ("patch_swap", 1),
    ]


def test_all_runs_of_a_comparison_share_everything_else():
    for run in comparison(COMPARED).configs():
        assert run.budget == BudgetConfig(epochs=3) and run.run.variant == "x"


def test_chosen_methods_take_the_recipe_s_options_or_their_defaults():
    chosen = comparison(COMPARED, names=["label_smoothing", "cutmix"]).configs()[:2]
    assert [run.method for run in chosen] == [methods.build("label_smoothing"), methods.build("cutmix", alpha=2.0)]


def test_chosen_seeds_replace_the_recipe_s():
    assert {run.run.seed for run in comparison(COMPARED, seeds=[5, 6, 7]).configs()} == {5, 6, 7}


def test_one_method_may_stand_there_with_several_settings():
    hot = {"name": "patch_swap", "p": 0.9, "variant": "T8", "temperature": 8.0}
    several = {**COMPARED, "run": {}, "compare": {"methods": [{"name": "cutmix"}, hot]}}
    runs = comparison(several, names=["patch_swap"]).configs()
    assert [run.name.rpartition("/")[2] for run in runs] == ["patch_swap-T8-s0", "patch_swap-s0"]
    assert [run.method.temperature for run in runs] == [8.0, 4.0]


def test_several_budgets_come_one_after_another():
    several = {**COMPARED, "compare": {**COMPARED["compare"], "budgets": [{"epochs": 2}, {"image_passes": 500}]}}
    labels = [run.budget.label for run in comparison(several).configs()]
    assert labels == ["2ep"] * 6 + ["500pass"] * 6


@pytest.mark.parametrize("budgets", [[], {"epochs": 3}, [3]])
def test_budgets_that_are_no_list_of_budgets_are_refused(budgets):
    with pytest.raises(ValueError, match=r"compare.budgets must be a list of mappings"):
        comparison({"compare": {"budgets": budgets}})


def test_a_teacher_may_be_another_run_of_the_comparison():
    section = {
        "seeds": [3],
        "methods": [{"name": "kd", "teacher": "{output}/shapes/resnet20/80ep/cross_entropy-s{seed}"}],
    }
    (run,) = comparison({"compare": section, "run": {"output": "here"}}).configs()
    assert run.method.teacher == "here/shapes/resnet20/80ep/cross_entropy-s3"


def test_a_shortened_comparison_has_the_same_methods_and_a_few_steps_of_two_seeds():
    whole = comparison(COMPARED, seeds=[4, 5, 6])
    short = shortened(whole).configs()
    assert {run.method.name for run in short} == {run.method.name for run in whole.configs()}
    assert {run.run.seed for run in short} == {4, 5}
    assert {run.budget.image_passes for run in short} == {4 * 64}


def test_an_unknown_key_of_a_comparison_is_refused():
    with pytest.raises(ValueError, match=r"unknown key 'compare.seed'; known are compare.methods, compare.seeds and"):
        comparison({"compare": {"seed": [1]}})


@pytest.mark.parametrize("section", [None, {"methods": [{"alpha": 1.0}]}, {"methods": ["cutmix"]}])
def test_a_comparison_that_is_no_list_of_methods_is_refused(section):
    with pytest.raises(ValueError, match=r"^compare"):
        comparison({"compare": section})


def test_two_runs_with_one_record_are_refused():
    twice = {"compare": {"methods": [{"name": "cutmix", "p": 0.2}, {"name": "cutmix", "p": 0.3}]}}
    with pytest.raises(ValueError, match="shapes/resnet8/80ep/cutmix-s0"):
        comparison(twice).configs()


def test_an_unknown_method_of_a_comparison_is_refused():
    with pytest.raises(ValueError, match="'patchswap' is unknown; did you mean 'patch_swap'"):
        comparison(COMPARED, names=["patchswap"]).configs()
