"""The networks: size, resolution, initialisation, names, features."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from psd import models

# Parameters in millions as published: (classes, millions, decimals of the published number).
PUBLISHED = {
    "resnet20": (10, 0.27, 2),  # He et al. 2016, table 6
    "resnet56": (10, 0.85, 2),
    "wrn28_10": (10, 36.5, 1),  # Zagoruyko & Komodakis 2016, table 4
    "wrn16_4": (10, 2.7, 1),  # as usually quoted
    "resnet18": (100, 11.2, 1),  # these four: README of github.com/weiaicunzai/pytorch-cifar100
    "resnet34": (100, 21.3, 1),
    "resnet50": (100, 23.7, 1),
    "mobilenetv2": (100, 2.36, 2),
}

LAST_MAP = {  # side of the last feature map for 32 x 32 images
    "resnet8": 8,
    "resnet14": 8,
    "resnet20": 8,
    "resnet56": 8,
    "resnet18": 4,
    "resnet34": 4,
    "resnet50": 4,
    "wrn16_4": 8,
    "wrn28_10": 8,
    "mobilenetv2": 4,
}


def _on_meta(name: str, num_classes: int) -> nn.Module:
    """Shapes without memory or arithmetic."""
    with torch.device("meta"):
        return models.build(name, num_classes)


def _maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of every convolution, in order."""
    maps: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: maps.append(output))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return maps


# --- size and shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    classes, millions, decimals = PUBLISHED[name]
    count = sum(p.numel() for p in _on_meta(name, classes).parameters()) / 1e6
    # Papers round or cut (ResNet-20 has 272,474, WRN-16-4 2,748,890): within one unit of the last digit.
    assert abs(count - millions) < 10**-decimals


@pytest.mark.parametrize("depth", [8, 14, 20, 56])
def test_cifar_resnet_has_6n_plus_2_layers_with_weights_and_no_others(depth: int) -> None:
    model = _on_meta(f"resnet{depth}", 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert all(m.kernel_size == (3, 3) for m in layers if isinstance(m, nn.Conv2d))  # option A: no 1 x 1


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("num_classes", [2, 100])
def test_output_is_one_logit_per_class(name: str, num_classes: int) -> None:
    model = _on_meta(name, num_classes)
    assert model(torch.empty(3, 3, 32, 32, device="meta")).shape == (3, num_classes)
    assert model.num_classes == num_classes


@pytest.mark.parametrize("name", models.names())
def test_feature_maps_suit_32_pixels(name: str) -> None:
    maps = _maps(_on_meta(name, 10), torch.empty(2, 3, 32, 32, device="meta"))
    assert maps[0].shape[-2:] == (32, 32)  # the stem keeps the resolution
    assert maps[-1].shape[-2:] == (LAST_MAP[name], LAST_MAP[name])


@pytest.mark.parametrize("name", ["resnet8", "wrn16_4"])
def test_other_image_sizes_are_accepted(name: str) -> None:
    assert _on_meta(name, 5)(torch.empty(2, 3, 48, 40, device="meta")).shape == (2, 5)


def test_option_a_shortcut_is_every_second_pixel_and_zeros() -> None:
    block = models.build("resnet8", 10).get_submodule("layer2.0").eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)  # the residual branch is zero: only the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 16:], torch.zeros(2, 16, 4, 4))


def test_wide_resnet_block_adds_its_input_unactivated() -> None:
    block = models.build("wrn16_4", 10).get_submodule("layer1.1").eval()
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    x = torch.randn(2, 64, 4, 4)  # negative values pass a pre-activation block only
    assert torch.equal(block(x), x)


def test_channels_last_is_kept_and_changes_no_logit() -> None:
    model = models.build("resnet8", 10).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in _maps(model, x))
    torch.testing.assert_close(model(x), expected)


# --- initialisation


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "wrn16_4", "mobilenetv2", "torchvision:resnet18"])
def test_the_global_seed_fixes_the_weights(name: str) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return models.build(name, 4).state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[next(iter(first))], other[next(iter(first))])


@pytest.mark.parametrize("name", ["resnet56", "resnet18", "wrn16_4"])
def test_convolutions_start_with_the_spread_of_he_et_al(name: str) -> None:
    torch.manual_seed(0)
    for module in models.build(name, 10).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            n = module.weight.numel()
            # The standard error of a normal sample's standard deviation is sigma / sqrt(2 n).
            assert abs(module.weight.std().item() * (fan_out / 2) ** 0.5 - 1) < 5 / (2 * n) ** 0.5


# --- names and errors


def test_names_are_the_promised_ones() -> None:
    assert set(models.names()) == set(LAST_MAP)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"model\.name 'resnt18' is unknown; did you mean 'resnet18'") as error:
        models.build("resnt18", 10)
    assert "torchvision:NAME" in str(error.value) and "wrn28_10" in str(error.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ResNet18", "resnet18"),
        ("resnet101", "torchvision:resnet101"),
        ("torchvision:convnext_tny", "torchvision:convnext_tiny"),
        ("torchvison:resnet18", "resnet18"),
    ],
)
def test_the_suggestion_is_a_name_that_works(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"model.name '{given}' is unknown; did you mean '{meant}'\\?"):
        models.check_name(given)
    models.check_name(meant)


@pytest.mark.parametrize("name", ["", ":", "resnet18:", "qqqqqqqq", "torchvision:fasterrcnn_resnet50_fpn", None, 18])
def test_what_is_no_classification_model_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"model\.name .* is unknown"):
        models.check_name(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [1, 0, -3, True, 10.0, "10", None])
def test_num_classes_must_be_an_int_of_at_least_2(num_classes: object) -> None:
    with pytest.raises(ValueError, match=f"num_classes must be an int of at least 2, got {num_classes!r}"):
        models.build("resnet8", num_classes)  # type: ignore[arg-type]


def test_depths_that_make_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .* got 18"):
        models.CifarResNet(18, 10)
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 4 .* got 4"):
        models.WideResNet(4, 1, 10)


def test_built_in_names_are_checked_without_torchvision_or_timm() -> None:
    code = (
        "import sys, psd.models as m; [m.check_name(n) for n in m.names()]; m.build('resnet8', 2);"
        "assert not {'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- torchvision's and timm's


def test_torchvision_models_keep_their_own_stem() -> None:
    model = _on_meta("torchvision:resnet18", 7)
    assert model.get_submodule("conv1").kernel_size == (7, 7)
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_give_plain_logits_in_training(name: str) -> None:
    model = _on_meta(f"torchvision:{name}", 7).train()
    assert model(torch.empty(2, 3, 96, 96, device="meta")).shape == (2, 7)


def test_timm_models_are_built() -> None:
    pytest.importorskip("timm")
    model = models.build("timm:vit_tiny_patch16_224", 7)
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    with pytest.raises(ValueError, match="did you mean 'timm:vit_tiny_patch16_224'"):
        models.check_name("timm:vit_tiny_patch16_225")


def test_missing_timm_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r'pip install "\.\[timm\]"'):
        models.build("timm:resnet18", 10)
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):  # other errors do not need it
        models.check_name("resnt18")


# --- features


@pytest.mark.parametrize("name", models.names())
def test_classifier_is_the_layer_that_gives_the_logits(name: str) -> None:
    model = _on_meta(name, 13)
    assert models.classifier(model).out_features == 13
    assert models.classifier(nn.Sequential(model)) is models.classifier(model)  # as in a DDP wrapper


def test_classifier_is_chosen_by_its_outputs_not_its_place() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.head, self.auxiliary = 5, nn.Linear(8, 5), nn.Linear(8, 3)

    network = Network()
    assert models.classifier(network) is network.head


@pytest.mark.parametrize(
    "name",
    ["resnet8", "resnet18", "wrn16_4", "mobilenetv2", "torchvision:shufflenet_v2_x0_5", "timm:convnext_atto"],
)
def test_logits_are_the_classifier_of_the_features(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model, x = models.build(name, 5).eval(), torch.randn(2, 3, 32, 32)
    features, logits = models.features_and_logits(model, x)
    last = models.classifier(model)
    assert features.shape == (2, last.in_features)
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(features @ last.weight.T + last.bias, logits)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0", "densenet121", "vgg11"])
def test_torchvision_models_have_features(name: str) -> None:
    model = _on_meta(f"torchvision:{name}", 5)
    features, logits = models.features_and_logits(model, torch.empty(2, 3, 224, 224, device="meta"))
    assert features.shape == (2, models.classifier(model).in_features)
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet8", "wrn16_4", "mobilenetv2"])
def test_gradients_reach_every_parameter_through_features_and_logits(name: str) -> None:
    model = models.build(name, 5).train()
    features, logits = models.features_and_logits(model, torch.randn(4, 3, 32, 32))
    (logits.square().mean() + features.square().mean()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_a_loss_of_the_features_alone_trains_all_but_the_classifier() -> None:
    model = models.build("resnet8", 5).train()
    models.features_and_logits(model, torch.randn(4, 3, 32, 32))[0].square().mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == [
        "fc.weight",
        "fc.bias",
    ]


def test_the_hook_is_gone_afterwards_even_after_an_error() -> None:
    model = models.build("resnet8", 5)
    with pytest.raises(RuntimeError):
        models.features_and_logits(model, torch.zeros(2, 4, 32, 32))
    models.features_and_logits(model, torch.zeros(2, 3, 32, 32))
    assert not models.classifier(model)._forward_pre_hooks


def test_models_without_a_last_linear_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SqueezeNet has no nn\.Linear with num_classes=5 outputs"):
        models.features_and_logits(_on_meta("torchvision:squeezenet1_1", 5), torch.empty(1, 3, 64, 64, device="meta"))


def test_a_last_linear_layer_on_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear inputs of shapes \[\(2, 4, 3\)\]"):
        models.features_and_logits(nn.Linear(3, 5), torch.zeros(2, 4, 3))


def test_resnet_compiles_as_one_graph() -> None:
    # "eager": the graph is captured, no compiler of C++ is needed.
    model, x = models.build("resnet8", 5).eval(), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
