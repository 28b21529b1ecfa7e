"""The training objectives, each against a formula, and the interface against methods that are still to come."""

from __future__ import annotations

import functools
import importlib
import inspect
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors

from psd import methods, models
from psd.data.batches import Batches, Share
from psd.data.dense import SceneBatches
from psd.data.images import ImageData
from psd.data.scenes import Scenes, boxes_of, shown
from psd.losses import SelfDistillationLoss
from psd.methods import Batch, Method, Progress, Setup, Step
from psd.methods.swap_masks import exchanged
from psd.swap import patch_swap
from psd.training import checkpoints

CLASSES, SAMPLES, N = 4, 24, 8
PROGRESS = Progress(3, 60, 1, 20.0)


def setup(classes: int) -> Setup:
    return Setup(classes, SAMPLES, checkpoints.load_model)


ON_PATCHES = ("patch_swap", "patch_swap_cutmix", "patch_swap_label_smoothing", "swap_any_class", "swap_cross_entropy")
ON_MASKS = ("swap_masks", "swap_consistency")
SWAPPING = {name: {"patch_size": 2} for name in (*ON_PATCHES, *ON_MASKS)}  # images have 4 x 4 pixels
DISTILLING = ("swap_consistency", "pair_distillation", "patch_swap", "patch_swap_cutmix", "patch_swap_label_smoothing")
TEACHING = ("cs_kd", "kd")  # one more forward, without gradient, for a teacher
STATEFUL = ("dlb", "ps_kd")
FEATURES = {"feature_weight": 0.7}


class Net(nn.Module):
    """A small network, the same for everybody, which counts the images it is given while it trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hidden, self.out = nn.Linear(3 * 4 * 4, 10), nn.Linear(10, CLASSES)
        self.counted: list[int] = []
        self.register_forward_pre_hook(lambda module, args: self.counted.append(len(args[0])))

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x.flatten(1)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class PixelNet(Net):
    """The same for segmentation; with targets it gives losses of its own, as a detector does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hidden, self.out = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, CLASSES, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x).tanh()

    def forward(self, x: Tensor, targets: Any = None) -> Any:
        logits = self.out(self.features(x))
        return logits if targets is None else {"size": logits.square().mean(), "sum": logits.mean().square()}


class Bf16(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).bfloat16()


class PixelBf16(PixelNet):
    def forward(self, x: Tensor, targets: Any = None) -> Any:
        return super().forward(x, targets).bfloat16()


def net(method: Method | str, kinds: tuple[type[Net], type[Net]] = (Net, PixelNet)) -> Net:
    """One that fits what a method learns."""
    learns = (methods.find(method) if isinstance(method, str) else method).learns
    return kinds["label" not in learns]()


@functools.cache
def teacher() -> str:
    """The file of a network for the classes of these tests."""
    torch.manual_seed(2)
    path = Path(tempfile.mkdtemp(prefix="teacher")) / "model.safetensors"
    checkpoints.save_model(path, models.build("resnet8", CLASSES), {"model": "resnet8", "classes": str(CLASSES)})
    return str(path)


def build(name: str, **options: Any) -> Method:
    given = {"teacher": teacher()} if name == "kd" else SWAPPING.get(name, {})
    method = methods.build(name, **{**given, **options})
    method.setup(setup(CLASSES))
    return method


def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 3, 4, 4), generator=generator, dtype=torch.uint8)
    targets = torch.arange(SAMPLES) % CLASSES
    return ImageData(images, targets, tuple("abcd"), "some", (0.5,) * 3, (0.2,) * 3, 1, True)


def scenes() -> Scenes:
    """The same images, a class for each pixel, some of which do not count, and one box in each."""
    images = data().images
    masks = torch.randint(CLASSES, (SAMPLES, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    masks[:, 0, 0] = 255

    def read(i: int) -> tuple[Tensor, dict[str, Any]]:
        boxes = boxes_of(torch.tensor([[0, 0, 4, 4]]), (4, 4))
        target = {"mask": tv_tensors.Mask(masks[i]), "boxes": boxes, "labels": torch.tensor([1 + i % 3])}
        return tv_tensors.Image(images[i]), target

    present = torch.stack([shown(read(i)[1], CLASSES) for i in range(SAMPLES)])
    return Scenes("some", ("background", "a", "b", "c"), read, present, size=4)


def batch_of(method: Method, step: int = 3) -> Batch:
    if "label" in method.learns:
        return Batches(data(), N, 0, method.needs)[step]
    (learns,) = method.learns
    return SceneBatches(scenes(), learns, N, 0, method.needs, crop_scale=0.5).get(step)


def step(method: Method, model: nn.Module | None = None, seed: int = 0) -> Step:
    """One step on a batch that depends on the method's needs alone, under a global seed as the trainer sets it."""
    model = net(method) if model is None else model
    torch.manual_seed(seed)
    return method.step(model, batch_of(method), PROGRESS)


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ON_PATCHES if name != "swap_any_class"])
def test_the_parts_of_a_batch_are_swapped_by_the_masks_of_the_whole(name):
    method = build(name)
    batch = batch_of(method)
    torch.manual_seed(5)
    whole = method.images(batch, PROGRESS)
    got = []
    for part in range(2):
        rows = slice(part * N // 2, (part + 1) * N // 2)
        own = Batch(batch.x[rows], batch.y[rows], batch.index[rows], batch.partner[rows])
        torch.manual_seed(5)
        got.append(method.images(own, replace(PROGRESS, part=part, parts=2)))
    assert all(torch.equal(torch.cat(pieces), full) for *pieces, full in zip(*got, whole, strict=True))
    assert not torch.equal(whole[0], batch.x)


# --- all methods


ALL = methods.names()


@pytest.mark.parametrize("name", ALL)
def test_a_method_s_docstring_is_its_card(name):
    card = " ".join((methods.find(name).__doc__ or "").split())
    assert all(f"{what}: " in card for what in ("Loss", "Cost", "Memory", "Needs", "Source"))


@pytest.mark.parametrize("name", methods.names())
def test_settings_are_given_by_name(name):  # PatchSwap(16) would set the field that happens to be first
    with pytest.raises(TypeError, match="positional"):
        methods.find(name)(16)


def test_the_methods_are_the_files_of_their_folder():
    expected = "cross_entropy cutmix label_smoothing pair_cross_entropy pair_distillation patch_swap"
    assert {*expected.split(), "swap_cross_entropy"} <= set(ALL) and sorted(ALL) == ALL


@pytest.mark.parametrize("name", ALL)
def test_a_module_defines_one_method_and_names_it(name):
    module = importlib.import_module(f"psd.methods.{name}")
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Method)]
    own = [value for value in classes if value.__module__ == module.__name__]
    assert own == [methods.find(name)]
    assert own[0]().name == name


@pytest.mark.parametrize("name", ALL)
def test_passes_per_anchor_counts_the_images_forwarded(name):
    method, model = build(name), net(name)
    if name == "kd":
        method._teacher.register_forward_pre_hook(lambda module, args: model.counted.append(len(args[0])))
    step(method, model)
    assert sum(model.counted) == method.passes_per_anchor * N


@pytest.mark.parametrize("name", ALL)
def test_all_images_that_learn_go_through_one_forward(name):
    model = net(name)
    step(build(name), model)
    assert len(model.counted) == 1 + (name == "cs_kd")


def coefficients(method: Any) -> tuple[float, float, float]:
    """What stands before cross-entropy, distillation and feature term in a method's formula."""
    if method.name == "kd":
        return 1 - method.share, method.share, 0
    if method.name == "tf_kd":
        return 1 - method.share, method.share * method.multiplier / CLASSES, 0
    return 1, getattr(method, "weight", 0), getattr(method, "feature_weight", 0)


@pytest.mark.parametrize("name", ALL)
def test_terms_add_up_to_the_total(name):
    method = build(
        name, **({"weight": 0.3} if name in DISTILLING else {}), **(FEATURES if name in DISTILLING[1:] else {})
    )
    terms, model = None, net(name)
    for number in (3, 4):  # of DLB the second step has all terms
        torch.manual_seed(0)
        terms = method.step(model, batch_of(method, number), PROGRESS).terms
    a, b, c = coefficients(method)
    assert_close(terms.total, a * terms.cross_entropy + b * terms.distillation + c * terms.feature)
    assert (terms.distillation > 0) == (b > 0) and (terms.feature > 0) == (c > 0)


@pytest.mark.parametrize("name", ALL)
def test_the_total_gives_every_weight_a_gradient(name):
    model = net(name)
    step(build(name), model).terms.total.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("name", [name for name in ALL if name != "own_loss"])
def test_logits_and_target_are_of_the_images_that_were_forwarded(name):
    model = net(name)
    result = step(build(name), model)
    learning = N if name in TEACHING else sum(model.counted)
    assert result.logits.shape[:2] == (learning, CLASSES)
    assert len(result.target) == len(result.logits)


@pytest.mark.parametrize("name", ALL)
def test_a_step_is_a_function_of_the_global_seed(name):
    method = build(name)
    first = step(method, seed=7)
    step(method, seed=8)
    again = step(build(name), seed=7)
    assert torch.equal(first.terms.total, again.terms.total)
    assert first.logits is again.logits is None or torch.equal(first.logits, again.logits)


def same(a: Any, b: Any) -> bool:
    """Two targets: labels or masks, or a list of dicts of tensors."""
    if isinstance(a, list):
        return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))
    return a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("name", ALL)
def test_a_step_leaves_the_batch_as_it_was(name):
    method = build(name)
    batch, untouched = batch_of(method), batch_of(method)
    method.step(net(method), batch, PROGRESS)
    assert torch.equal(batch.x, untouched.x) and same(batch.y, untouched.y)
    assert same(batch.partner_y, untouched.partner_y)
    assert batch.partner is None or torch.equal(batch.partner, untouched.partner)
    assert batch.other is None or torch.equal(batch.other, untouched.other)


@pytest.mark.parametrize("name", [name for name in ALL if name != "own_loss"])  # whose losses are the network's
def test_a_loss_of_bf16_logits_is_computed_in_float32(name):
    assert step(build(name), net(name, (Bf16, PixelBf16))).terms.total.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in ALL if name not in STATEFUL])
def test_a_method_without_state_refuses_the_state_of_another(name):
    method = build(name)
    assert method.state_dict() == {}
    method.load_state_dict({})
    with pytest.raises(ValueError, match=rf"method {name} keeps no state, but the checkpoint holds \['table'\]"):
        method.load_state_dict({"table": torch.zeros(3)})


# --- against a formula


def test_cross_entropy_is_that_of_the_anchors():
    method, model = build("cross_entropy"), Net()
    batch = batch_of(method)
    assert_close(step(method, model).terms.total, F.cross_entropy(model(batch.x), batch.y))


def test_label_smoothing_of_0_is_cross_entropy():
    smoothed, plain = step(build("label_smoothing", smoothing=0.0)), step(build("cross_entropy"))
    assert torch.equal(smoothed.terms.total, plain.terms.total)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target():
    method, model = build("label_smoothing", smoothing=0.3), Net()
    batch = batch_of(method)
    target = 0.7 * F.one_hot(batch.y, CLASSES) + 0.3 / CLASSES
    expected = -(target * model(batch.x).log_softmax(1)).sum(1).mean()
    assert_close(step(method, model).terms.total, expected)


def test_cutmix_with_p_0_is_cross_entropy():
    mixed, plain = step(build("cutmix", p=0.0)), step(build("cross_entropy"))
    assert torch.equal(mixed.terms.total, plain.terms.total)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_with_p_1_gives_target_probabilities(seed):
    target = step(build("cutmix", p=1.0), seed=seed).target
    assert target.shape == (N, CLASSES) and (target >= 0).all()
    assert_close(target.sum(1), torch.ones(N))


def test_cutmix_mixes_a_share_p_of_the_batches():
    method = build("cutmix", p=0.25)
    mixed = sum(step(method, seed=seed).target.ndim == 2 for seed in range(400))
    assert abs(mixed - 100) < 5 * 75**0.5  # five standard deviations


def test_cutmix_s_loss_is_cross_entropy_with_the_mixed_target():
    result = step(build("cutmix", p=1.0))
    assert_close(result.terms.total, -(result.target * result.logits.log_softmax(1)).sum(1).mean())


def test_cutmix_pastes_a_box_of_the_batch_s_next_image():
    seen: list[Tensor] = []
    method, model = build("cutmix", p=1.0), Net()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for seed in range(10):
        step(method, model, seed)
    x = batch_of(method).x
    pasted = x.roll(1, 0)  # torchvision's choice of the other image
    assert all(torch.equal(torch.where(mixed == x, x, pasted), mixed) for mixed in seen)
    assert not all(torch.equal(mixed, x) for mixed in seen)  # a box can be empty


def test_pair_cross_entropy_is_that_of_both_images_together():
    method, model = build("pair_cross_entropy"), Net()
    batch = batch_of(method)
    logits = model(torch.cat([batch.x, batch.partner]))
    assert_close(step(method, model).terms.total, F.cross_entropy(logits, torch.cat([batch.y, batch.y])))


@pytest.mark.parametrize("features", [{}, FEATURES])
def test_pair_distillation_is_the_loss_of_both_images(features):
    options = {"temperature": 2.0, "weight": 0.5, "detach": True, "direction": "a_to_b", "cross_entropy": "a"}
    method, model = build("pair_distillation", **options, **features), Net()
    batch = batch_of(method)
    h = (model.features(batch.x), model.features(batch.partner)) if features else ()
    expected = SelfDistillationLoss(**options, **features)(model(batch.x), model(batch.partner), batch.y, *h)
    for term, value in zip(step(method, model).terms, expected, strict=True):
        assert_close(term, value)


@pytest.mark.parametrize(("option", "value"), [("weight", 0.0), ("temperature", 1.0)])
def test_an_option_that_is_set_later_counts(option, value):
    changed = build("patch_swap")
    setattr(changed, option, value)
    torch.manual_seed(0)
    model = Net()
    terms = [step(method, model).terms.total for method in (changed, build("patch_swap", **{option: value}))]
    assert_close(*terms)
    assert terms[0] != step(build("patch_swap"), model).terms.total


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_batch_of_one_image_cannot_be_mixed(name):
    method = build(name)
    batch = Batches(data(), 1, 0)[0]
    with pytest.raises(ValueError, match=r"data\.batch_size must be at least 2, got 1"):
        method.step(Net(), batch, PROGRESS)


def test_pair_distillation_gives_the_gradient_of_the_loss():
    options = {"temperature": 2.0, "detach": True, "direction": "a_to_b"}
    method, model, other = build("pair_distillation", **options), Net(), Net()
    batch = batch_of(method)
    SelfDistillationLoss(**options)(model(batch.x), model(batch.partner), batch.y).total.backward()
    step(method, other).terms.total.backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_patch_swap_is_pair_distillation_of_swapped_pairs():
    method, model = build("patch_swap", p=0.9, ratio="uniform"), Net()
    batch = batch_of(method)
    torch.manual_seed(0)
    x_a, x_b = patch_swap(batch.x, batch.partner, 2, p=0.9, ratio="uniform")
    assert not torch.equal(x_a, batch.x)
    expected = SelfDistillationLoss()(model(x_a), model(x_b), batch.y)
    assert_close(step(method, model).terms.total, expected.total)


@pytest.mark.parametrize("features", [{}, FEATURES])
def test_patch_swap_with_p_0_is_pair_distillation(features):
    swapped = step(build("patch_swap", p=0.0, **features))
    pairs = step(build("pair_distillation", **features))
    assert all(torch.equal(a, b) for a, b in zip(swapped.terms, pairs.terms, strict=True))


def test_a_swap_before_augmentation_is_cut_afterwards():
    method = build("patch_swap", before=True, p=1.0)
    batch = batch_of(method)
    torch.manual_seed(5)
    x_a, x_b = method.images(batch, PROGRESS)
    torch.manual_seed(5)
    a, b = patch_swap(batch.raw.a, batch.raw.b, 2, p=1.0)
    expected = batch.raw.augment(a, b)
    assert torch.equal(x_a, expected[0]) and torch.equal(x_b, expected[1])
    assert not torch.equal(x_a, batch.x)


def test_a_swap_before_augmentation_with_p_0_is_pair_distillation():
    swapped, pairs = step(build("patch_swap", before=True, p=0.0)), step(build("pair_distillation"))
    assert all(torch.equal(a, b) for a, b in zip(swapped.terms, pairs.terms, strict=True))
    assert "raw" not in methods.find("patch_swap").needs  # of that instance alone


def test_swap_cross_entropy_with_p_0_is_pair_cross_entropy():
    swapped, plain = step(build("swap_cross_entropy", p=0.0)), step(build("pair_cross_entropy"))
    assert torch.equal(swapped.terms.total, plain.terms.total)


def test_patch_swap_without_distillation_is_swap_cross_entropy():
    options = {"p": 0.8, "ratio": 0.1}
    distilled = step(build("patch_swap", weight=0.0, **options), seed=5)
    plain = step(build("swap_cross_entropy", **options), seed=5)
    assert_close(distilled.terms.total, plain.terms.total)
    assert torch.equal(distilled.logits, plain.logits)


def test_the_pairs_target_is_the_label_of_both_images():
    for name in ("pair_cross_entropy", "pair_distillation", "patch_swap", "swap_cross_entropy"):
        method = build(name)
        y = batch_of(method).y
        assert torch.equal(step(method).target, torch.cat([y, y])), name


# --- by name


@pytest.mark.parametrize(
    ("given", "nearest"), [("patchswap", "patch_swap"), ("cross-entropy", "cross_entropy"), ("cut_mix", "cutmix")]
)
def test_an_unknown_method_names_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=rf"method.name '{given}' is unknown; did you mean '{nearest}'\? Known: "):
        methods.find(given)


def test_a_method_like_no_other_names_all():
    with pytest.raises(ValueError, match=r"method.name 'zzz'.* cross_entropy, .*patch_swap"):
        methods.find("zzz")


@pytest.mark.parametrize("name", ["", "../patch_swap", "patch_swap.py", None, 3])
def test_what_is_no_method_s_name_is_refused(name):
    with pytest.raises(ValueError, match=r"method.name .* is unknown"):
        methods.find(name)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"method.temprature is unknown for patch_swap; did you mean 'temperature'"):
        methods.build("patch_swap", temprature=2.0)


def test_an_unknown_option_of_a_method_without_options_says_so():
    with pytest.raises(ValueError, match=r"method.weight is unknown for cross_entropy; known: none"):
        methods.build("cross_entropy", weight=2.0)


def test_an_option_of_another_method_names_those_there_are():
    with pytest.raises(ValueError, match=r"method.ratio is unknown for cutmix; known: alpha, p"):
        methods.build("cutmix", ratio=0.5)


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("label_smoothing", "smoothing", 1.5),
        ("label_smoothing", "smoothing", -0.1),
        ("label_smoothing", "smoothing", NAN),
        ("cutmix", "alpha", 0.0),
        ("cutmix", "alpha", NAN),
        ("cutmix", "p", 1.5),
        ("cutmix", "p", NAN),
        ("cutmix", "p", "0.5"),
        ("pair_distillation", "temperature", 0.0),
        ("pair_distillation", "temperature", NAN),
        ("pair_distillation", "weight", -1.0),
        ("pair_distillation", "direction", "both"),
        ("pair_distillation", "cross_entropy", "c"),
        ("pair_distillation", "feature_weight", float("inf")),
        ("pair_distillation", "feature_distance", "l1"),
        ("patch_swap", "p", 1.5),
        ("patch_swap", "p", NAN),
        ("patch_swap", "ratio", -0.5),
        ("patch_swap", "ratio", "normal"),
        ("patch_swap", "patch_size", 0),
        ("patch_swap", "patch_size", None),
        ("patch_swap", "patch_size", True),
        ("patch_swap", "temperature", 0),
        ("swap_cross_entropy", "p", -0.5),
        ("swap_cross_entropy", "patch_size", 2.5),
    ],
)
def test_a_bad_value_is_named_with_its_option(name, option, value):
    with pytest.raises(ValueError, match=rf"\b{option} must .*got {value!r}"):
        methods.build(name, **{option: value})


@pytest.mark.parametrize("name", ON_PATCHES)
def test_a_patch_size_that_does_not_divide_the_images_is_refused(name):
    with pytest.raises(ValueError, match="patch_size 3 does not divide the images of 4 x 4 pixels"):
        step(build(name, patch_size=3))


# --- methods that keep something from step to step, or are taught from outside


def trained(method: Method, model: nn.Module, first: int, last: int) -> list[float]:
    """Losses of steps first ... last - 1, by the trainer's rules."""
    batches = Batches(data(), N, 0, method.needs)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for number in range(first, last):
        torch.manual_seed(number)
        result = method.step(model, batches[number], Progress(number, 60, number // batches.steps_per_epoch, 20.0))
        result.terms.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result.terms.total.item())
    return losses


def through_a_file(state: dict[str, Any], path: Any) -> dict[str, Any]:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL between softened predictions, written out."""
    q, p = ((z / temperature).softmax(1) for z in (teacher, student))
    return temperature**2 * (q * (q / p).log()).sum(1).mean()


def test_cs_kd_is_cross_entropy_and_the_divergence_from_the_partner_s_prediction():
    method, model = build("cs_kd", temperature=3.0, weight=0.5), Net()
    batch = batch_of(method)
    terms = step(method, model).terms
    assert_close(terms.cross_entropy, F.cross_entropy(model(batch.x), batch.y))
    assert_close(terms.distillation, kl(model(batch.partner), model(batch.x), 3.0))


def test_in_cs_kd_the_partner_s_prediction_gets_no_gradient():
    method, model = build("cs_kd"), Net()
    batch = batch_of(method)
    batch.partner.requires_grad_(), batch.x.requires_grad_()
    method.step(model, batch, PROGRESS).terms.distillation.backward()
    assert batch.partner.grad is None and batch.x.grad.abs().sum() > 0


def test_ddgsd_lets_two_views_teach_each_other_and_pulls_their_mean_features_together():
    method, model = build("ddgsd", temperature=2.0), Net()
    batch = batch_of(method)
    terms = step(method, model).terms
    z_1, z_2 = model(batch.x), model(batch.view)
    assert_close(terms.cross_entropy, (F.cross_entropy(z_1, batch.y) + F.cross_entropy(z_2, batch.y)) / 2)
    assert_close(terms.distillation, kl(z_2, z_1, 2.0) + kl(z_1, z_2, 2.0))
    h_1, h_2 = model.features(batch.x), model.features(batch.view)
    assert_close(terms.feature, ((h_1.mean(0) - h_2.mean(0)) ** 2).sum())


def test_in_ddgsd_a_view_is_moved_as_a_student_alone():
    method, model = build("ddgsd", temperature=2.0), Net()
    batch = batch_of(method)
    z_1, z_2 = model(batch.x), model(batch.view)
    (kl(z_2.detach(), z_1, 2.0) + kl(z_1.detach(), z_2, 2.0)).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    step(method, model).terms.distillation.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


def test_ps_kd_mixes_the_label_with_the_prediction_of_an_epoch_before():
    method, model = build("ps_kd", share=0.8), Net()
    batches = Batches(data(), N, 0, method.needs)
    then = {}
    for number in range(batches.steps_per_epoch):
        result = method.step(model, batches[number], Progress(number, 60, 0, 20.0))
        assert_close(result.terms.total, F.cross_entropy(result.logits, batches[number].y))  # nothing is known yet
        then.update(zip(batches[number].index.tolist(), result.logits.softmax(1).detach(), strict=True))
    batch = batches[batches.steps_per_epoch]
    result = method.step(model, batch, Progress(batches.steps_per_epoch, 60, 1, 20.0))
    share = 0.8 * 2 / 20
    old = torch.stack([then[i] for i in batch.index.tolist()])
    target = (1 - share) * F.one_hot(batch.y, CLASSES) + share * old
    assert_close(result.terms.total, -(target * result.logits.log_softmax(1)).sum(1).mean())


def test_ps_kd_s_targets_are_probabilities_where_a_budget_ends_inside_an_epoch():
    method, model = build("ps_kd", share=1.0), Net()
    batches = Batches(data(), N, 0, method.needs)
    epochs = (batches.steps_per_epoch + 1) / batches.steps_per_epoch
    for number in range(batches.steps_per_epoch + 1):  # the last step is the first of a second epoch
        batch, past = batches[number], None if number == 0 else method._past.clone()
        result = method.step(model, batch, Progress(number, 0, number // batches.steps_per_epoch, epochs))
    # From its end on, the old prediction alone is the target: not more of it than all.
    assert_close(result.terms.total, -(past[batch.index] * result.logits.log_softmax(1)).sum(1).mean())


def test_dlb_asks_for_what_was_answered_a_step_before():
    method, model = build("dlb", temperature=3.0), Net()
    batches = Batches(data(), N, 0, method.needs)
    first = method.step(model, batches[0], PROGRESS)
    assert first.terms.distillation == 0 and len(first.logits) == N
    with torch.no_grad():
        model.out.weight.mul_(1.5)  # what is said now is not what was said then
    second = method.step(model, batches[1], PROGRESS)
    now = model(batches[1].previous.x)
    assert_close(second.terms.distillation, kl(first.logits, now, 3.0))
    both = torch.cat([batches[1].x, batches[1].previous.x]), torch.cat([batches[1].y, batches[1].previous.y])
    assert_close(second.terms.cross_entropy, F.cross_entropy(model(both[0]), both[1]))


def test_tf_kd_s_teacher_is_nearly_uniform():
    method, model = build("tf_kd"), Net()
    batch = batch_of(method)
    terms, z = step(method, model).terms, model(batch.x)
    u = torch.full((N, CLASSES), 0.01 / (CLASSES - 1))
    u[range(N), batch.y] = 0.99
    teacher = (u / 20).softmax(1)
    assert teacher.max() < 1.05 / CLASSES
    divergence = (teacher * (teacher.log() - z.log_softmax(1))).sum() / N
    assert_close(terms.total, 0.9 * F.cross_entropy(z, batch.y) + 0.1 * 100 / CLASSES * divergence)


def test_zipf_label_smoothing_ranks_the_other_classes():
    method = build("zipf_label_smoothing", weight=0.5)
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0], [0.5, 4.0, 0.0, -1.0]])
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 3]), torch.arange(2))
    terms = method.step(nn.Sequential(Constant(logits)), batch, PROGRESS).terms
    law = torch.tensor([1, 1 / 2, 1 / 3]) / (1 + 1 / 2 + 1 / 3)
    expected = 0
    for ranked in ([3.0, 2.0, 1.0], [4.0, 0.5, 0.0]):  # without the label, the largest first
        expected = expected + (law * (law / torch.tensor(ranked).softmax(0)).log()).sum() / 2
    assert_close(terms.distillation, expected)
    assert_close(terms.total, F.cross_entropy(logits, batch.y) + 0.5 * expected)


class Constant(nn.Module):
    """Says the same whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_zipf_label_smoothing_needs_classes_to_rank():
    with pytest.raises(ValueError, match="needs 3 classes or more, to rank the others, got 2"):
        methods.build("zipf_label_smoothing").setup(setup(2))


def test_kd_is_taught_by_the_network_of_a_file():
    method, model = build("kd", share=0.7, temperature=3.0), Net()
    batch = batch_of(method)
    terms = step(method, model).terms
    told = checkpoints.load_model(teacher())(batch.x)
    ce, divergence = F.cross_entropy(model(batch.x), batch.y), kl(told, model(batch.x), 3.0)
    assert_close(terms.total, 0.3 * ce + 0.7 * divergence)


def test_a_teacher_is_in_eval_mode_and_stays_as_it_was():
    method, model = build("kd"), Net()
    before = {key: value.clone() for key, value in method._teacher.state_dict().items()}
    step(method, model).terms.total.backward()
    assert not method._teacher.training
    assert all(torch.equal(value, before[key]) for key, value in method._teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in method._teacher.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"teacher": ""}, "method.teacher is missing"), ({"teacher": "nowhere"}, "nowhere: neither a model.safetensors")],
)
def test_kd_without_a_teacher_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build("kd", **options)


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=f"knows {CLASSES} classes, the data has 7"):
        methods.build("kd", teacher=teacher()).setup(setup(7))


def test_mixup_with_p_0_is_cross_entropy():
    assert torch.equal(step(build("mixup", p=0.0)).terms.total, step(build("cross_entropy")).terms.total)


def test_mixup_shows_weighted_means_with_their_targets():
    method, model, seen = build("mixup"), Net(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batch_of(method)
    result = step(method, model)
    other = batch.x.roll(1, 0)  # torchvision's choice of the other image
    weight = ((seen[0] - other) * (batch.x - other)).sum() / (batch.x - other).square().sum()
    assert 0 < weight < 1
    assert_close(seen[0], weight * batch.x + (1 - weight) * other)
    hot = F.one_hot(batch.y, CLASSES).float()
    assert_close(result.target, weight * hot + (1 - weight) * hot.roll(1, 0))
    assert_close(result.terms.total, -(result.target * result.logits.log_softmax(1)).sum(1).mean())


def test_random_erasing_blanks_a_rectangle_of_each_image():
    method, model, seen = build("random_erasing", p=1.0, smallest=0.25, largest=0.25, aspect=1.0), Net(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batch_of(method)
    batch.x.add_(10)  # nothing is 0 by itself
    step_batch(method, model, batch)
    blank = (seen[0] == 0).all(1)  # (N, H, W)
    assert (blank.flatten(1).sum(1) == 4).all()  # a quarter of 4 x 4 pixels
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert (rows == 2).all() and (columns == 2).all()
    assert len(blank.unique(dim=0)) > 1  # each image its own
    assert torch.equal(seen[0][~blank[:, None].expand_as(seen[0])], batch.x[~blank[:, None].expand_as(batch.x)])


def step_batch(method: Method, model: nn.Module, batch: Batch) -> Step:
    torch.manual_seed(0)
    return method.step(model, batch, PROGRESS)


def test_random_erasing_with_p_0_is_cross_entropy():
    assert_close(step(build("random_erasing", p=0.0)).terms.total, step(build("cross_entropy")).terms.total)


def test_patch_swap_with_smoothed_labels_is_patch_swap_but_for_its_target():
    options = {"p": 1.0, "temperature": 2.0, "weight": 0.5}
    smoothed, plain = (
        step(build("patch_swap_label_smoothing", smoothing=0.2, **options)),
        step(build("patch_swap", **options)),
    )
    assert torch.equal(smoothed.logits, plain.logits)
    assert_close(smoothed.terms.distillation, plain.terms.distillation)
    target = 0.8 * F.one_hot(plain.target, CLASSES) + 0.2 / CLASSES
    assert_close(smoothed.terms.cross_entropy, -(target * plain.logits.log_softmax(1)).sum(1).mean())


def test_patch_swap_with_cutmix_at_p_0_is_patch_swap():
    mixed, plain = step(build("patch_swap_cutmix", cutmix_p=0.0)), step(build("patch_swap"))
    assert torch.equal(mixed.terms.total, plain.terms.total)


def test_both_images_of_a_pair_get_the_same_box_and_target():
    method, model, seen = build("patch_swap_cutmix", cutmix_p=1.0), Net(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batch_of(method)
    for seed in range(5):
        result = step(method, model, seed)
        torch.manual_seed(seed)
        x_a, x_b = patch_swap(batch.x, batch.partner, 2, p=0.5)
        got_a, got_b = seen[-1].chunk(2)
        moved_a, moved_b = ((got != x).all(1) for got, x in ((got_a, x_a), (got_b, x_b)))
        boxes = (moved_a | moved_b).any(0)  # of all pairs
        assert torch.equal(torch.where(boxes, x_a.roll(1, 0), x_a), got_a)
        assert torch.equal(torch.where(boxes, x_b.roll(1, 0), x_b), got_b)
        kept = 1 - boxes.float().mean()
        hot = F.one_hot(batch.y, CLASSES).float()
        assert_close(result.target, (kept * hot + (1 - kept) * hot.roll(1, 0)).repeat(2, 1))
        assert_close(result.terms.cross_entropy, -(result.target * result.logits.log_softmax(1)).sum(1).mean())


def test_a_swap_between_classes_mixes_the_labels_by_area():
    method, model, seen = build("swap_any_class", p=1.0), Net(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = batch_of(method)
    batch.other.add_(20)  # no two pixels are alike
    result = step_batch(method, model, batch)
    x_a, x_b = seen[0].chunk(2)
    moved = (x_a != batch.x).any(1).float().mean((1, 2))[:, None]  # (N, 1)
    assert torch.equal(x_a + x_b, batch.x + batch.other)  # the pair keeps its pixels
    assert 0 < moved.mean() < 1
    hot_a, hot_b = (F.one_hot(y, CLASSES) for y in (batch.y, batch.other_y))
    assert_close(result.target, torch.cat([hot_a + moved * (hot_b - hot_a), hot_b + moved * (hot_a - hot_b)]))
    assert_close(result.terms.total, -(result.target * result.logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (4, 1), (2, 2), (1, 8)])
def test_no_pair_of_a_swap_between_classes_is_of_one_class_whatever_the_parts(world, accumulate):
    method, model = build("swap_any_class", p=0.0), Net()  # so that the targets are the labels
    for rank in range(world):
        batches = Batches(data(), N, 0, method.needs, share=Share(rank, world, accumulate))
        for number in range(9):
            for turn in range(accumulate):
                progress = replace(PROGRESS, part=batches.share.part(turn), parts=batches.share.parts)
                y_a, y_b = method.step(model, batches.get(number, turn), progress).target.argmax(1).chunk(2)
                assert (y_a != y_b).all()


def test_the_parts_of_a_batch_are_swapped_between_classes_by_the_masks_of_the_whole():
    method, model = build("swap_any_class"), Net()
    torch.manual_seed(5)
    whole = method.step(model, batch_of(method), PROGRESS)
    got = []
    for turn in range(2):
        part = Batches(data(), N, 0, method.needs, share=Share(0, 1, 2)).get(3, turn)
        torch.manual_seed(5)
        got.append(method.step(model, part, replace(PROGRESS, part=turn, parts=2)))
    for name in ("logits", "target"):
        pairs = [getattr(step, name).chunk(2) for step in got]
        assert_close(torch.cat([*(a for a, _ in pairs), *(b for _, b in pairs)]), getattr(whole, name))


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("stop", [2, 5])
def test_a_method_s_state_continues_from_a_file(name, stop, tmp_path):
    whole = trained(build(name), Net(), 0, 9)
    method, model = build(name), Net()
    before = trained(method, model, 0, stop)
    state = through_a_file(method.state_dict(), tmp_path / "state.pt")
    continued = build(name)
    continued.load_state_dict(state)
    assert before + trained(continued, model, stop, 9) == whole


@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_continued_without_the_method_s_state_is_another(name):
    model = Net()
    trained(build(name), model, 0, 5)
    assert trained(build(name), model, 5, 9) != trained(build(name), Net(), 0, 9)[5:]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_is_there_from_the_beginning(name):
    assert build(name).state_dict()  # by which the trainer knows that this method cannot be cut into parts


# --- of pictures and their masks


@pytest.mark.parametrize("name", ON_MASKS)
def test_the_same_pairs_are_swapped_whatever_the_parts(name):
    method = build(name, p=1.0)
    batch, given = batch_of(method), []

    class Sees(PixelNet):
        def forward(self, x: Tensor, targets: Any = None) -> Any:
            given.append(x)
            return super().forward(x)

    torch.manual_seed(5)
    method.step(Sees(), batch, PROGRESS)
    (whole,) = given
    for part in range(2):
        rows = slice(part * N // 2, (part + 1) * N // 2)
        own = replace(batch, **{key: getattr(batch, key)[rows] for key in ("x", "y", "index", "partner", "partner_y")})
        torch.manual_seed(5)
        method.step(Sees(), own, replace(PROGRESS, part=part, parts=2))
    pieces = [torch.cat(pair) for pair in zip(*(x.chunk(len(whole) // N) for x in given[1:]), strict=True)]
    assert torch.equal(torch.cat(pieces), whole)


def test_masks_move_with_their_pixels():
    """Pictures that show their own mask still do after the swap."""
    y_a, y_b = torch.randint(CLASSES, (2, N, 4, 4), generator=torch.Generator().manual_seed(3))
    where = torch.rand(N, 2, 2, generator=torch.Generator().manual_seed(4)) < 0.5
    images = patch_swap(y_a[:, None].float(), y_b[:, None].float(), 2, mask=where)
    for image, mask in zip(images, exchanged(y_a, y_b, where), strict=True):
        assert torch.equal(image[:, 0].long(), mask)


def test_swap_masks_with_p_0_is_cross_entropy_on_the_same_pairs():
    method, model = build("swap_masks", p=0.0), PixelNet()
    batch = batch_of(method)
    expected = F.cross_entropy(model(torch.cat([batch.x, batch.partner])), torch.cat([batch.y, batch.partner_y]))
    assert_close(step(method, model).terms.total, expected)


def test_pixels_that_do_not_count_give_no_gradient():
    logits = torch.randn(N, CLASSES, 4, 4, requires_grad=True)
    batch = SceneBatches(scenes(), "mask", N, 0, crop_scale=1.0).get(0)
    methods.build("cross_entropy").step(lambda x: logits, batch, PROGRESS).terms.total.backward()
    assert (batch.y == -100).any() and logits.grad is not None
    assert (logits.grad.movedim(1, -1)[batch.y == -100] == 0).all()


def test_predictions_are_compared_of_the_same_content():
    """A network that sees single pixels says the same of a pixel in any context: nothing is left to distil."""

    class OnePixel(PixelNet):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Conv2d(3, 10, 1)

    assert_close(step(build("swap_consistency"), OnePixel()).terms.distillation, torch.tensor(0.0))
    assert step(build("swap_consistency"), PixelNet()).terms.distillation > 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_pastes_a_picture_with_its_mask(seed):
    """Of pictures of one grey each, whose mask is that grey's class, every pixel still has its class."""
    y = (torch.arange(N) % CLASSES)[:, None, None].expand(N, 8, 8).clone()
    batch = Batch(y[:, None].float().expand(N, 3, 8, 8).clone(), y, torch.arange(N))
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros(N, CLASSES, 8, 8)

    torch.manual_seed(seed)
    result = methods.build("cutmix_masks", p=1.0).step(model, batch, PROGRESS)
    assert torch.equal(seen[0][:, 0].long(), result.target)
    changed = (result.target != y).flatten(1).sum(1)
    assert len(set(changed.tolist())) == 1  # one box for all
