"""What `import psd` gives and costs, and what the three files of the method need."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import psd

FOLDER = Path(psd.__file__).parent
METHOD = {
    "swap": ("patch_swap", "patch_mask", "PatchSwap"),
    "pairs": ("ClassPairs", "PairedBatchSampler", "same_class_partner"),
    "losses": ("SelfDistillationLoss", "LossTerms"),
}
HEAVY = ("torchvision", "accelerate", "matplotlib", "seaborn", "torchmetrics", "jsonargparse", "safetensors", "timm")


def imported(source: str) -> set[str]:
    """Top-level names of everything a source imports, wherever it does; "." stands for a relative import."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).partition(".")[0])
    return found


def test_imports_are_found_wherever_they_stand():
    source = "import os.path as p, sys\ndef f():\n    from a.b import c\n    from . import d"
    assert imported(source) == {"os", "sys", "a", "."}


# --- the method's files


@pytest.mark.parametrize("name", METHOD)
def test_a_file_of_the_method_imports_torch_and_the_standard_library_alone(name):
    names = imported((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert "torch" in names
    assert names - {"torch"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", METHOD)
def test_a_file_of_the_method_can_be_lifted_into_another_project(name, tmp_path, monkeypatch):
    for known in [key for key in sys.modules if key.partition(".")[0] == "psd"]:
        monkeypatch.setitem(sys.modules, known, None)  # whoever imports it meets an ImportError
    path = tmp_path / f"lifted_{name}.py"
    path.write_bytes((FOLDER / f"{name}.py").read_bytes())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all(getattr(module, public).__module__ == path.stem for public in METHOD[name])


# --- import psd


@pytest.mark.parametrize("use", ["", "psd.patch_swap, psd.PatchSwap, psd.ClassPairs, psd.SelfDistillationLoss()"])
def test_import_psd_loads_torch_and_nothing_else_of_weight(use):
    code = f"import sys, psd\n{use}\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("name", psd.__all__)
def test_every_public_name_resolves(name):
    assert getattr(psd, name) is not None
    assert name in dir(psd)


@pytest.mark.parametrize("name", [name for names in METHOD.values() for name in names])
def test_the_method_is_public(name):
    assert name in psd.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'psd' has no attribute 'patchswap'"):
        _ = psd.patchswap
