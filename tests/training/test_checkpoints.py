"""Checkpoints: what is saved is what is loaded, whole or absent, and nothing but plain values is ever read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from psd.training import checkpoints

STATE = {"step": 3, "note": None, "loss": [0.1, 1e-30], "config": {"patch_size": (4, 8), "name": "ä"}}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model(torch.randn(5, 3, 3, 3))  # so that the buffers are not those of any network
    return model


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.save(folder, step, network(step), {"step": step})


# --- save and load


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = checkpoints.save(tmp_path, 3, network(), STATE)
    weights, state = checkpoints.load(path)
    assert same(weights, network().state_dict())
    assert state == STATE


def test_an_optimizer_s_state_makes_the_round_trip(tmp_path):
    model = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(5, 3, 3, 3)).sum().backward()
    optimizer.step()
    path = checkpoints.save(tmp_path, 1, model, {"optimizer": optimizer.state_dict()})
    loaded = checkpoints.load(path)[1]["optimizer"]
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    for key, state in optimizer.state_dict()["state"].items():
        assert torch.equal(loaded["state"][key]["momentum_buffer"], state["momentum_buffer"])


def test_the_weights_are_a_file_of_safetensors(tmp_path):
    path = checkpoints.save(tmp_path, 3, network(), STATE)
    assert same(load_file(path / "model.safetensors"), network().state_dict())


def test_weights_in_channels_last_are_saved(tmp_path):
    path = checkpoints.save(tmp_path, 3, network().to(memory_format=torch.channels_last), STATE)
    assert same(checkpoints.load(path)[0], network().state_dict())


def test_tied_weights_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    path = checkpoints.save(tmp_path, 3, model, STATE)
    assert same(checkpoints.load(path)[0], model.state_dict())


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = network().to(memory_format=torch.channels_last)
    checkpoints.save(tmp_path, 3, model, STATE)
    assert same(model.state_dict(), network().state_dict())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and model[0].weight.requires_grad


@pytest.mark.parametrize("value", [np.float64(0.1), np.zeros(3), Path("a"), network])
def test_a_state_that_could_not_be_read_again_is_refused_when_saved(value, tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="holds other things than tensors, numbers, strings and containers of them"):
        checkpoints.save(tmp_path, 2, network(), {"method": {"table": value}})
    assert names(tmp_path) == ["step-000000001"]


# --- which are kept


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert checkpoints.every(tmp_path / "missing") == []


def test_checkpoints_are_listed_oldest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "KEEP", 9)
    save(tmp_path, 9, 10, 100, 99_999, 100_000)
    steps = [checkpoints.load(path)[1]["step"] for path in checkpoints.every(tmp_path)]
    assert steps == [9, 10, 100, 99_999, 100_000]


def test_the_newest_two_are_kept(tmp_path):
    for step in (9, 10, 11, 100):
        path = checkpoints.save(tmp_path, step, network(step), {"step": step})
        assert checkpoints.every(tmp_path)[-1] == path
    assert names(tmp_path) == ["step-000000011", "step-000000100"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, 2)
    path = checkpoints.save(tmp_path, 2, network(7), {"step": "again"})
    weights, state = checkpoints.load(path)
    assert same(weights, network(7).state_dict()) and state == {"step": "again"}
    assert names(tmp_path) == ["step-000000001", "step-000000002"]


def test_a_run_that_went_back_to_an_older_checkpoint_loses_the_later_ones(tmp_path):
    save(tmp_path, 20, 30)
    save(tmp_path, 25)
    assert names(tmp_path) == ["step-000000020", "step-000000025"]


def test_removing_takes_all(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1, 2)
    checkpoints.remove(folder)
    assert names(tmp_path) == []


def test_removing_ends_what_a_killed_process_had_begun(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    (tmp_path / ".checkpoints.removed" / "step-000000009").mkdir(parents=True)
    checkpoints.remove(folder)
    assert names(tmp_path) == []


def test_removing_what_is_not_there_does_nothing(tmp_path):
    checkpoints.remove(tmp_path / "missing")
    assert names(tmp_path) == []


# --- whole or absent


def fail(monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]) -> None:
    """Let writing fail at some point, where possible after half of a file."""

    write = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        write(path, content[:4])
        if path.name.startswith(where) or path.name.startswith(f".{where}"):
            raise error
        return write(path, content)

    def replace(path: Path, target: Path) -> None:
        if target.name.startswith("step-"):
            raise error
        os.replace(path, target)

    if where == "rename":
        monkeypatch.setattr(Path, "replace", replace)
    else:
        monkeypatch.setattr(Path, "write_bytes", half)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["model.safetensors", "state.pt", "rename"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(where, error, tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    fail(monkeypatch, where, error)
    with pytest.raises(error):
        save(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    weights, state = checkpoints.load(checkpoints.every(tmp_path)[-1])
    assert same(weights, network(2).state_dict()) and state == {"step": 2}


def test_a_checkpoint_is_out_of_sight_before_it_is_deleted(tmp_path, monkeypatch):
    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "state.pt").unlink()
            raise KeyboardInterrupt

    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.shutil, "rmtree", killed)
        save(tmp_path, 3)
    assert [checkpoints.load(path)[1]["step"] for path in checkpoints.every(tmp_path)] == [2, 3]


def left_by_a_killed_process(folder: Path) -> Path:
    path = folder / ".step.part"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"half")
    return path


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    left_by_a_killed_process(tmp_path)
    assert [path.name for path in checkpoints.every(tmp_path)] == ["step-000000001"]


def test_what_a_killed_process_left_does_not_stop_the_next(tmp_path):
    left_by_a_killed_process(tmp_path)
    save(tmp_path, 9)
    assert names(tmp_path) == ["step-000000009"]
    assert same(checkpoints.load(tmp_path / "step-000000009")[0], network(9).state_dict())


# --- refusals


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", [cut_short, Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_unreadable_checkpoint_is_named_with_the_remedy(name, damage, tmp_path):
    path = checkpoints.save(tmp_path, 3, network(), STATE)
    damage(path / name)
    with pytest.raises(ValueError, match=r"run\.resume: .*step-000000003 is no readable checkpoint: .*Remove it"):
        checkpoints.load(path)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"run\.resume: .*missing is no readable checkpoint: "):
        checkpoints.load(tmp_path / "missing")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = checkpoints.save(tmp_path, 3, network(), STATE)
    torch.save(Malicious(tmp_path / "ran"), path / "state.pt")
    with pytest.raises(ValueError, match=r"is no readable checkpoint: state\.pt is damaged or holds other things"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()


# --- the weights of a finished run


def test_a_model_s_file_holds_its_weights_and_what_it_is(tmp_path):
    checkpoints.save_model(tmp_path / "run" / "model.safetensors", network(), {"model": "resnet8", "classes": "2"})
    assert same(load_file(tmp_path / "run" / "model.safetensors"), network().state_dict())
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"model": "resnet8", "classes": "2"}


def test_a_model_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    checkpoints.save_model(tmp_path / "model.safetensors", network(1), {})
    fail(monkeypatch, "model.safetensors", OSError)
    with pytest.raises(OSError):
        checkpoints.save_model(tmp_path / "model.safetensors", network(2), {})
    assert names(tmp_path) == ["model.safetensors"]
    assert same(load_file(tmp_path / "model.safetensors"), network(1).state_dict())
