"""Settings as text: those of a recipe or YAML file and of the command line, each in the type of its annotation."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import textwrap
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from psd import methods, models
from psd.checks import Refused, did_you_mean
from psd.data import at_a_path
from psd.training import config
from psd.training.config import SECTIONS


def read_settings(name: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """A recipe's or YAML file's nested dict with some settings changed, all values of the right type.

    Args:
        name: a shipped recipe's name, or the path of a YAML file.
        settings: dotted keys with their values as text, as the command line gives them.

    Raises:
        ValueError: naming the key and the value and, for an unknown one, the nearest known one.

    >>> read_settings("shapes", {"method.name": "cutmix", "method.alpha": "2"})["method"]
    {'name': 'cutmix', 'alpha': 2.0}
    """
    values = config.read_yaml(os.path.expanduser(name))
    method = settings.get("method.name") or values.get("method", {}).get("name") or config.Config().method.name
    changes: dict[str, dict[str, str]] = {}
    for key, text in settings.items():
        config.check_key(key, method)
        section, _, option = key.partition(".")
        changes.setdefault(section, {})[option] = text
    if "method" in changes:
        changes["method"]["name"] = method
    values = config.merge(values, changes)
    classes = {**SECTIONS, "method": methods.find(method)}
    for section in [section for section in classes if section in values]:
        hints = {"name": str, **get_type_hints(classes[section])}
        options = values[section].items()
        values[section] = {key: _typed(f"{section}.{key}", hints[key], value) for key, value in options}
    return values


def _typed(key: str, hint: Any, value: Any) -> Any:
    """The text or YAML value of a setting in the type of its annotation; `~` becomes the home folder."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--value", type=hint)
    try:
        typed = parser.parse_object({"value": value})["value"]
    except argparse.ArgumentError:
        choices = [c for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for c in get_args(kind)]
        raise Refused(f"{key} must be {_words(hint)}, got {value!r}{did_you_mean(str(value), choices)}") from None
    return at_home(typed) if isinstance(typed, str) else typed


def _words(hint: Any) -> str:
    """An annotation in plain words.

    >>> _words(int | None), _words(Literal["train", "fit"])
    ('an integer or null', 'train or fit')
    """
    if get_origin(hint) in (Union, UnionType, Literal):
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list such as [4, 8]" if int in get_args(hint) else "a list such as [0.5, 0.75]"
    if get_origin(hint) is dict:
        return 'a mapping such as {"img_size": 64}'
    names: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(hint, str(hint))


def list_settings(name: str | None, settings: Mapping[str, str]) -> str:
    """Every setting with its value in a recipe or file and with some settings changed; the defaults without one."""
    run = config.Config() if name is None else config.from_dict(read_settings(name, settings))
    names = {
        "model.name": ", ".join((*models.names(), "torchvision:NAME", "timm:NAME")),
        "method.name": ", ".join(methods.names()),
    }
    lines = ["settings, with their " + ("defaults:" if name is None else f"values in {name}:")]
    for section, options in run.to_dict().items():
        part = getattr(run, section)
        hints = get_type_hints(type(part))
        lines += ["", section, textwrap.indent(inspect.getdoc(part) or "", "  ")]
        for key, value in options.items():
            dotted, shown = f"{section}.{key}", value if isinstance(value, str) else json.dumps(value)
            lines.append(f"    --{dotted:<24} {shown:<14} {names.get(dotted) or _words(hints[key])}")
    return "\n".join(lines)


def at_home(text: str) -> str:
    """`~` as the home folder where no shell has made it so: in `--key=~/x`, YAML and `folder:~/x`."""
    prefix = f"{text.partition(':')[0]}:" if at_a_path(text) else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix))
