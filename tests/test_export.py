"""Trained networks as files that need no psd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.torch_version import TorchVersion

import psd
from psd import cli, models
from psd.data.batches import InMemory

pytestmark = pytest.mark.usefixtures("one_thread")

STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
NETWORKS = {
    "resnet8": {},
    "torchvision:mobilenet_v3_small": {},
    "timm:resnet10t": {},
    "timm:vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
    "fcn@resnet8": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    output = tmp_path_factory.mktemp("runs")
    config = psd.Config(
        data={"name": "shapes", "classes": 4, "count": 16, "batch_size": 8},
        method="cross_entropy",
        budget=1,
        run={"output": str(output), "progress": False, "device": "cpu"},
    )
    return output / psd.train(config).name


def images(n: int = 8) -> Tensor:
    return psd.data.load("shapes", split="test", classes=4, count=n).images


def expected(run: Path) -> Tensor:
    x, _ = next(InMemory(psd.data.load("shapes", split="test", classes=4, count=8)).batches(range(8), 8, "cpu"))
    with torch.no_grad():
        logits: Tensor = psd.load_model(run)(x)
    return logits


needs_onnx = pytest.mark.skipif(torch.__version__ < "2.7", reason="ONNX is written with PyTorch 2.7 or newer")


def by_onnx(file: Path, x: Tensor) -> Tensor:
    return torch.from_numpy(onnxruntime.InferenceSession(file).run(None, {"images": x.numpy()})[0])


@needs_onnx
def test_onnx_gives_the_logits_of_pixels_whatever_their_number(run, tmp_path):
    file = psd.export(run, tmp_path / "net.onnx", "onnx")
    for n in (1, 3, 8):
        torch.testing.assert_close(by_onnx(file, images()[:n]), expected(run)[:n], atol=1e-4, rtol=1e-4)


def test_torch_export_gives_them_without_psd(run, tmp_path):
    file = psd.export(run, tmp_path / "net.pt2", "torch_export")
    torch.save({"x": images(), "z": expected(run)}, tmp_path / "case.pt")
    code = (
        "import sys; sys.modules['psd'] = None\n"
        "import json, torch\n"
        f"case, said = torch.load({str(tmp_path / 'case.pt')!r}), {{'metadata.json': ''}}\n"
        f"network = torch.export.load({str(file)!r}, extra_files=said).module()\n"
        "for n in (1, 3, 8):\n"
        "    torch.testing.assert_close(network(case['x'][:n]), case['z'][:n], atol=1e-4, rtol=1e-4)\n"
        "print(json.loads(said['metadata.json'])['class_names'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.strip()) == list(psd.data.load("shapes", classes=4, count=4).classes)


def test_safetensors_are_the_network_s_own_weights(run, tmp_path):
    file = psd.export(run, tmp_path / "net.safetensors")
    model = psd.load_model(run)
    with safe_open(file, "pt") as opened:
        assert {*opened.keys()} == {*model.state_dict()}
        assert all(torch.equal(opened.get_tensor(key), value) for key, value in model.state_dict().items())
        assert opened.metadata()["input"] == "normalised float32"
    assert psd.load_model(file).num_classes == 4  # psd still knows it


@needs_onnx
def test_the_file_says_what_the_network_is(run, tmp_path):
    file = psd.export(run, tmp_path / "net.onnx", "onnx")
    said = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    assert said["input"] == "uint8 pixels" and said["size"] == "32" and said["name"].endswith("cross_entropy-s0")
    assert json.loads(said["class_names"]) == list(psd.data.load("shapes", classes=4, count=4).classes)
    assert json.loads(said["mean"]) == [0.5] * 3 and json.loads(said["std"]) == [0.27] * 3


@needs_onnx
def test_a_network_of_normalised_images(run, tmp_path):
    file = psd.export(run, tmp_path / "net.onnx", "onnx", pixels=False)
    data = InMemory(psd.data.load("shapes", split="test", classes=4, count=8))
    x, _ = next(data.batches(range(8), 8, "cpu"))
    torch.testing.assert_close(by_onnx(file, x.contiguous()), expected(run), atol=1e-4, rtol=1e-4)
    said = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    assert said["input"] == "normalised float32"


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=needs_onnx), "torch_export"])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_exported(name, format, tmp_path):
    torch.manual_seed(0)
    model = models.build(name, 3, **NETWORKS[name]).to(memory_format=torch.channels_last).train()
    file = psd.export(model, tmp_path / "net", format, size=32, classes=["a", "b", "c"], **STATISTICS)
    assert model.training  # as it was found
    x = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(STATISTICS[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval()((x / 255 - mean) / std)
    found = by_onnx(file, x) if format == "onnx" else torch.export.load(file).module()(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format must be one of safetensors, onnx, torch_export, got 'tflite'"),
        ({"format": "onnx"}, "size is not known of the network CifarResNet: give size=..."),
        (
            {"format": "onnx", "size": 32},
            "mean is not known of the network CifarResNet: give mean=..., or pixels",
        ),
    ],
)
def test_what_is_not_known_has_to_be_given(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        psd.export(models.build("resnet8", 3), tmp_path / "net", **options)
    assert not [*tmp_path.iterdir()]


def test_a_file_is_not_overwritten_unasked(run, tmp_path):
    (tmp_path / "net").write_text("mine")
    with pytest.raises(ValueError, match="net is there; give another path, or overwrite=True"):
        psd.export(run, tmp_path / "net")
    assert (tmp_path / "net").read_text() == "mine"
    psd.export(run, tmp_path / "net", overwrite=True)
    assert (tmp_path / "net").stat().st_size > 100_000


@needs_onnx
def test_a_detector_s_graph_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the network FCOS gives list, of which no graph is exported; of detectors"):
        psd.export(models.build("fcos@resnet8", 3), tmp_path / "net", "onnx", size=64, **STATISTICS)


def test_a_missing_package_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr("psd.training.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'format onnx needs onnx, which is missing: pip install "\.\[export\]"'):
        psd.export(run, tmp_path / "net", "onnx")


def test_onnx_is_refused_where_torch_is_too_old_for_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.1"))
    with pytest.raises(ValueError, match=r"format onnx needs PyTorch 2\.7 or newer, here is 2\.6\.1"):
        psd.export(run, tmp_path / "net", "onnx")
    assert not [*tmp_path.iterdir()]


@needs_onnx
def test_the_command_line_exports(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--output", str(tmp_path / "net.onnx")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "net.onnx")
    assert cli.main(["export", f"{run}.json", "--format", "torch_export"]) == 0
    assert (run / "exported.pt2").is_file()
    assert cli.main(["export", str(run), "--output", str(tmp_path / "net.onnx")]) == 2
    assert "is there; give another path" in capsys.readouterr().err
