"""Pretrained weights, options of libraries, frozen parts and parameter groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import psd
from psd import models


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A small network of torchvision with five classes."""
    torch.manual_seed(0)
    return models.build("torchvision:mobilenet_v3_small", 5)


def written(model: nn.Module, path: Path) -> Path:
    save_file({key: value.clone() for key, value in model.state_dict().items()}, path)
    return path


def head(model: nn.Module) -> set[str]:
    last = models.classifier(model)
    return {name for name, value in model.named_parameters() if any(value is own for own in last.parameters())}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_a_file_are_loaded_and_a_head_of_other_classes_stays_fresh(suffix, trained, tmp_path):
    path = tmp_path / f"weights{suffix}"
    written(trained, path) if suffix == ".safetensors" else torch.save(trained.state_dict(), path)
    model = models.build("torchvision:mobilenet_v3_small", 7, weights=path)
    theirs = trained.state_dict()
    for name, value in model.state_dict().items():
        if name in head(model):
            assert value.shape[0] == 7
        else:
            assert torch.equal(value, theirs[name]), name


def test_a_head_of_as_many_classes_is_loaded_too(trained, tmp_path):
    model = models.build("torchvision:mobilenet_v3_small", 5, weights=written(trained, tmp_path / "w.safetensors"))
    theirs = trained.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_weights_of_another_network_are_refused_by_what_does_not_fit(trained, tmp_path):
    path = written(trained, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"model\.weights: .*w\.safetensors does not fit ResNet: it lacks conv1"):
        models.build("torchvision:resnet18", 5, weights=path)


def test_weights_of_another_shape_are_refused(trained, tmp_path):
    state = {**trained.state_dict(), "features.0.0.weight": torch.zeros(16, 3, 5, 5)}
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"has other shapes of features\.0\.0\.weight"):
        models.build("torchvision:mobilenet_v3_small", 5, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pt", r"model\.weights: there is no file nowhere\.pt"),
        (True, r'weights must be None, "default" or the path of a file, got True'),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        models.build("torchvision:mobilenet_v3_small", 5, weights=weights)


def test_a_file_that_holds_no_weights_is_refused_by_its_name(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"w\.safetensors is not readable as weights"):
        models.build("torchvision:mobilenet_v3_small", 5, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("given", [{"weights": "default"}, {"drop_path_rate": 0.1}])
def test_our_own_networks_have_neither_pretrained_weights_nor_options(given):
    with pytest.raises(ValueError, match="resnet18 is a network of psd, which has none"):
        models.build("resnet18", 10, **given)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_an_option_that_a_network_does_not_take_is_named(name):
    with pytest.raises(ValueError, match=r"model\.options: .* does not take them .*nonsense"):
        models.build(name, 10, nonsense=1)


def test_options_reach_the_library():
    pytest.importorskip("timm")
    model = models.build("timm:vit_tiny_patch16_224", 4, img_size=32)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_a_name_of_timm_s_weights_is_one_of_its_network():
    pytest.importorskip("timm")
    models.check_name("timm:resnet18.a1_in1k")


def test_the_libraries_weights_are_asked_for_by_default(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = {}

    def create_model(name: str, **options: object) -> nn.Module:
        asked.update(options)
        return create(name, num_classes=4)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    models.build("timm:resnet18", 4, weights="default")
    assert asked == {"pretrained": True, "num_classes": 4}


@pytest.mark.parametrize("weights", ["default", "file"])
def test_the_fresh_head_of_a_pretrained_network_starts_small(weights, monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    name = "tf_efficientnet_lite0"  # of 10 classes timm draws it within 1 / sqrt(10)
    create = timm.create_model
    if weights == "default":  # nothing is downloaded here
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    else:
        weights = written(create(name), tmp_path / "w.safetensors")
    head = models.classifier(models.build(f"timm:{name}", 10, weights=weights))
    assert 0 < head.weight.abs().max() <= head.in_features**-0.5
    assert 0 < head.bias.abs().max() <= head.in_features**-0.5


def test_fresh_weights_are_normalised_as_their_data_says():
    assert models.normalisation("timm:tf_efficientnet_lite0", None) is None
    assert models.normalisation("resnet8", "some.safetensors") is None


@pytest.mark.parametrize(
    ("name", "mean"), [("timm:tf_efficientnet_lite0", 0.5), ("torchvision:mobilenet_v3_small", 0.485)]
)
def test_pretrained_weights_are_normalised_as_they_were_trained(name, mean):
    pytest.importorskip("timm")
    assert models.normalisation(name, "default")[0][0] == pytest.approx(mean)


def test_a_real_pretrained_network_knows_a_dog():
    folder = os.environ.get("PSD_WEIGHTS")
    if not folder:
        pytest.skip("PSD_WEIGHTS names no folder with tf_efficientnet_lite0.safetensors")
    model = models.build("timm:tf_efficientnet_lite0", 1000, weights=Path(folder) / "tf_efficientnet_lite0.safetensors")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(4.65e6, rel=0.01)
    assert models.classifier(model).weight.std() > 0.02  # trained, not drawn


# --- what is trained


def test_without_further_wishes_there_is_one_group_in_the_model_s_order():
    model = models.build("resnet8", 4)
    (group,) = models.parameter_groups(model, 0.1, 5e-4)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.1, 5e-4)


def test_norms_and_biases_may_be_left_without_decay():
    model = models.build("resnet8", 4)
    groups = models.parameter_groups(model, 0.1, 5e-4, decay_norms_and_biases=False)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert decays[id(parameter)] == (0.0 if plain else 5e-4)


def test_the_classifier_may_have_a_rate_of_its_own():
    model = models.build("resnet8", 4)
    rates = {id(p): g["lr"] for g in models.parameter_groups(model, 0.1, 0.0, head_lr=1.0) for p in g["params"]}
    assert {rates[id(p)] for p in model.fc.parameters()} == {1.0}
    assert {rates[id(p)] for name, p in model.named_parameters() if not name.startswith("fc")} == {0.1}


def test_a_frozen_backbone_and_its_batchnorm_stay_as_they_are_while_the_head_learns():
    torch.manual_seed(0)
    model = models.build("resnet8", 4)
    models.freeze_backbone(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(models.parameter_groups(model, 0.1, 5e-4), lr=0.1)
    models.train_mode(model)
    model(torch.randn(8, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_a_frozen_backbone_is_a_setting_of_a_run(tmp_path):
    run = {"output": str(tmp_path), "progress": False, "device": "cpu"}
    settings = {"model": {"name": "resnet8", "freeze_backbone": True}, "data": {"size": 16, "count": 64}}
    config = psd.config.recipe("shapes", **settings, budget={"image_passes": 256}, run=run)
    psd.train(config)
    trained = psd.load_model(tmp_path / config.name)
    assert int(trained.bn1.num_batches_tracked) == 0


def test_a_network_with_two_heads_has_no_features_and_says_so():
    pytest.importorskip("timm")
    model = models.build("timm:deit_tiny_distilled_patch16_224", 4, img_size=32)
    with pytest.raises(ValueError, match=r"two final layers \(head_dist is the second\)"):
        models.features_and_logits(model, torch.zeros(2, 3, 32, 32))
