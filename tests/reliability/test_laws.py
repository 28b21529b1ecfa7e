"""Laws, one test each, on drawn examples: of the swap, the loss, the pairs, training, evaluation and statistics.

In the short form few examples, the same in every run; in the long form (PSD_RELIABILITY=long) many, new ones each time.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import psd
from psd import PairedBatchSampler, SelfDistillationLoss, data, losses, patch_swap, same_class_partner, tasks
from psd.data.images import ImageData
from psd.reporting import statistics
from psd.swap import patch_mask

LONG = os.environ.get("PSD_RELIABILITY") == "long"
DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
FORMATS = [torch.contiguous_format, torch.channels_last]
DIRECTIONS = ["symmetric", "a_to_b", "b_to_a", "easy_to_hard", "hard_to_easy"]
REVERSED = dict(zip(DIRECTIONS, ["symmetric", "b_to_a", "a_to_b", "easy_to_hard", "hard_to_easy"], strict=True))

pytestmark = pytest.mark.usefixtures("one_thread")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def law(what: str, short: int = 25, long: int = 500, **drawn: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """A check of drawn values as a test, which counts the examples that it held for."""

    def of(check: Callable[..., None]) -> Callable[..., None]:
        def test(tally: Callable[..., None]) -> None:
            held = 0

            @settings(
                max_examples=long if LONG else short,
                deadline=None,
                derandomize=not LONG,
                print_blob=True,
                suppress_health_check=[HealthCheck.too_slow],
            )
            @given(**drawn)
            @functools.wraps(check)
            def example(**values: Any) -> None:
                nonlocal held
                check(**values)
                held += 1

            example()
            assert held > 0
            tally("Laws", what, "held", tried=held)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return of


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


seeds = st.integers(0, 2**31)
sides = st.integers(1, 4)
probabilities = st.one_of(st.floats(0, 1), st.sampled_from([0, 1]))
ratios = st.one_of(st.floats(0, 1), st.just("uniform"))


# --- the swap


class Pairs(NamedTuple):
    """Two batches of images, and a mask as `patch_swap` draws it."""

    x_a: Tensor
    x_b: Tensor
    patch: tuple[int, int]
    mask: Tensor

    def swapped(self) -> tuple[Tensor, Tensor]:
        return patch_swap(self.x_a, self.x_b, self.patch, mask=self.mask)


@st.composite
def swaps(draw: st.DrawFn) -> Pairs:
    """Whole numbers below 256, exact in every dtype: even ones in x_a, odd ones in x_b."""
    n, c, rows, columns = draw(st.integers(0, 4)), draw(sides), draw(sides), draw(sides)
    patch, generator = (draw(sides), draw(sides)), seeded(draw(seeds))
    x = 2 * torch.randint(128, (2, n, c, rows * patch[0], columns * patch[1]), generator=generator)
    dtype, memory_format = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(FORMATS))
    x_a, x_b = (x[k].add(k).to(dtype).contiguous(memory_format=memory_format) for k in (0, 1))
    mask = patch_mask(n, (rows, columns), p=draw(probabilities), ratio=draw(ratios), generator=generator)
    return Pairs(x_a, x_b, patch, mask)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@law(
    "swap: the pixels of a pair are conserved",
    case=swaps(),
    p=probabilities,
    ratio=ratios,
    seed=seeds,
)
def test_the_pixels_of_a_pair_are_conserved(case, p, ratio, seed):
    found = patch_swap(case.x_a, case.x_b, case.patch, p=p, ratio=ratio, generator=seeded(seed))
    before, after = (torch.stack(tuple(pair)).double().sort(0).values for pair in (case[:2], found))
    assert torch.equal(before, after)


@law("swap: the two results are complementary, and the mask says which pixels moved", case=swaps())
def test_the_two_results_are_complementary(case):
    in_a, in_b = (x.double() % 2 == 1 for x in case.swapped())  # odd: from x_b
    moved = torch.kron(case.mask.long(), torch.ones(1, *case.patch, dtype=torch.int64)).bool()
    assert torch.equal(in_a, ~in_b)
    assert torch.equal(in_a, moved[:, None].expand_as(in_a))


@law("swap: the same mask undoes it", case=swaps())
def test_the_same_mask_undoes_the_swap(case):
    x_a, x_b = case.swapped()
    assert same(case._replace(x_a=x_a, x_b=x_b).swapped(), (case.x_a, case.x_b))


@law("swap: a and b exchanged, or the other patches, give the results exchanged", case=swaps())
def test_exchanging_a_and_b_exchanges_the_results(case):
    x_a2, x_b2 = case.swapped()
    assert same(case._replace(x_a=case.x_b, x_b=case.x_a).swapped(), (x_b2, x_a2))
    assert same(case._replace(mask=~case.mask).swapped(), (x_b2, x_a2))


@law(
    "swap: equivariant under flips of images and grid",
    case=swaps(),
    axes=st.sampled_from([(-1,), (-2,), (-2, -1)]),
)
def test_the_swap_is_equivariant_under_flips(case, axes):
    flipped = case._replace(x_a=case.x_a.flip(axes), x_b=case.x_b.flip(axes), mask=case.mask.flip(axes))
    assert same(flipped.swapped(), tuple(x.flip(axes) for x in case.swapped()))


@law("swap: equivariant under exchange of height and width", case=swaps())
def test_the_swap_is_equivariant_under_transposition(case):
    turned = Pairs(case.x_a.mT, case.x_b.mT, case.patch[::-1], case.mask.mT)
    assert same(turned.swapped(), tuple(x.mT for x in case.swapped()))


@law("swap: pairs do not depend on their neighbours in the batch", case=swaps(), seed=seeds)
def test_the_swap_is_equivariant_under_the_order_of_the_batch(case, seed):
    order = torch.randperm(len(case.x_a), generator=seeded(seed))
    mixed = case._replace(x_a=case.x_a[order], x_b=case.x_b[order], mask=case.mask[order])
    assert same(mixed.swapped(), tuple(x[order] for x in case.swapped()))


@law("swap: of every dtype the same as in float64", case=swaps())
def test_the_swap_of_every_dtype_is_that_of_float64(case):
    wide = case._replace(x_a=case.x_a.double(), x_b=case.x_b.double())
    assert same(wide.swapped(), tuple(x.double() for x in case.swapped()))


@law("swap: channels_last the same as contiguous", case=swaps(), first=st.booleans(), second=st.booleans())
def test_the_swap_does_not_depend_on_the_memory_format(case, first, second):
    x_a = case.x_a.contiguous(memory_format=FORMATS[first])
    x_b = case.x_b.contiguous(memory_format=FORMATS[second])
    found = case._replace(x_a=x_a, x_b=x_b).swapped()
    assert same(found, case.swapped())
    assume(len(x_a) > 0)  # no images are in every format at once
    for x, x2 in zip((x_a, x_b), found, strict=True):
        assert all(x2.is_contiguous(memory_format=f) for f in FORMATS if x.is_contiguous(memory_format=f))


@law("swap: its gradient is the swap of the gradients", case=swaps(), seed=seeds)
def test_the_gradient_is_the_swap_of_the_gradients(case, seed):
    x_a, x_b = (x.double().requires_grad_() for x in case[:2])
    g_a, g_b = torch.randn(2, *x_a.shape, generator=seeded(seed), dtype=torch.float64)
    found = torch.autograd.grad(patch_swap(x_a, x_b, case.patch, mask=case.mask), (x_a, x_b), (g_a, g_b))
    assert same(found, case._replace(x_a=g_a, x_b=g_b).swapped())


@law("swap: compiled the same as eager", seed=seeds, p=probabilities, ratio=st.floats(0, 1), dtype=st.integers(0, 1))
def test_the_compiled_swap_is_the_eager_one(seed, p, ratio, dtype):
    generator = seeded(seed)
    x_a, x_b = torch.randint(256, (2, 3, 2, 8, 8), generator=generator).to([torch.uint8, torch.float32][dtype])
    mask = patch_mask(3, (4, 2), p=p, ratio=ratio, generator=generator)
    assert same(compiled_swap(x_a, x_b, (2, 4), mask=mask), patch_swap(x_a, x_b, (2, 4), mask=mask))


compiled_swap = torch.compile(patch_swap, backend="aot_eager", fullgraph=True, dynamic=False)


@needs_cuda
@law("swap: on a GPU the same as on the CPU", case=swaps())
def test_the_swap_on_a_gpu_is_that_on_the_cpu(case):
    found = case._replace(x_a=case.x_a.cuda(), x_b=case.x_b.cuda(), mask=case.mask.cuda()).swapped()
    assert same(tuple(x.cpu() for x in found), case.swapped())


# --- the loss


class Predictions(NamedTuple):
    """Logits of pairs, (N, C) or dense, their labels and features, in float64; and the loss's options."""

    z_a: Tensor
    z_b: Tensor
    y: Tensor
    h_a: Tensor
    h_b: Tensor
    options: dict[str, Any]

    def terms(self, **changes: Any) -> losses.LossTerms:
        return SelfDistillationLoss(**{**self.options, **changes})(*self[:5])

    def of(self, rows: Any) -> Predictions:
        return Predictions(*(x[rows] for x in self[:5]), self.options)


@st.composite
def predictions(draw: st.DrawFn, pairs: int = 1, spatial: bool = True) -> Predictions:
    n, classes, generator = draw(st.integers(pairs, 6)), draw(st.integers(2, 6)), seeded(draw(seeds))
    positions = draw(st.sampled_from([(), (2,), (3, 2)] if spatial else [()]))
    scale = draw(st.floats(0, 10))
    z_a, z_b = scale * torch.randn(2, n, classes, *positions, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (n, *positions), generator=generator)
    h_a, h_b = torch.randn(2, n, 5, generator=generator, dtype=torch.float64)
    options = {
        "temperature": draw(st.floats(0.5, 10)),
        "weight": draw(st.floats(0, 5)),
        "detach": draw(st.booleans()),
        "direction": draw(st.sampled_from(DIRECTIONS)),
        "cross_entropy": draw(st.sampled_from(["both", "a", "b"])),
        "feature_weight": draw(st.sampled_from([0.0, 0.5])),
        "feature_distance": draw(st.sampled_from(["cosine", "mse"])),
    }
    return Predictions(z_a, z_b, y, h_a, h_b, options)


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> bool:
    return all(
        torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance)
        for x, y in zip(found, expected, strict=True)
    )


@law("loss: no divergence below 0, and 0 between equal predictions", case=predictions())
def test_the_divergence_is_at_least_0(case):
    assert case.terms().distillation >= -1e-9
    assert abs(case._replace(z_b=case.z_a).terms().distillation) < 1e-9


@law("loss: a number added to all logits of a prediction changes nothing", case=predictions(), seed=seeds)
def test_shifted_logits_have_the_same_loss(case, seed):
    shape = (len(case.z_a), 1, *case.z_a.shape[2:])
    by_a, by_b = 10 * torch.randn(2, *shape, generator=seeded(seed), dtype=torch.float64)
    assert close(case._replace(z_a=case.z_a + by_a, z_b=case.z_b + by_b).terms(), case.terms())


@law("loss: the order of the batch changes nothing", case=predictions(), seed=seeds)
def test_the_order_of_the_batch_does_not_matter(case, seed):
    order = torch.randperm(len(case.z_a), generator=seeded(seed))
    assert close(case.of(order).terms(), case.terms())


@law("loss: classes renamed in logits and labels alike change nothing", case=predictions(), seed=seeds)
def test_the_names_of_the_classes_do_not_matter(case, seed):
    order = torch.randperm(case.z_a.shape[1], generator=seeded(seed))
    renamed = case._replace(z_a=case.z_a[:, order], z_b=case.z_b[:, order], y=order.argsort()[case.y])
    assert close(renamed.terms(), case.terms())


@law("loss: a and b exchanged exchange its terms and gradients", case=predictions())
def test_exchanging_a_and_b_exchanges_the_terms(case):
    images = {"both": "both", "a": "b", "b": "a"}[case.options["cross_entropy"]]
    other = case._replace(
        z_a=case.z_b.clone().requires_grad_(),
        z_b=case.z_a.clone().requires_grad_(),
        h_a=case.h_b,
        h_b=case.h_a,
        options={**case.options, "cross_entropy": images, "direction": REVERSED[case.options["direction"]]},
    )
    case = case._replace(z_a=case.z_a.clone().requires_grad_(), z_b=case.z_b.clone().requires_grad_())
    found, expected = other.terms(), case.terms()
    assert close(found, expected)
    of_b, of_a = torch.autograd.grad(found.total, (other.z_a, other.z_b), allow_unused=True, materialize_grads=True)
    assert close(
        (of_a, of_b),
        torch.autograd.grad(expected.total, (case.z_a, case.z_b), allow_unused=True, materialize_grads=True),
    )


@law("loss: of a batch the mean of its parts', by their sizes", case=predictions(pairs=2), share=st.floats(0, 1))
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(case, share):
    n = len(case.z_a)
    cut = 1 + int(share * (n - 2))
    first, second = case.of(slice(cut)).terms(), case.of(slice(cut, n)).terms()
    assert close([(cut * x + (n - cut) * y) / n for x, y in zip(first, second, strict=True)], case.terms())


@law("loss: at temperature T that of logits / T at 1, times T squared", case=predictions())
def test_the_temperature_divides_the_logits(case):
    assume(case.options["direction"] in DIRECTIONS[:3])  # who finds it easy is asked of the logits as they are
    t = case.options["temperature"]
    cooled = case._replace(z_a=case.z_a / t, z_b=case.z_b / t).terms(temperature=1)
    assert close([case.terms().distillation], [t**2 * cooled.distillation])


@law("loss: logits where nothing is to be learnt change nothing", case=predictions(), seed=seeds)
def test_ignored_positions_do_not_matter(case, seed):
    generator = seeded(seed)
    ignored = torch.rand(case.y.shape, generator=generator) < 0.4
    case = case._replace(y=case.y.masked_fill(ignored, -100))
    noise = 50 * torch.randn(2, *case.z_a.shape, generator=generator, dtype=torch.float64) * ignored.unsqueeze(1)
    assert close(case._replace(z_a=case.z_a + noise[0], z_b=case.z_b + noise[1]).terms(), case.terms())


@law("loss: float32 near float64", case=predictions())
def test_the_loss_in_float32_is_near_that_in_float64(case):
    short = Predictions(*(x.float() if x.is_floating_point() else x for x in case[:5]), case.options)
    rounded = Predictions(*(x.double() if x.is_floating_point() else x for x in short[:5]), case.options)
    if "hard" in case.options["direction"]:  # which of two is the easier one must not hang on the rounding
        a, b = (F.cross_entropy(z, case.y, reduction="none") for z in rounded[:2])
        assume(((a - b).abs() > 1e-5).all())
    found = short.terms()
    assert all(term.dtype == torch.float32 for term in found)
    assert close(found, rounded.terms(), tolerance=1e-4)


@law(
    "loss: float16 and bfloat16 computed in float32",
    case=predictions(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_short_floats_are_computed_in_float32(case, dtype):
    short = Predictions(*(x.to(dtype) if x.is_floating_point() else x for x in case[:5]), case.options)
    wide = Predictions(*(x.float() if x.is_floating_point() else x for x in short[:5]), case.options)
    assert same(short.terms(), wide.terms())


@law("loss: channels_last the same as contiguous", case=predictions())
def test_the_loss_does_not_depend_on_the_memory_format(case):
    assume(case.z_a.ndim == 4)
    z_a, z_b = (z.contiguous(memory_format=torch.channels_last) for z in case[:2])
    assert close(case._replace(z_a=z_a, z_b=z_b).terms(), case.terms(), tolerance=1e-12)


@law("loss: compiled the same as eager", seed=seeds, scale=st.floats(0, 10))
def test_the_compiled_loss_is_the_eager_one(seed, scale):
    generator = seeded(seed)
    z_a, z_b = scale * torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (4,), generator=generator)
    assert close(compiled_loss(z_a, z_b, y), SelfDistillationLoss()(z_a, z_b, y))


compiled_loss = torch.compile(SelfDistillationLoss(), backend="aot_eager", fullgraph=True, dynamic=False)


@needs_cuda
@law("loss: on a GPU near that on the CPU", case=predictions())
def test_the_loss_on_a_gpu_is_that_on_the_cpu(case):
    on_gpu = Predictions(*(x.cuda() for x in case[:5]), case.options)
    assert close([term.cpu() for term in on_gpu.terms()], case.terms())


# --- pairs


@law(
    "pairs: a partner is another sample of the class, where there is one",
    labels=st.lists(st.integers(-3, 3), max_size=15),  # 16 and more may be warned of
    seed=seeds,
)
def test_a_partner_is_another_sample_of_the_class(labels, seed):
    partner = same_class_partner(torch.tensor(labels, dtype=torch.int64), seeded(seed)).tolist()
    assert [labels[j] for j in partner] == labels
    assert [i != j for i, j in enumerate(partner)] == [labels.count(label) > 1 for label in labels]


@law(
    "pairs: in a drawn batch every image has its partners, and none comes twice in an epoch",
    sizes=st.lists(st.integers(3, 9), min_size=2, max_size=6),
    per_class=st.integers(2, 3),
    groups=st.integers(1, 2),
    seed=seeds,
)
def test_every_image_of_a_batch_has_its_partners(sizes, per_class, groups, seed):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    batches = list(PairedBatchSampler(labels, groups * per_class, per_class, seed))
    for batch in batches:
        assert all(count % per_class == 0 for count in Counter(labels[i] for i in batch).values())
    seen = [i for batch in batches for i in batch]
    assert len(seen) == len(set(seen)) == len(batches) * groups * per_class


# --- training


class InDouble(nn.Module):
    """A network that computes in float64, so that nothing but the order of sums can differ."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(16, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.double()).flatten(1))


@functools.cache
def few_images() -> ImageData:
    return data.load("shapes", count=32, classes=4, size=16)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def trained(seed: int, method: str, accumulate: int) -> tuple[Tensor, float]:
    """The weights after an epoch of two steps, and its mean loss."""
    torch.manual_seed(seed)
    model = InDouble()
    with tempfile.TemporaryDirectory() as output:
        record = psd.fit(
            model,
            few_images(),
            method=method,
            budget=1,
            batch_size=16,
            optimizer={"lr": 0.1, "warmup": 0},
            run={
                "seed": seed,
                "output": output,
                "device": "cpu",
                "precision": "fp32",
                "progress": False,
                "accumulate": accumulate,
            },
        )
    return weights(model), record.epochs[-1]["loss"]


@law(
    "training: gradients added up over parts are those of one large batch",
    short=3,
    long=40,
    seed=st.integers(0, 999),
    method=st.sampled_from(["patch_swap", "cross_entropy", "swap_cross_entropy"]),
    accumulate=st.sampled_from([2, 4, 8]),
)
def test_accumulation_is_one_large_batch(seed, method, accumulate):
    whole, parts = trained(seed, method, 1), trained(seed, method, accumulate)
    torch.manual_seed(seed)
    assert (whole[0] - weights(InDouble())).abs().max() > 1e-3  # they did learn
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-10, atol=1e-10)
    assert parts[1] == pytest.approx(whole[1], abs=1e-5)


# --- evaluation


class Small(nn.Module):
    """Its batch normalisation and dropout would answer by the batch in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3 * 4 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(x).flatten(1)))


@law(
    "evaluation: the figures do not depend on the batch size",
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    seed=seeds,
)
def test_evaluation_does_not_depend_on_the_batch_size(count, batch_size, seed):
    generator = seeded(seed)
    images = torch.randint(256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(7, (count,), generator=generator)
    some = ImageData(images, labels, tuple("abcdefg"), "some", (0.4,) * 3, (0.3,) * 3, 4, True)
    torch.manual_seed(seed)
    model = Small().train()
    parts, whole = psd.evaluate(model, some, batch_size), psd.evaluate(model, some, 1000)
    assert parts.n_test == whole.n_test == count
    assert parts == pytest.approx(whole, abs=1e-5)


@law(
    "evaluation: ECE and the sign of overconfidence as counted by hand",
    answers=st.lists(st.tuples(st.integers(8, 14), st.booleans()), min_size=1, max_size=40),
    classes=st.integers(2, 5),
)
def test_calibration_is_as_counted_by_hand(answers, classes):
    """Each answer is given with a confidence in the middle of one of the 15 bins, and is right or wrong."""
    sure = [(bin + 0.5) / 15 for bin, _ in answers]
    rows = [[p] + [(1 - p) / (classes - 1)] * (classes - 1) for p in sure]
    meter = tasks.find("classification").meter(classes)
    meter.update(
        torch.tensor(rows, dtype=torch.float64).log(), torch.tensor([0 if right else 1 for _, right in answers])
    )
    found = meter.compute()
    ece = 0.0
    for bin in {bin for bin, _ in answers}:
        inside = [right for other, right in answers if other == bin]
        ece += len(inside) / len(answers) * abs((bin + 0.5) / 15 - sum(inside) / len(inside))
    sign = sum(sure) / len(sure) - sum(right for _, right in answers) / len(answers)
    assert found.ece == pytest.approx(ece, abs=1e-5)
    assert found.overconfidence == pytest.approx(sign, abs=1e-5)
    assert abs(found.overconfidence) <= found.ece + 1e-5


@law(
    "evaluation: IoU as counted pixel by pixel",
    masks=st.lists(st.tuples(st.sampled_from([0, 1, 2, None]), st.integers(0, 2)), min_size=1, max_size=24).filter(
        lambda pixels: any(label is not None for label, _ in pixels)
    ),
)
def test_iou_is_as_counted_pixel_by_pixel(masks):
    """Each pixel has a label, or None where it does not count, and a prediction."""
    labels = torch.tensor([[[-100 if label is None else label for label, _ in masks]]])
    logits = nn.functional.one_hot(torch.tensor([[[predicted for _, predicted in masks]]]), 4).movedim(-1, 1).float()
    meter = tasks.find("segmentation").meter(4)
    meter.update(logits, labels)
    found, expected = meter.compute(), []
    for k in range(4):
        counted = [(label == k, predicted == k) for label, predicted in masks if label is not None]
        union = sum(a or b for a, b in counted)
        expected.append(100 * sum(a and b for a, b in counted) / union if union else None)
    assert found.iou == [None if iou is None else pytest.approx(iou, abs=1e-3) for iou in expected]
    there = [iou for iou in expected if iou is not None]
    assert found.miou == pytest.approx(sum(there) / len(there))


def boxes(*edges: tuple[float, ...], scores: list[float] | None = None) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor(edges), "labels": torch.ones(len(edges), dtype=torch.int64)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def average_precision(predicted: dict[str, Tensor], target: dict[str, Tensor]) -> float:
    pytest.importorskip("pycocotools")
    meter = tasks.find("detection").meter(2)
    meter.update([predicted], [target])
    return float(meter.compute().map)


@law(
    "evaluation: mAP of one box is the share of thresholds that its IoU reaches",
    height=st.integers(1, 99).filter(lambda h: h % 5 != 0),  # never on a threshold, where rounding would decide
)
def test_average_precision_counts_the_thresholds_reached(height):
    # The box has the target's width and `height` hundredths of its height, so this is its IoU.
    found = average_precision(boxes((0.0, 0, 100, height), scores=[0.5]), boxes((0.0, 0, 100, 100)))
    assert found == pytest.approx(10 * sum(height > threshold for threshold in range(50, 100, 5)))


@law("evaluation: mAP behind k wrong boxes that are surer is 1 / (k + 1)", wrong=st.integers(0, 20))
def test_average_precision_behind_surer_wrong_boxes(wrong):
    # The only target is found at rank k + 1: the precision there is 1 / (k + 1), at every recall.
    places = [(200.0 + 20 * k, 0.0, 210.0 + 20 * k, 10.0) for k in range(wrong)]
    scores = [0.9 - 0.01 * k for k in range(wrong)]
    predicted = boxes(*places, (0.0, 0, 50, 50), scores=[*scores, 0.1])
    assert average_precision(predicted, boxes((0.0, 0, 50, 50))) == pytest.approx(100 / (wrong + 1))


def test_average_precision_of_two_things_with_a_wrong_box_between(tally):
    # By surety: right, wrong, right. Precision is 1 up to recall 1/2, and 2/3 from there to 1. COCO reads it at the
    # 101 recalls 0, .01, ... 1: 51 of them are at most 1/2.
    predicted = boxes((0.0, 0, 50, 50), (300.0, 0, 350, 50), (100.0, 0, 150, 50), scores=[0.9, 0.8, 0.7])
    found = average_precision(predicted, boxes((0.0, 0, 50, 50), (100.0, 0, 150, 50)))
    assert found == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    tally("Laws", "evaluation: mAP of two things with a wrong box between, by hand", "held")


# --- statistics

differences = st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(
    lambda values: max(values) - min(values) > 1e-3
)


@law("statistics: the interval is scipy's", values=differences)
def test_the_interval_is_scipy_s(values):
    from scipy import stats

    middle, half = statistics.interval(values)
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (middle - half, middle + half) == pytest.approx((found.low, found.high), rel=1e-9, abs=1e-9)


@law("statistics: p is scipy's, and below 0.05 exactly where the interval does not hold 0", values=differences)
def test_p_is_scipy_s(values):
    from scipy import stats

    p, (middle, half) = statistics.p_value(values), statistics.interval(values)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9, abs=1e-12)
    assume(not math.isclose(abs(middle), half, rel_tol=1e-9))
    assert (p < 0.05) == (abs(middle) > half)


@law(
    "statistics: Holm's p below a level exactly where the steps by hand reject",
    p_values=st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.02, 0.05])), max_size=12),
    level=st.floats(0.001, 0.2),
)
def test_holm_is_the_procedure_by_hand(p_values, level):
    """Holm 1979: the smallest p is held against level / m, the next against level / (m - 1), until one fails."""
    m, rejected = len(p_values), set()
    for step, k in enumerate(sorted(range(m), key=lambda k: p_values[k])):
        if p_values[k] * (m - step) >= level:
            break
        rejected.add(k)
    adjusted = statistics.holm(p_values)
    assert {k for k in range(m) if adjusted[k] < level} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


@law(
    "statistics: Holm's p follows its value when the rows change places",
    p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    seed=seeds,
)
def test_holm_does_not_depend_on_the_order(p_values, seed):
    order = torch.randperm(len(p_values), generator=seeded(seed)).tolist()
    adjusted = statistics.holm(p_values)
    assert statistics.holm([p_values[k] for k in order]) == [adjusted[k] for k in order]
