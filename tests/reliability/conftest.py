"""Tests of faults, bad input, untrusted files and laws: short in `make test`, long in `make reliability`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if sys.platform == "linux" else ["*faults*.py"]  # by its signals, forks, limits and mounts
LONG = os.environ.get("PSD_RELIABILITY") == "long"


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether to try as often as the long form does."""
    return LONG


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`tally(section, what, seen, tried=1)`: what a test tried and saw, for RELIABILITY.md; call it after the asserts.

    Rows with the same three texts are added up. Without PSD_TALLY, a file, nothing is noted.
    """

    def note(section: str, what: str, seen: str, tried: int = 1) -> None:
        if "PSD_TALLY" in os.environ:
            row = {"section": section, "what": what, "seen": seen, "tried": tried, "test": request.node.nodeid}
            with Path(os.environ["PSD_TALLY"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return note


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The words of a `psd train` of a tiny run, for `faults.Child`."""
    from faults import commands  # of Unix alone

    return commands(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def whole(train: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """That run, undisturbed: a `faults.Whole`."""
    from faults import Child, Whole

    folder = tmp_path_factory.mktemp("whole")
    assert Child(folder).end() == 0  # the server is there now, and counts no more
    return Whole(folder, lambda: [Child(folder, train(folder))])
