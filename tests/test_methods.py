"""The training objectives, each against a formula, and the interface against methods that are still to come."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psd import methods
from psd.data.batches import Batch, Batches
from psd.data.images import ImageData
from psd.losses import LossTerms, SelfDistillationLoss
from psd.methods import Method, Progress, Step, single_terms
from psd.swap import patch_swap

CLASSES, SAMPLES, N = 4, 24, 8
PROGRESS = Progress(3, 60, 1, 20.0)
SWAPPING = {"patch_swap": {"patch_size": 2}, "swap_cross_entropy": {"patch_size": 2}}  # images have 4 x 4 pixels
DISTILLING = ("pair_distillation", "patch_swap")
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


def build(name: str, **options: Any) -> Method:
    method = methods.build(name, **{**SWAPPING.get(name, {}), **options})
    method.setup(CLASSES, SAMPLES)
    return method


def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 3, 4, 4), generator=generator, dtype=torch.uint8)
    targets = torch.arange(SAMPLES) % CLASSES
    return ImageData(images, targets, tuple("abcd"), "some", (0.5,) * 3, (0.2,) * 3, 1, True)


def batch_of(method: Method, step: int = 3) -> Batch:
    return Batches(data(), N, 0, method.needs)[step]


def step(method: Method, model: nn.Module | None = None, seed: int = 0) -> Step:
    """One step on a batch that depends on the method's needs alone, under a global seed as the trainer sets it."""
    model = Net() if model is None else model
    torch.manual_seed(seed)
    return method.step(model, batch_of(method), PROGRESS)


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SWAPPING)
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
        got.append(method.images(own, PROGRESS._replace(part=part, parts=2)))
    assert all(torch.equal(torch.cat(pieces), full) for *pieces, full in zip(*got, whole, strict=True))
    assert not torch.equal(whole[0], batch.x)


# --- all methods

ALL = methods.names()


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
    method, model = build(name), Net()
    step(method, model)
    assert sum(model.counted) == method.passes_per_anchor * N


@pytest.mark.parametrize("name", ALL)
def test_all_images_go_through_one_forward(name):
    model = Net()
    step(build(name), model)
    assert len(model.counted) == 1


@pytest.mark.parametrize("name", ALL)
def test_terms_add_up_to_the_total(name):
    options = {"weight": 0.3, **FEATURES} if name in DISTILLING else {}
    method = build(name, **options)
    terms = step(method).terms
    weight, feature_weight = options.get("weight", 0), options.get("feature_weight", 0)
    assert_close(terms.total, terms.cross_entropy + weight * terms.distillation + feature_weight * terms.feature)
    if options:
        assert terms.distillation > 0 and terms.feature > 0


@pytest.mark.parametrize("name", ALL)
def test_the_total_gives_every_weight_a_gradient(name):
    model = Net()
    step(build(name), model).terms.total.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_logits_and_target_are_of_the_images_that_were_forwarded(name):
    model = Net()
    result = step(build(name), model)
    assert result.logits.shape == (sum(model.counted), CLASSES)
    assert len(result.target) == len(result.logits)


@pytest.mark.parametrize("name", ALL)
def test_a_step_is_a_function_of_the_global_seed(name):
    method = build(name)
    first = step(method, seed=7)
    step(method, seed=8)
    again = step(method, seed=7)
    assert torch.equal(first.terms.total, again.terms.total) and torch.equal(first.logits, again.logits)


@pytest.mark.parametrize("name", ALL)
def test_a_step_leaves_the_batch_as_it_was(name):
    method = build(name)
    batch, untouched = batch_of(method), batch_of(method)
    method.step(Net(), batch, PROGRESS)
    assert torch.equal(batch.x, untouched.x) and torch.equal(batch.y, untouched.y)
    assert batch.partner is None or torch.equal(batch.partner, untouched.partner)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_of_bf16_logits_is_computed_in_float32(name):
    class Bf16(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).bfloat16()

    assert step(build(name), Bf16()).terms.total.dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize("name", SWAPPING)
def test_a_patch_size_that_does_not_divide_the_images_is_refused(name):
    with pytest.raises(ValueError, match="patch_size 3 does not divide the images of 4 x 4 pixels"):
        step(build(name, patch_size=3))


# --- methods that are still to come, in small: what the interface must carry


@dataclass
class ClassWise(Method):
    """Like CS-KD: the partner's prediction, without gradient, teaches the anchor's (Yun et al. 2020)."""

    temperature: float = 4.0

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 2

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        with torch.no_grad():
            teacher = model(batch.partner)
        logits = model(batch.x)
        cross_entropy = F.cross_entropy(logits, batch.y)
        t = self.temperature
        kl = F.kl_div((logits / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="batchmean", log_target=True)
        distillation = t**2 * kl
        terms = LossTerms(cross_entropy + distillation, cross_entropy, distillation, torch.zeros_like(kl))
        return Step(terms, logits, batch.y)


@dataclass
class Progressive(Method):
    """Like PS-KD: the prediction of the epoch before softens the target, ever more (Kim et al. 2021)."""

    share: float = 0.8

    def setup(self, classes: int, samples: int) -> None:
        self.past = torch.zeros(samples, classes)
        self.seen = torch.zeros(samples, dtype=torch.bool)

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        hard = F.one_hot(batch.y, logits.shape[1]).float()
        share = self.share * (progress.epoch + 1) / progress.epochs * self.seen[batch.index, None]
        target = (1 - share) * hard + share * self.past[batch.index]
        self.past[batch.index] = logits.detach().softmax(1)
        self.seen[batch.index] = True
        return Step(single_terms(F.cross_entropy(logits, target)), logits, target)

    def state_dict(self) -> dict[str, Any]:
        return {"past": self.past, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.past, self.seen = state["past"], state["seen"]


@dataclass
class LastBatch(Method):
    """Like DLB: the anchors of the step before must be answered as they were then (Shen et al. 2022)."""

    needs: ClassVar[frozenset[str]] = frozenset({"previous"})
    passes_per_anchor: ClassVar[int] = 2

    def setup(self, classes: int, samples: int) -> None:
        self.answers: dict[str, Tensor] = {}

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        logits = model(batch.x)
        loss = F.cross_entropy(logits, batch.y)
        zero = torch.zeros_like(loss)
        distillation = zero
        if batch.previous is not None:
            assert torch.equal(batch.previous.index, self.answers["index"])
            again = model(batch.previous.x).log_softmax(1)
            distillation = F.kl_div(again, self.answers["probability"], reduction="batchmean")
        self.answers = {"index": batch.index, "probability": logits.detach().softmax(1)}
        return Step(LossTerms(loss + distillation, loss, distillation, zero), logits, batch.y)

    def state_dict(self) -> dict[str, Any]:
        return self.answers

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.answers = state


@dataclass
class SwapAndCutMix(Method):
    """CutMix of swapped pairs: both images of a pair get the same box, and the pair keeps one soft target."""

    needs: ClassVar[frozenset[str]] = frozenset({"partner"})
    passes_per_anchor: ClassVar[int] = 2

    def setup(self, classes: int, samples: int) -> None:
        from torchvision.transforms import v2

        self.mix, self.loss = v2.CutMix(num_classes=classes), SelfDistillationLoss()

    def step(self, model: nn.Module, batch: Batch, progress: Progress) -> Step:
        pair = torch.cat(patch_swap(batch.x, batch.partner, 2), dim=1)  # (N, 2C, H, W): one box for both
        pair, target = self.mix(pair, batch.y)  # target: (N, C)
        logits = model(torch.cat(pair.chunk(2, dim=1)))
        return Step(self.loss(*logits.chunk(2), target), logits, target.repeat(2, 1))


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


def ready(kind: type[Method]) -> Method:
    method = kind()
    method.setup(CLASSES, SAMPLES)
    return method


def through_a_file(state: dict[str, Any], path: Any) -> dict[str, Any]:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def test_a_teacher_without_gradient_teaches_the_anchor_alone():
    method, model = ready(ClassWise), Net()
    batch = batch_of(method)
    batch.partner.requires_grad_(), batch.x.requires_grad_()
    method.step(model, batch, PROGRESS).terms.distillation.backward()
    assert batch.partner.grad is None and batch.x.grad.abs().sum() > 0


def test_passes_per_anchor_counts_a_teacher_s_forwards():
    method, model = ready(ClassWise), Net()
    step(method, model)
    assert sum(model.counted) == method.passes_per_anchor * N


def test_sample_indices_lead_to_what_was_stored_an_epoch_before():
    method, model = ready(Progressive), Net()
    batches = Batches(data(), N, 0, method.needs)
    then = {}
    for number in range(batches.steps_per_epoch):
        result = method.step(model, batches[number], Progress(number, 60, 0, 20.0))
        then.update(zip(batches[number].index.tolist(), result.logits.softmax(1).detach(), strict=True))
    batch = batches[batches.steps_per_epoch]
    target = method.step(model, batch, Progress(batches.steps_per_epoch, 60, 1, 20.0)).target
    share = 0.8 * 2 / 20
    for row, i, y in zip(target, batch.index.tolist(), batch.y, strict=True):
        assert_close(row, (1 - share) * F.one_hot(y, CLASSES) + share * then[i])


@pytest.mark.parametrize("kind", [Progressive, LastBatch])
@pytest.mark.parametrize("stop", [2, 5])
def test_a_method_s_state_continues_from_a_file(kind, stop, tmp_path):
    whole = trained(ready(kind), Net(), 0, 9)
    method, model = ready(kind), Net()
    before = trained(method, model, 0, stop)
    state = through_a_file(method.state_dict(), tmp_path / "state.pt")
    continued = ready(kind)
    continued.load_state_dict(state)
    assert before + trained(continued, model, stop, 9) == whole


def test_a_run_continued_without_the_method_s_state_is_another():
    model = Net()
    trained(ready(Progressive), model, 0, 5)
    assert trained(ready(Progressive), model, 5, 9) != trained(ready(Progressive), Net(), 0, 9)[5:]


def test_the_batch_before_is_distilled_from_the_second_step_on():
    method, model = ready(LastBatch), Net()
    batches = Batches(data(), N, 0, method.needs)
    first, second = (method.step(model, batches[number], PROGRESS).terms.distillation for number in (0, 1))
    assert first == 0 and second > 0


def test_soft_targets_of_swapped_pairs_go_through_the_loss():
    method, model = ready(SwapAndCutMix), Net()
    result = step(method, model)
    assert_close(result.target.sum(1), torch.ones(2 * N))
    expected = -(result.target * result.logits.log_softmax(1)).sum(1).mean()
    assert_close(result.terms.cross_entropy, expected)
    assert result.terms.distillation > 0
