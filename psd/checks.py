"""Checks of what was given: settings against a dataclass's annotations and bounds, names against the known ones; and
texts from outside made fit to be shown."""

from __future__ import annotations

import difflib
import functools
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_WORDS = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string", NoneType: "None"}

# Control characters, those that turn the direction of writing, ends of lines, halves of characters: a terminal obeys
# them, or they make a text look like another one.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Refused(ValueError):
    """Something that was given is wrong: the message is for the user, who can mend it, and says how.

    The command line prints it as one line. Any other error is a fault of the program, and shows its traceback.
    """

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


def printable(text: object) -> str:
    r"""A text from outside (a class's name, a file's) as one line that does nothing but to be read.

    >>> print(printable("\x1b[31mred"))
    \x1b[31mred
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def markdown(text: object) -> str:
    """A text from outside that Markdown, in a table too, shows as it is: no HTML, column, code, link or image of it.

    >>> markdown("a|b <script>")
    'a&#124;b &lt;script&gt;'
    """
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[|`\[\]]", lambda found: f"&#{ord(found[0])};", escaped)


def check_inside(name: str, what: str) -> None:
    """Refuse a name that is not that of a file below the folder it is joined to.

    >>> check_inside("../mine", "record.name")
    Traceback (most recent call last):
    psd.checks.Refused: record.name must name a file below the output folder, without '..', got '../mine'
    """
    parts = re.split(r"[\\/]", name)
    if re.match("[A-Za-z]:", name) or not {"", ".", ".."}.isdisjoint(parts):
        raise Refused(f"{what} must name a file below the output folder, without '..', got {brief(name)}")
    if printable(name) != name:
        raise Refused(f"{what} is part of a file name: without control characters, got {brief(name)}")


def brief(value: object) -> str:
    """A value in part of a line."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-20:]}"


def taken(known: Mapping[str, Any], name: str, new: Any) -> bool:
    """Whether a name belongs to something else: not to `new` itself, nor to what an interactive cell, run once more,
    defines again, which is of the same qualified name in `__main__`."""
    old, cell = known.get(name), ("__main__", getattr(new, "__qualname__", None))
    again = cell == (getattr(old, "__module__", None), getattr(old, "__qualname__", None))
    return old is not new and not (again and new.__module__ == "__main__")


@contextmanager
def refusing(before: str = "") -> Iterator[None]:
    """Make ValueErrors of libraries, and of files that know nothing of psd, `Refused`, with `before` before them."""
    try:
        yield
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"{before}{error}") from error


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Let the refusal of what a file holds begin with the file."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{file}: {error}") from error


def check_settings(section: str, settings: Any, only: str | None = None, **bounds: str) -> None:
    """Refuse the first field of a dataclass, or the field `only`, whose value does not fit its annotation and bounds.

    Annotations: int, float, bool, str, None, Literals, and unions of them. A bool is no number, and a float is finite.

    Args:
        section: stands before the field's name in the message.
        bounds: of numbers, by the field's name, such as p=">= 0 and <= 1".

    Raises:
        ValueError: naming the field, what it must be, and its value.

    >>> from psd.methods.cutmix import CutMix
    >>> CutMix(p=2)
    Traceback (most recent call last):
    psd.checks.Refused: method.p must be a finite number >= 0 and <= 1, got 2
    """
    kind: Any = type(settings)
    hints = _hints(kind)
    for name in (field.name for field in fields(settings)):
        if only not in (None, name):
            continue
        value, bound = getattr(settings, name), bounds.get(name, "")
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            value = plain(value)
            setattr(settings, name, value)
        kinds = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
        if isinstance(value, os.PathLike) and str in kinds:
            value = os.fspath(value)
            setattr(settings, name, value)
        if not any(_fits(value, kind, bound) for kind in kinds):
            wanted = " or ".join(_words(k, bound) for k in kinds)
            raise Refused(f"{section}.{name} must be {wanted}, got {brief(value)}")
        if isinstance(value, str) and printable(value) != value:
            raise Refused(f"{section}.{name} must be a text without control characters, got {brief(value)}")


def plain(value: Any) -> Any:
    """NumPy's and torch's numbers and arrays as Python's, which files hold; other values as they are.

    >>> import torch
    >>> plain(torch.tensor([0.5])), plain(torch.float32)
    ([0.5], torch.float32)
    """
    library = type(value).__module__.partition(".")[0]
    return value.tolist() if library in ("numpy", "torch") and hasattr(value, "tolist") else value


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The end of an error's sentence that offers the nearest known name; empty where none is near.

    >>> did_you_mean("patchswap", ["cutmix", "patch_swap"])
    "; did you mean 'patch_swap'?"
    """
    near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, kind: Any, bound: str) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:  # of any number of one kind
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0], bound) for item in value)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0], bound) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not -math.inf < value < math.inf:
        return False
    if kind is float and not abs(value) < 1e300:  # integers have no end
        return False
    limits = (part.split() for part in bound.split(" and ") if part)
    return all(_COMPARE[sign](value, float(limit)) for sign, limit in limits)


def _words(kind: Any, bound: str) -> str:
    if get_origin(kind) is tuple:
        return f"a tuple, each {_words(get_args(kind)[0], bound)}"
    if get_origin(kind) is list:
        return f"a list, each {_words(get_args(kind)[0], bound)}"
    if get_origin(kind) is dict:
        return "a mapping"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return f"{_WORDS[kind]} {bound}".rstrip() if kind in (int, float) else _WORDS[kind]
