"""Checkpoints: weights in safetensors, the rest in a file that `torch.load(weights_only=True)` reads.

A checkpoint is a folder `step-<number>`, written under another name and renamed, so that it is whole or absent. One
process alone writes there (`psd.training.folder`), so what is found under that other name is of one that was killed.
No random state is kept: every draw of a run is a function of its seed and step.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import nn

from psd import files, models
from psd.checks import Refused, brief

KEEP = 2


def save(folder: Path, step: int, model: nn.Module, state: dict[str, Any]) -> Path:
    """Write `folder/step-<step>` and delete all but this one and the one before it.

    Later ones go too: they are of a course that was left when the run went back to an older checkpoint.

    Raises:
        ValueError: a state of more than tensors, numbers, strings and containers of them. OSError: naming the
            checkpoint that cannot be written; those from before are as they were.
    """
    path, temporary = folder / f"step-{step:09d}", folder / ".step.part"
    rest = io.BytesIO()  # torch's own writing into a file hides that a disk is full
    torch.save(state, rest)
    rest.seek(0)
    _read_state(rest)  # what cannot be read again is refused now, not when a run needs it
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with files.blaming(path, temporary):
            files.make_folder(folder)
            temporary.mkdir()
            (temporary / "model.safetensors").write_bytes(serialised(_weights(model)))
            (temporary / "state.pt").write_bytes(rest.getvalue())
            remove(path)
            files.put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    kept = [other for other in every(folder) if other <= path][-KEEP:]
    for other in every(folder):
        if other not in kept:
            remove(other)
    return path


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the rest of what was saved; ValueError naming what is missing or unreadable."""
    try:
        weights, state = load_file(path / "model.safetensors"), _read_state(path / "state.pt")
    except Exception as error:  # safetensors, pickle and zip each raise their own kinds
        raise Refused(
            f"run.resume: {path} is no readable checkpoint: {error}. "
            "Remove it to go on from an older one, or start anew with --run.resume never"
        ) from error
    return weights, state


def remove(path: Path) -> None:
    """Delete a checkpoint or the folder of all, if it is there; out of sight at once, so that no half of it is seen."""
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)  # left by a process that was killed below
    if path.exists():
        path.rename(hidden)
        shutil.rmtree(hidden)


def every(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def save_model(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Weights and, in the file's header, what is needed to build the model again; whole or not at all."""
    with files.replacing(path) as temporary:
        temporary.write_bytes(serialised(_weights(model), metadata))


class WrongWeights(Refused):
    """Weights of a file are not those that its header tells of."""


def load_model(path: str | Path) -> nn.Module:
    """The trained network of a run's folder or of its `model.safetensors`, in eval mode on the CPU.

    "hub:OWNER/NAME" is one that `psd push` has put on the Hugging Face hub, "hub:OWNER/NAME@REVISION" one of its
    versions; weights are read as safetensors, so nothing of what was fetched is executed.

    Raises:
        ValueError: naming the path where there is no such file, or it is not one of ours, or of another model.
    """
    from safetensors import safe_open

    if isinstance(path, str) and path.startswith("hub:"):
        from psd.training.hub import fetch

        path = fetch(path.removeprefix("hub:"))
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise Refused(f"{path}: neither a model.safetensors nor the folder of a finished run")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # safetensors raises its own kind
        raise Refused(f"{file}: not readable as safetensors: {error}") from error
    if "model" not in metadata:
        raise Refused(f"{file}: does not say which model it holds; give the folder of a finished run of psd.train")
    try:
        model = _described(metadata, weights)
    except WrongWeights as error:
        raise Refused(f"{file}: {error}") from error
    except Exception as error:  # what a stranger's header says may be anything, and fail anywhere
        raise Refused(f"{file}: its header names no network that can be built: {error}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise Refused(f"{file}: its weights are not those of a {metadata['model']}: {error}") from error
    return model.eval()


def _described(metadata: dict[str, str], weights: dict[str, torch.Tensor]) -> nn.Module:
    """The network that a file's header tells of."""
    classes, options = int(metadata["classes"]), json.loads(metadata.get("options", "{}"))
    if not isinstance(options, dict) or "weights" in options:
        raise Refused(f"options must be a mapping without weights, got {brief(options)}")
    # Before memory is asked for so many.
    if classes > max((size for value in weights.values() for size in value.shape if value.numel()), default=0):
        raise WrongWeights(f"its weights are not those of a {metadata['model']} of {classes} classes")
    return models.build(metadata["model"], classes, **options)


def _read_state(file: Path | io.BytesIO) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, EOFError) as error:  # torch's own words advise to load without weights_only
        kinds = "tensors, numbers, strings and containers of them"
        raise Refused(f"state.pt is damaged or holds other things than {kinds}") from error
    return state


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor in memory of its own: safetensors refuses to write tied weights, which share theirs."""
    plain = torch.contiguous_format
    return {name: value.detach().cpu().clone(memory_format=plain) for name, value in model.state_dict().items()}
