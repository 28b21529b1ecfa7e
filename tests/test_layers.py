"""Imports inside psd run downwards only, wherever in a module they stand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import psd

FOLDER = Path(psd.__file__).parent
LAYERS = (  # each may import what stands before it, and its own package; not what stands beside it
    ("swap", "pairs", "losses"),  # the method: each can be lifted out as one file
    ("checks", "files", "seeding", "threads"),  # of no subject
    ("calibration", "features"),  # about networks and their outputs
    ("methods",),
    ("tasks",),
    ("data",),
    ("models",),
    ("training",),
    ("reporting",),
    ("cli",),
    ("__main__", "__init__"),  # how all of it is reached: the command, and `import psd`
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
MODULES = {
    path.relative_to(FOLDER).as_posix(): path.relative_to(FOLDER).with_suffix("").parts[0]
    for path in FOLDER.rglob("*.py")
}


def imported(source: str) -> set[str]:
    """The part of psd, such as "data", of everything that a source imports of psd; "__init__" is psd itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        full = []
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import, whose layer nobody sees"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in full:
            package, _, rest = name.partition(".")
            part = rest.partition(".")[0]
            if package == "psd":
                found.add(part if part in LAYER else "__init__")
    return found


def upwards(part: str, source: str) -> set[str]:
    """What a module of `part` imports and must not."""
    return {other for other in imported(source) - {part} if LAYER[other] >= LAYER[part]}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from psd.training import config", {"training"}),
        ("import psd.data.folder as f, os", {"data"}),
        ("def f():\n    from psd import tasks, swap", {"tasks", "swap"}),
        ("class A:\n    def f(self):\n        import psd", {"__init__"}),
        ("from psd import Config", {"__init__"}),
        ("if TYPE_CHECKING:\n    from psd.methods import Method", {"methods"}),
        ("from torch import psd\nimport psdata", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, found):
    assert imported(source) == found


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("data", "def f():\n    from psd.training.config import Config"),
        ("losses", "from psd import swap"),
        ("seeding", "from psd.checks import Refused"),
        ("models", "import psd"),
    ],
)
def test_an_import_upwards_or_sideways_is_seen(part, source):
    assert len(upwards(part, source)) == 1


def test_every_module_has_a_layer():
    assert set(MODULES.values()) == set(LAYER)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_from_the_layers_below_it_alone(module):
    assert upwards(MODULES[module], (FOLDER / module).read_text(encoding="utf-8")) == set()
