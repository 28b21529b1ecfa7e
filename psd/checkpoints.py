"""Checkpoints: weights in safetensors, the rest in a file that `torch.load(weights_only=True)` reads.

A checkpoint is a folder `step-<number>`, written under a temporary name and renamed, so that it is whole or absent.
No random state is kept: every draw of a run is a function of its seed and step.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

KEEP = 2


def save(folder: Path, step: int, model: nn.Module, state: dict[str, Any]) -> Path:
    """Write `folder/step-<step>` and delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}"
    temporary = folder / f".{path.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(_weights(model), temporary / "model.safetensors")
    torch.save(state, temporary / "state.pt")
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    for old in every(folder)[:-KEEP]:
        shutil.rmtree(old)
    return path


def load(path: Path, model: nn.Module) -> dict[str, Any]:
    """Load the weights into `model` and return the rest; ValueError naming what is missing or unreadable."""
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
        state: dict[str, Any] = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    except Exception as error:  # safetensors, pickle and zip each raise their own kinds
        raise ValueError(f"run.resume: {path} is no readable checkpoint: {error}") from error
    return state


def every(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def save_model(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Weights and, in the file's header, what is needed to build the model again; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(_weights(model), temporary, metadata)
    temporary.replace(path)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
