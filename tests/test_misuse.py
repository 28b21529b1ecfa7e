"""What people pass in who come from elsewhere: each works, or one line says what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

import psd
from psd.methods.patch_swap import PatchSwap as SwapMethod
from psd.training.records import Record

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = psd.data.load("shapes", classes=3, count=24, size=16)
PIXELS, LABELS = DATA.images, DATA.targets


def network(classes: int = 3) -> nn.Module:
    return psd.models.build("resnet8", classes)


def fit(output: Path, data: Any = DATA, test: Any = None, model: Any = None, **changes: Any) -> Record:
    run = {"output": output, "progress": False, "device": "cpu", **changes.pop("run", {})}
    given = {"budget": 1, "batch_size": 6, "run": run, **changes}
    return psd.fit(network() if model is None else model, data, test, **given)


def config(output: Path, **sections: Any) -> psd.Config:
    data = {"name": "shapes", "count": 24, "classes": 3, "size": 16, "batch_size": 6, **sections.pop("data", {})}
    run = {"output": output, "progress": False, "device": "cpu", **sections.pop("run", {})}
    return psd.Config(**{"budget": 1, "data": data, "run": run, **sections})


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 500


# --- data sets


class Columns(Dataset[Any]):
    """As Hugging Face's data sets are: items are dicts, a column is had by its name."""

    column_names = ("image", "label")

    def with_format(self, kind: None) -> Columns:
        return self

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, key: Any) -> Any:
        if key == "label":
            return LABELS.tolist()
        image = Image.fromarray(PIXELS[key].permute(1, 2, 0).numpy())
        return {"image": image, "label": int(LABELS[key])}


DATA_SETS: dict[str, tuple[Callable[[], Any], int]] = {
    "Subset": (lambda: Subset(DATA, range(0, 24, 2)), 12),
    "random_split": (lambda: random_split(DATA, [0.5, 0.5], torch.Generator().manual_seed(0))[0], 12),
    "ConcatDataset": (lambda: ConcatDataset([DATA, DATA]), 48),
    "TensorDataset": (lambda: TensorDataset(PIXELS, LABELS), 24),
    "TensorDataset of floats and int32": (lambda: TensorDataset(PIXELS / 255, LABELS.int()), 24),
    "Hugging Face": (Columns, 24),
    "Subset of Hugging Face": (lambda: Subset(Columns(), range(12)), 12),
    "list of tensors": (lambda: [(x / 255, int(y)) for x, y in DATA], 24),
    "list with labels of NumPy": (lambda: [(x.permute(1, 2, 0).numpy(), np.int32(y)) for x, y in DATA], 24),
    "list with labels of torch": (lambda: list(zip(PIXELS, LABELS, strict=True)), 24),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_labels_of_a_data_set_are_found_for_pairs(name):
    make, n = DATA_SETS[name]
    pairs = psd.ClassPairs(make())
    assert len(pairs) == n
    for i in range(0, n, 5):
        _, _, y, index = pairs[i]
        assert index == i and y == int(psd.pairs.labels_of(make())[i])


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_is_trained_on_and_measured(name, tmp_path):
    make, n = DATA_SETS[name]
    model = network()
    record = fit(tmp_path, make(), make(), model)
    assert record.epochs[-1]["steps"] == n // 6 and record.final["n_test"] == n
    assert psd.evaluate(model, make())["top1"] == record.final["top1"]


@pytest.mark.parametrize(
    "use",
    [
        psd.ClassPairs,
        lambda loader: psd.PairedBatchSampler(loader, 6),
        lambda loader: psd.evaluate(network(), loader),
        lambda loader: psd.fit(network(), loader, budget=1),
        lambda loader: psd.fit(network(), DATA, loader, budget=1),
    ],
)
def test_a_data_loader_is_refused_with_what_to_give_instead(use):
    with pytest.raises(ValueError, match=r"DataLoader.*give its .*dataset") as error:
        use(DataLoader(DATA, 4))
    assert one_line(error)


def test_a_split_in_the_place_of_the_root_is_refused():
    # psd.data.load("shapes", "test") once gave the training images
    with pytest.raises(ValueError, match="root='test' is the name of a split: write split='test'"):
        psd.data.load("shapes", "test")


def test_integers_of_numpy_choose_a_data_set_s_images():
    found = psd.data.load("shapes", classes=np.int32(3), count=np.int64(24), size=np.int64(16), seed=np.int64(0))
    assert torch.equal(found.images, PIXELS)


@pytest.mark.parametrize("value", [8.0, "8", True])
def test_what_is_no_integer_is_named(value):
    with pytest.raises(ValueError, match=f"^count must be an integer, got {value!r}$"):
        psd.data.load("shapes", count=value)


# --- configurations


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"method": psd.PatchSwap()},
            r"psd\.methods\.build\('patch_swap', patch_size=4\), got an instance of PatchSwap",
        ),
        ({"method": psd.SelfDistillationLoss()}, "got an instance of SelfDistillationLoss"),
        ({"method": SwapMethod}, r"an instance of it, PatchSwap\(\)"),
        (
            {"model": network()},
            "model must be a name, .*got an instance of CifarResNet; psd.fit takes the model itself",
        ),
        ({"data": DATA}, "data must be a name, .*got an instance of ImageData; psd.fit takes the data itself"),
        ({"optimizer": "adamw"}, r"a mapping of settings such as {'name': 'adamw', 'lr': 0.001} or .*got 'adamw'"),
        ({"optimizer": torch.optim.SGD(network().parameters())}, "instance of SGD; psd.fit takes the optimizer itself"),
        (
            {"optimizer": {"learning_rate": 0.1}},
            r"unknown key 'optimizer\.learning_rate'; did you mean 'optimizer\.lr'",
        ),
        ({"data": {"batchsize": 6}}, r"unknown key 'data\.batchsize'; did you mean 'data\.batch_size'"),
        ({"budget": "3ep"}, "budget must be a number of epochs, .*got '3ep'"),
        ({"budget": True}, "budget must be a number of epochs, .*got True"),
        ({"optimizer": {"milestones": 0.5}}, r"optimizer\.milestones must be .*got 0.5"),
    ],
)
def test_what_is_no_section_is_refused_in_one_line(sections, message):
    with pytest.raises(ValueError, match=message) as error:
        psd.Config(**sections)
    assert one_line(error)


def test_a_name_stands_for_a_section_and_a_number_for_epochs():
    made = psd.Config(data="cifar100", model="resnet18", method="cutmix", budget=3, task="classification")
    assert made.name == "cifar100/resnet18/3ep/cutmix-s0"


def test_numbers_of_numpy_are_settings_and_stand_in_the_record_as_python_s(tmp_path):
    size = np.int64(4)
    made = config(
        tmp_path,
        data={"batch_size": np.int64(6), "flip": np.bool_(True)},
        method={"name": "patch_swap", "patch_size": size, "p": np.float64(0.5)},
        budget=np.int64(1),
        optimizer={"lr": np.float32(0.5), "milestones": np.array([0.25, 0.5])},
        run={"seed": np.int64(1)},
    )
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    options = psd.config.ModelConfig("timm:vit_tiny_patch16_224", options={"img_size": np.int64(32)}).options
    assert json.dumps(options) == '{"img_size": 32}'
    for rectangle in ((size, size), np.array([4, 4]), [4, 4]):
        assert psd.methods.build("patch_swap", patch_size=rectangle).patch_size == (4, 4)


def test_a_network_in_the_place_of_a_teacher_s_file_is_refused_by_the_option_s_name():
    with pytest.raises(ValueError, match=r"^method\.teacher must be a string"):
        psd.methods.build("kd", teacher=nn.Linear(2, 2))


@pytest.mark.parametrize(
    "value", [nn.GELU, nn.GELU(), torch.float32, {"act": nn.GELU}, [nn.GELU], {1: 2}], ids=lambda value: str(value)
)
def test_an_option_of_a_network_that_no_record_can_hold_is_refused(value):
    what = r"model\.options: act_layer must be what a record can hold .*psd\.fit"
    with pytest.raises(ValueError, match=what) as error:
        psd.config.ModelConfig("timm:vit_tiny_patch16_224", options={"act_layer": value})
    assert one_line(error)


def test_options_of_a_network_may_be_nested():
    options = {"block": {"depths": [1, 2], "drop": 0.1, "name": None, "flag": True}}
    assert psd.config.ModelConfig("timm:vit_tiny_patch16_224", options=options).options == options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet18"}, r"model must be a mapping of settings such as {'name': 'resnet18'}, got 'resnet18'"),
        ({"method": "cutmix"}, r"method must be a mapping of settings such as {'name': 'cutmix'}, got 'cutmix'"),
        ({"budget": 3}, r"budget must be a mapping of settings such as {'epochs': 3}, got 3"),
        ({"model": network()}, "model must be a mapping of settings, got an instance of CifarResNet"),
    ],
)
def test_what_changes_a_recipe_must_be_settings(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        psd.config.recipe("shapes", **changes)
    assert one_line(error)


def test_paths_are_taken_for_texts(tmp_path):
    assert psd.Config(run={"output": tmp_path}).run.output == str(tmp_path)
    assert psd.Config(data={"root": tmp_path}).data.root == str(tmp_path)


@pytest.mark.parametrize("given", ["shapes", {"data": {"name": "shapes"}}])
def test_train_says_what_a_configuration_is(given):
    with pytest.raises(
        ValueError, match=r"config must be a psd\.Config, such as psd\.config\.recipe\('shapes'\), got "
    ):
        psd.train(given)


# --- psd.fit


def test_fit_takes_integers_of_numpy(tmp_path):
    record = fit(tmp_path, budget=np.int64(1), batch_size=np.int64(6))
    assert record.epochs[-1]["steps"] == 4 and record.config["data"]["batch_size"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "6"}, r"data\.batch_size must be an integer >= 1, got '6'"),
        ({"batch_size": 6.0}, r"data\.batch_size must be an integer >= 1, got 6.0"),
        ({"batch_size": True}, r"data\.batch_size must be an integer >= 1, got True"),
        ({"budget": 1.5}, "budget must be a number of epochs, .*got 1.5"),
        ({"budget": {"epoch": 1}}, r"unknown key 'budget\.epoch'; did you mean 'budget\.epochs'"),
        ({"run": {"sed": 1}}, r"unknown key 'run\.sed'; did you mean 'run\.seed'"),
        ({"optimizer": {"learning_rate": 0.1}}, r"did you mean 'optimizer\.lr'"),
        ({"optimizer": "adamw"}, "settings such as {'name': 'adamw', 'lr': 0.001}, .*got 'adamw'"),
        ({"optimizer": torch.optim.SGD}, r"such as lambda p: SGD\(p, lr=0.01\), got the class SGD"),
        ({"schedule": CosineAnnealingLR}, "schedule must be a name, a function .*got <class .*CosineAnnealingLR"),
        ({"schedule": 0.5}, "schedule must be a name, a function .*got 0.5"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant, multistep, got 'linear'"),
        ({"loading": {"worker": 2}}, "loading has no option 'worker'; did you mean 'workers'"),
        ({"model": "resnet8"}, r"model must be an nn\.Module, .*got 'resnet8'"),
        ({"method": psd.PatchSwap()}, "got an instance of PatchSwap"),
    ],
)
def test_fit_refuses_in_one_line_what_it_cannot_use(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        fit(tmp_path, **changes)
    assert one_line(error) and not list(tmp_path.iterdir())


def test_a_scheduler_of_torch_comes_with_its_optimizer(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = OneCycleLR(optimizer, 0.1, total_steps=4)
    with pytest.raises(ValueError, match="OneCycleLR is of another optimiser than this run's: give optimizer=, too"):
        fit(tmp_path, model=model, schedule=schedule)
    record = fit(tmp_path, model=model, optimizer=optimizer, schedule=schedule)
    assert record.epochs[-1]["lr"] == pytest.approx(schedule.get_last_lr()[0])


def test_evaluate_says_what_a_model_is():
    with pytest.raises(
        ValueError, match=r"model must be an nn\.Module, such as psd\.load_model\(FOLDER\) gives, got a str"
    ):
        psd.evaluate("resnet8", DATA)


# --- sizes


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_32"])
def test_a_transformer_of_another_size_is_refused_with_the_option_to_set(name, tmp_path):
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(ValueError, match=r"16 x 16 pixels .*img_size=16, torchvision's by image_size=16") as error:
        psd.train(config(tmp_path, model=name))
    assert one_line(error)


def test_a_network_that_is_no_transformer_is_not_told_of_such_options(tmp_path):
    with pytest.raises(ValueError, match="does not take images of 16 x 16 pixels") as error:
        psd.train(config(tmp_path, model="torchvision:alexnet"))
    assert "img_size" not in str(error.value)


def test_the_option_that_the_error_names_works(tmp_path):
    pytest.importorskip("timm")
    model = {"name": "timm:vit_tiny_patch16_224", "options": {"img_size": 16}}
    assert psd.train(config(tmp_path, model=model)).final["top1"] >= 0


@pytest.mark.parametrize("options", [{}, {"before": True}])
def test_a_patch_size_that_does_not_fit_leaves_older_checkpoints_and_results(options, tmp_path):
    psd.train(config(tmp_path))
    folder = tmp_path / config(tmp_path).name
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000002" / "state.pt").write_bytes(b"of an older run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    method = {"name": "patch_swap", "patch_size": 5, **options}
    wrong = config(tmp_path, method=method, run={"overwrite": True, "checkpoint_every": 1})
    with pytest.raises(ValueError, match=r"method\.patch_size 5 does not divide the images of 16 x 16 pixels"):
        psd.train(wrong)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("method", ["mixup", "cutmix", "patch_swap_cutmix"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (2, 2)])
def test_a_batch_of_one_is_not_mixed_with_itself(method, batch_size, accumulate, tmp_path):
    made = config(tmp_path, method=method, data={"batch_size": batch_size}, run={"accumulate": accumulate})
    with pytest.raises(ValueError, match=re.escape("data.batch_size must be at least 2, got 1")):
        psd.train(made)


@pytest.mark.parametrize("names", [("image", "kind"), ("picture", "label")])
def test_columns_of_other_names_are_to_be_renamed(names, tmp_path):
    items = [dict(zip(names, (x, int(y)), strict=True)) for x, y in zip(PIXELS, LABELS, strict=True)]
    with pytest.raises(ValueError, match="rename_column"):
        fit(tmp_path, items)


def test_a_function_is_no_callback(tmp_path):
    with pytest.raises(ValueError, match=r"callbacks must be instances of .*OnEpoch"):
        fit(tmp_path, callbacks=[print])


def test_the_loss_says_what_to_call_backward_of():
    z = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(TypeError, match=r"\.total\.backward\(\)"):
        psd.SelfDistillationLoss()(z, z, torch.tensor([0, 1])).backward()
