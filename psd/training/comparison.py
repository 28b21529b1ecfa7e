"""What `psd compare` trains: a recipe's methods, each with every seed at every budget, as one `Config` a run."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from psd.checks import Refused, brief
from psd.training.config import BudgetConfig, Config, DataConfig, RunConfig, check_mapping, from_dict, merge

ROW_SECTIONS = ("data", "model", "optimizer")  # of a run, those that the methods of a comparison may differ in


@dataclass
class Comparison:
    """Methods times seeds times budgets: the runs of `psd compare`, all methods of one seed before the next seed.

    A method is a mapping of its options, of `variant`, and of what its runs have otherwise than the rest of the
    comparison, under dotted keys: `{name: mixup, variant: b50, data.batch_size: 50}`.
    """

    base: dict[str, Any]
    methods: list[dict[str, Any]]
    seeds: list[int]
    budgets: list[dict[str, Any]]

    def configs(self) -> list[Config]:
        made = [
            from_dict(self._run(method, seed, budget))
            for budget in self.budgets
            for seed in self.seeds
            for method in self.methods
        ]
        names = [config.name for config in made]
        for name in names:
            if names.count(name) > 1:
                raise Refused(f"compare: two runs have the record {name}; name each method, seed and budget once")
        return made

    def _run(self, method: dict[str, Any], seed: int, budget: dict[str, Any]) -> dict[str, Any]:
        """{output}, {budget} and {seed} in a text are the run's own: a teacher may be another run of the comparison,
        weights those of another one."""
        own: dict[str, dict[str, Any]] = {}
        for key in [key for key in method if "." in key]:
            section, _, setting = key.partition(".")
            own.setdefault(section, {})[setting] = method[key]
        run = {"seed": seed, **({"variant": method["variant"]} if "variant" in method else {})}
        base = merge(merge({**self.base, "budget": budget}, {"run": run}), own)
        places = {
            "output": base["run"].get("output", RunConfig.output),
            "seed": seed,
            "budget": BudgetConfig(**base["budget"]).label,
        }
        options = {key: value for key, value in method.items() if key != "variant" and "." not in key}

        def filled(given: dict[str, Any]) -> dict[str, Any]:
            return {key: _filled(value, places) if isinstance(value, str) else value for key, value in given.items()}

        return {**base, **{key: {**base[key], **filled(own[key])} for key in own}, "method": filled(options)}


def _filled(text: str, places: dict[str, Any]) -> str:
    """With what stands for {output}, {budget} and {seed}; not `str.format`, whose fields can ask for far more."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in places:
            known = ", ".join(f"{{{name}}}" for name in places)
            raise Refused(
                f"compare.methods: {brief(text)} has {brief(found[0])}, which stands for nothing; known: {known}"
            )
        return str(places[found[1]])

    return re.sub(r"\{([^{}]*)\}", value, text)


def shortened(whole: Comparison) -> Comparison:
    """The same methods in a few steps of two seeds: what it prints means nothing, but all of it has run."""
    batch_size = whole.base.get("data", {}).get("batch_size", DataConfig.batch_size)
    return dataclasses.replace(whole, seeds=whole.seeds[:2], budgets=[{"image_passes": 4 * batch_size}])


def comparison(values: dict[str, Any], names: list[str] | None = None, seeds: list[int] | None = None) -> Comparison:
    """The comparison of a recipe's dict: its `compare` section's methods, then its own `method` unless it
    stands among them (by its name, without a variant); or those in `names`.

    A method in `names` takes the options it has in the recipe, else its defaults. `variant` among a method's options is
    its runs' `run.variant`, so that one method can stand there with several settings. `compare.budgets` is a list of
    budgets; the recipe's own is the only one where it is left out.
    """
    section = values.get("compare", {})
    check_mapping("compare", section)
    unknown = set(section) - {"methods", "seeds", "budgets"}
    if unknown:
        raise Refused(
            f"unknown key 'compare.{sorted(unknown)[0]}'; known are compare.methods, compare.seeds and compare.budgets"
        )
    listed, listed_seeds = section.get("methods", []), section.get("seeds", [0])
    if not isinstance(listed, list) or not all(isinstance(method, dict) and "name" in method for method in listed):
        raise Refused(f"compare.methods must be a list of mappings with a name, got {listed!r}")
    own = sorted({key.partition(".")[0] for method in listed for key in method if "." in key} - set(ROW_SECTIONS))
    if own:
        raise Refused(f"compare.methods: a method's runs may have their own {', '.join(ROW_SECTIONS)}, not {own[0]}")
    if not isinstance(listed_seeds, list):
        raise Refused(f"compare.seeds must be a list of integers, got {listed_seeds!r}")
    budgets = section.get("budgets", [values["budget"]] if "budget" in values else [{"epochs": Config().budget.epochs}])
    if not isinstance(budgets, list) or not budgets or not all(isinstance(budget, dict) for budget in budgets):
        raise Refused(f"compare.budgets must be a list of mappings, such as [{{epochs: 200}}], got {budgets!r}")
    chosen = list(listed)
    if "method" in values and not any(
        method["name"] == values["method"].get("name") and "variant" not in method for method in listed
    ):
        chosen.append(values["method"])
    if names is not None:
        chosen = [
            method
            for name in names
            for method in [listed for listed in chosen if listed["name"] == name] or [{"name": name}]
        ]
    base = {key: value for key, value in values.items() if key not in ("compare", "method", "budget")}
    return Comparison(base, chosen, listed_seeds if seeds is None else seeds, budgets)
