"""Networks for segmentation and detection: heads on the maps of any backbone, and weights moved into them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import psd
from psd import models
from psd.models import HEADS, detection, segmentation
from psd.models.backbone import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, SIDE = 4, 64
BACKBONES = {  # strides of their maps
    "resnet8": [1, 2, 4],
    "wrn28_10": [1, 2, 4],
    "mobilenetv2": [1, 2, 4, 8],
    "torchvision:resnet18": [2, 4, 8, 16, 32],
    "torchvision:mobilenet_v3_small": [2, 4, 8, 16, 32],
    "torchvision:efficientnet_b0": [2, 4, 8, 16, 32],
    "torchvision:convnext_tiny": [4, 8, 16, 32],
    "torchvision:regnet_y_400mf": [2, 4, 8, 16, 32],
    "torchvision:swin_t": [4, 8, 16, 32],
    "torchvision:densenet121": [2, 4, 8, 16, 32],
    "timm:resnet18": [2, 4, 8, 16, 32],
    "timm:mobilenetv3_small_100": [2, 4, 8, 16, 32],
    "timm:tf_efficientnet_lite0": [2, 4, 8, 16, 32],
    "timm:convnext_atto": [4, 8, 16, 32],
}
TARGETS = [
    {"boxes": torch.tensor([[8.0, 8, 40, 40], [30, 20, 60, 60]]), "labels": torch.tensor([1, 3])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def images(n: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


# --- backbones


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_a_map_of_each_resolution(name):
    torch.manual_seed(0)
    network = models.build(name, CLASSES)
    names = dict(network.named_parameters())
    backbone = Backbone(network, name)
    assert backbone.strides == BACKBONES[name]
    for found, stride, channels in zip(backbone(images(side=128)), backbone.strides, backbone.channels, strict=True):
        assert found.shape == (2, channels, 128 // stride, 128 // stride)
    kept = {label.removeprefix("body."): parameter for label, parameter in backbone.named_parameters()}
    assert all(parameter is names[label] for label, parameter in kept.items())  # under the names that they had
    assert len(kept) < len(names)  # the classifier is gone


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v3_small", "timm:tf_efficientnet_lite0"])
def test_every_parameter_of_a_backbone_learns(name):
    backbone = Backbone(models.build(name, CLASSES), name)
    backbone(images())[-1].square().mean().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert next(backbone.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:mixer_s32_224"])
def test_a_network_of_tokens_is_refused(name):
    with pytest.raises(ValueError, match=rf"model '{name}' gives no feature maps .* take a convolutional network"):
        models.build(f"fcn@{name}", CLASSES)


# --- heads


@pytest.mark.parametrize("head", segmentation.HEADS)
@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v3_small", "timm:resnet18"])
def test_a_segmentation_network_gives_logits_of_the_image_s_size(head, name):
    network = models.build(f"{head}@{name}", CLASSES)
    x = torch.randn(2, 3, 64, 96)
    logits = network(x)
    assert logits.shape == (2, CLASSES, 64, 96) and network.num_classes == CLASSES
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("head", detection.HEADS)
@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v3_small"])
def test_a_detector_learns_two_images(head, name):
    torch.manual_seed(0)
    network = models.build(f"{head}@{name}", CLASSES)
    optimizer = torch.optim.SGD(network.parameters(), 0.005, momentum=0.9)
    losses = []
    for _ in range(5):
        total = torch.stack(list(network(images(), TARGETS).values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("head", detection.HEADS)
def test_a_detector_s_boxes_lie_in_the_image(head):
    network = models.build(f"{head}@resnet8", CLASSES).eval()
    with torch.no_grad():
        found = network(images(3))
    assert len(found) == 3
    for one in found:
        assert ((one["boxes"] >= 0) & (one["boxes"] <= SIDE)).all()
        assert ((one["labels"] >= 0) & (one["labels"] < CLASSES)).all() and one["scores"].shape == one["labels"].shape


def test_a_detector_takes_images_as_they_are():
    network = models.build("fcos@resnet8", CLASSES)
    batch, _ = network.transform(images(2))
    assert torch.equal(batch.tensors, images(2)) and batch.image_sizes == [(SIDE, SIDE)] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet@resnet8", "model.name 'unet@resnet8': the head 'unet' is unknown. Known: fcn, "),
        ("fcn@resnet9", "model.name 'resnet9' is unknown; did you mean"),
        ("fcn@fcn@resnet8", "has two heads; write HEAD@BACKBONE"),
        ("resnet9", r"HEAD@ before any of them \(fcn, lraspp, deeplabv3, ssdlite, "),
    ],
)
def test_a_name_that_is_not_known_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        models.check_name(name)


def test_options_are_the_backbone_s():
    network = models.build("fcn@timm:resnet18", CLASSES, output_stride=8)
    assert network.backbone.strides[-1] == 8


def test_a_pretrained_backbone_is_normalised_as_its_weights_want_it():
    assert models.normalisation("fcn@timm:tf_efficientnet_lite0", "default") == models.normalisation(
        "timm:tf_efficientnet_lite0", "default"
    )
    assert models.normalisation("fcn@resnet8", "some/file") is None


@pytest.mark.parametrize("name", ["fcn@resnet8", "ssdlite@resnet8"])
def test_a_trained_network_is_loaded_again(name, tmp_path):
    drawn = psd.data.load("shapes-scenes", classes=3, size=64, count=4)
    task, method = ("segmentation", "cross_entropy") if name.startswith("fcn") else ("detection", "own_loss")
    record = psd.train(
        psd.Config(
            data={"name": "shapes-scenes", "classes": 3, "size": 64, "count": 4, "batch_size": 2, "crop_scale": 0.5},
            model=name,
            task=task,
            method=method,
            budget=1,
            run={"output": str(tmp_path), "progress": False, "device": "cpu"},
        )
    )
    assert record.name == f"shapes-scenes-classes3-size64-count4/{name}/1ep/{method}-s0"
    network = psd.load_model(tmp_path / record.name)
    assert type(network) is type(models.build(name, 4)) and psd.evaluate(network, drawn, task=task).n_test == 4


# --- frozen


@pytest.mark.parametrize("name", ["fcn@resnet8", "fcos@resnet8"])
def test_a_frozen_backbone_stays_as_it_is(name):
    network = models.build(name, CLASSES)
    models.freeze_backbone(network)
    before = {key: value.clone() for key, value in network.backbone.body.state_dict().items()}
    models.train_mode(network)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    output = network(images(), TARGETS) if name.startswith("fcos") else {"z": network(images()).square().mean()}
    torch.stack(list(output.values())).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.body.state_dict().items())
    learning = {key for key, p in network.named_parameters() if p.requires_grad}
    assert learning and not any(key.startswith("backbone.body.") for key in learning)


def test_the_head_s_rate_is_of_all_but_the_backbone():
    network = models.build("fcn@resnet8", CLASSES)
    groups = models.parameter_groups(network, 0.1, 0.0, head_lr=1.0)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for key, parameter in network.named_parameters():
        assert rate[id(parameter)] == (0.1 if key.startswith("backbone.") else 1.0)


# --- transfer


def test_a_classification_network_s_weights_move_into_a_backbone(tmp_path):
    torch.manual_seed(0)
    source = models.build("resnet8", 16)
    with torch.no_grad():
        source.bn1.running_mean.add_(3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    (tmp_path / "run").mkdir()
    save_file(source.state_dict(), tmp_path / "run" / "model.safetensors")
    for given in (source, source.state_dict(), tmp_path / "w.safetensors", str(tmp_path / "w.pt"), tmp_path / "run"):
        network = models.build("fcn@resnet8", CLASSES)
        report = models.transfer(given, network)
        assert sorted(report.skipped) == ["fc.bias", "fc.weight"]
        assert {*report.loaded} == {f"backbone.body.{key}" for key in source.state_dict() if not key.startswith("fc.")}
        assert {*report.missing} == {key for key in network.state_dict() if key.startswith("head.")}
        moved = network.backbone.body.state_dict()
        assert all(torch.equal(moved[key], source.state_dict()[key]) for key in moved)
    assert str(report).startswith(f"loaded {len(report.loaded)} (backbone.body.") and "skipped 2 (fc." in str(report)


def test_weights_move_between_tasks_and_back():
    one, other = models.build("fcn@resnet8", CLASSES), models.build("ssdlite@resnet8", CLASSES)
    models.transfer(one, other)
    plain = models.build("resnet8", 5)
    report = models.transfer(other, plain)
    assert {*report.missing} == {"fc.weight", "fc.bias"}
    a, b = one.backbone.body.state_dict(), plain.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_weights_by_name_go_into_the_backbone(tmp_path):
    source = models.build("resnet8", 16)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = models.build("lraspp@resnet8", CLASSES, weights=tmp_path / "w.safetensors")
    assert torch.equal(network.backbone.body.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize(
    "source", [nn.Linear(3, 3), {}, models.build("torchvision:squeezenet1_1", 3)], ids=["linear", "nothing", "other"]
)
def test_a_move_that_loads_nothing_is_refused(source):
    network = models.build("fcn@resnet8", CLASSES)
    with pytest.raises(ValueError, match=r"nothing of .* fits SegmentationNetwork, apart from heads"):
        models.transfer(source, network)


def test_a_head_alone_is_no_transfer():
    weights = {key: value for key, value in models.build("resnet8", 16).state_dict().items() if key.startswith("fc.")}
    with pytest.raises(ValueError, match="nothing of these weights fits CifarResNet, apart from heads: it holds fc"):
        models.transfer(weights, models.build("resnet8", 16))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model.weights: there is no file .*none.safetensors"):
        models.transfer(tmp_path / "none.safetensors", models.build("resnet8", 4))


def test_every_head_is_built():
    assert set(HEADS) == {"fcn", "lraspp", "deeplabv3", "ssdlite", "fcos", "retinanet", "fasterrcnn"}
