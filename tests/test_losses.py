"""The loss: numbers worked out by hand, analytic gradients, limits, options, and every bad input named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from psd import LossTerms, SelfDistillationLoss
from psd.losses import check_probabilities, softened_kl

NAN, INF = float("nan"), float("inf")
DIRECTIONS = ("symmetric", "a_to_b", "b_to_a")

laws = settings(max_examples=50, deadline=None, derandomize=True)
temperatures = st.floats(0.2, 20)
weights = st.floats(0, 10)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def inputs(n: int = 5, classes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """logits_a, logits_b, labels."""
    generator = torch.Generator().manual_seed(seed)
    z_a, z_b = 3 * torch.randn(2, n, classes, generator=generator, dtype=torch.float64).to(dtype)
    return z_a, z_b, torch.randint(classes, (n,), generator=generator)


def dense_inputs(
    n: int = 3, classes: int = 4, spatial: tuple[int, ...] = (2, 5), seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Logits (N, C, *spatial) of both images and label maps (N, *spatial)."""
    z_a, z_b, y = inputs(n * math.prod(spatial), classes, seed, dtype)
    return *(z.view(n, *spatial, classes).movedim(-1, 1) for z in (z_a, z_b)), y.view(n, *spatial)


def features(n: int = 5, width: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    h_a, h_b = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return h_a, h_b


def softened(z: list[float], temperature: float) -> list[float]:
    exps = [math.exp(value / temperature) for value in z]
    return [e / sum(exps) for e in exps]


def kl(teacher: list[float], student: list[float]) -> float:
    return sum(q * math.log(q / s) for q, s in zip(teacher, student, strict=True))


def by_hand(
    z_a: Tensor, z_b: Tensor, y: Tensor, temperature: float, direction: str, images: str
) -> tuple[float, float]:
    """Cross-entropy and distillation, pair by pair in plain Python."""
    cross_entropy, distillation = [], []
    for a, b, label in zip(z_a.tolist(), z_b.tolist(), y.tolist(), strict=True):
        ce = {"a": -math.log(softened(a, 1)[label]), "b": -math.log(softened(b, 1)[label])}
        ce["both"] = (ce["a"] + ce["b"]) / 2
        q_a, q_b = softened(a, temperature), softened(b, temperature)
        d = {"a_to_b": kl(q_a, q_b), "b_to_a": kl(q_b, q_a)}
        d["symmetric"] = (d["a_to_b"] + d["b_to_a"]) / 2
        cross_entropy.append(ce[images])
        distillation.append(temperature**2 * d[direction])
    return sum(cross_entropy) / len(y), sum(distillation) / len(y)


def distillation(z_a: Tensor, z_b: Tensor, **options: Any) -> Tensor:
    return SelfDistillationLoss(**options)(z_a, z_b, torch.zeros(len(z_a), dtype=torch.int64)).distillation


def gradients(z_a: Tensor, z_b: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Of the distillation term; zeros where no gradient flows."""
    z_a, z_b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    return torch.autograd.grad(distillation(z_a, z_b, **options), (z_a, z_b), allow_unused=True, materialize_grads=True)


def of_student(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Gradient of T^2 KL(teacher || student) / N by the student's logits: T (q_student - q_teacher) / N."""
    return temperature * (F.softmax(student / temperature, 1) - F.softmax(teacher / temperature, 1)) / len(teacher)


def of_teacher(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Gradient of the same by the teacher's logits: T q_teacher (log(q_teacher / q_student) - KL) / N."""
    q = F.softmax(teacher / temperature, 1)
    log_ratio = q.log() - F.softmax(student / temperature, 1).log()
    return temperature * q * (log_ratio - (q * log_ratio).sum(1, keepdim=True)) / len(teacher)


def close(x: Tensor, y: Tensor | float, tolerance: float = 1e-9) -> bool:
    return torch.allclose(x, torch.as_tensor(y, dtype=x.dtype), rtol=tolerance, atol=tolerance)


# --- closed forms

# T = 2 and logits 2 log q, so that the softened predictions are q; for T = 1 they are q^2 / sum(q^2).
Q_A, Q_B = [1 / 2, 1 / 4, 1 / 4], [1 / 3, 1 / 3, 1 / 3]
KL_AB = math.log(3) - 1.5 * math.log(2)
KL_BA = 5 / 3 * math.log(2) - math.log(3)


@pytest.mark.parametrize(
    ("direction", "divergence"), [("symmetric", (KL_AB + KL_BA) / 2), ("a_to_b", KL_AB), ("b_to_a", KL_BA)]
)
@pytest.mark.parametrize(
    ("images", "cross_entropy"),
    [("both", (math.log(1.5) + math.log(3)) / 2), ("a", math.log(1.5)), ("b", math.log(3))],
)
@pytest.mark.parametrize("detach", [False, True])
def test_known_predictions_give_known_terms(direction, divergence, images, cross_entropy, detach):
    z_a, z_b = 2 * torch.tensor([[Q_A], [Q_B]], dtype=torch.float64).log()
    loss = SelfDistillationLoss(2.0, 0.7, detach=detach, direction=direction, cross_entropy=images)
    terms = loss(z_a, z_b, torch.tensor([0]))
    assert terms.cross_entropy.item() == pytest.approx(cross_entropy, rel=1e-12)
    assert terms.distillation.item() == pytest.approx(4 * divergence, rel=1e-12)
    assert terms.feature.item() == 0
    assert terms.total.item() == pytest.approx(cross_entropy + 0.7 * 4 * divergence, rel=1e-12)


@laws
@given(
    n=st.integers(1, 5),
    classes=st.integers(2, 6),
    seed=st.integers(0, 99),
    temperature=temperatures,
    weight=weights,
    direction=st.sampled_from(DIRECTIONS),
    images=st.sampled_from(["both", "a", "b"]),
    detach=st.booleans(),
)
def test_the_terms_agree_with_plain_python(n, classes, seed, temperature, weight, direction, images, detach):
    z_a, z_b, y = inputs(n, classes, seed)
    loss = SelfDistillationLoss(temperature, weight, detach=detach, direction=direction, cross_entropy=images)
    terms = loss(z_a, z_b, y)
    cross_entropy, divergence = by_hand(z_a, z_b, y, temperature, direction, images)
    assert close(terms.cross_entropy, cross_entropy)
    assert close(terms.distillation, divergence)
    assert close(terms.total, cross_entropy + weight * divergence)


def test_the_defaults_are_those_of_the_documentation():
    z_a, z_b, y = inputs()
    cross_entropy, divergence = by_hand(z_a, z_b, y, 4.0, "symmetric", "both")
    assert close(SelfDistillationLoss()(z_a, z_b, y).total, cross_entropy + divergence)


@laws
@given(seed=st.integers(0, 99), w=weights, v=st.floats(0.01, 10), distance=st.sampled_from(["cosine", "mse"]))
def test_the_total_is_the_weighted_sum_of_the_terms(seed, w, v, distance):
    loss = SelfDistillationLoss(weight=w, feature_weight=v, feature_distance=distance)
    terms = loss(*inputs(seed=seed), *features(seed=seed + 100))
    assert terms.feature > 0
    assert close(terms.total, terms.cross_entropy + w * terms.distillation + v * terms.feature)


def test_the_terms_do_not_hold_their_weights():
    light, heavy = (SelfDistillationLoss(weight=w, feature_weight=w)(*inputs(), *features()) for w in (1.0, 5.0))
    assert light[1:] == heavy[1:]
    assert light.total != heavy.total


def test_the_terms_are_four_scalars_in_their_order():
    terms = SelfDistillationLoss()(*inputs())
    assert LossTerms._fields == ("total", "cross_entropy", "distillation", "feature")
    assert isinstance(terms, LossTerms)
    assert all(term.shape == () for term in terms)


# --- laws of the divergence


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_logits_have_no_divergence_and_no_gradient(direction, detach):
    z, _, _ = inputs()
    options = {"direction": direction, "detach": detach}
    assert distillation(z, z, **options).item() == 0
    assert all(close(g, 0.0, 1e-12) for g in gradients(z, z, **options))


@laws
@given(seed=st.integers(0, 99), temperature=temperatures, detach=st.booleans())
def test_the_symmetric_divergence_does_not_change_when_the_images_do(seed, temperature, detach):
    z_a, z_b, y = inputs(seed=seed)
    loss = SelfDistillationLoss(temperature, detach=detach)
    assert all(close(x, other) for x, other in zip(loss(z_a, z_b, y), loss(z_b, z_a, y), strict=True))


@laws
@given(seed=st.integers(0, 99), temperature=temperatures)
def test_the_two_directions_mirror_each_other(seed, temperature):
    z_a, z_b, _ = inputs(seed=seed)
    forward = distillation(z_a, z_b, temperature=temperature, direction="a_to_b")
    backward = distillation(z_b, z_a, temperature=temperature, direction="b_to_a")
    assert forward.item() == backward.item()
    assert not close(forward, distillation(z_b, z_a, temperature=temperature, direction="a_to_b"))


@laws
@given(seed=st.integers(0, 99), temperature=temperatures, shift=st.floats(-50, 50))
def test_a_constant_added_to_the_logits_changes_nothing(seed, temperature, shift):
    z_a, z_b, y = inputs(seed=seed)
    loss = SelfDistillationLoss(temperature)
    terms = zip(loss(z_a, z_b, y), loss(z_a + shift, z_b - shift, y), strict=True)
    assert all(close(x, shifted, 1e-7) for x, shifted in terms)


# --- the mean over pairs (batchmean)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_terms_are_means_over_the_pairs(direction):
    loss = SelfDistillationLoss(direction=direction, feature_weight=1.0)
    rows = [*inputs(), *features()]
    single = [loss(*(row[i : i + 1] for row in rows)) for i in range(len(rows[0]))]
    for k, term in enumerate(loss(*rows)):
        assert close(term, torch.stack([terms[k] for terms in single]).mean())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_divergence_is_summed_over_the_classes(direction):
    z_a, z_b, _ = inputs(classes=4)
    impossible = torch.full((5, 12), -1e6, dtype=z_a.dtype)  # classes without probability; a mean would shrink to 1/4
    longer = distillation(torch.cat([z_a, impossible], 1), torch.cat([z_b, impossible], 1), direction=direction)
    assert close(longer, distillation(z_a, z_b, direction=direction))


# --- gradients


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_gradient_of_both_sides_is_the_analytic_one(direction, detach, temperature):
    z_a, z_b, _ = inputs()
    teaching = 0.0 if detach else 1.0
    a_to_b = (teaching * of_teacher(z_a, z_b, temperature), of_student(z_a, z_b, temperature))
    b_to_a = (of_student(z_b, z_a, temperature), teaching * of_teacher(z_b, z_a, temperature))
    both = tuple((first + second) / 2 for first, second in zip(a_to_b, b_to_a, strict=True))
    expected = {"a_to_b": a_to_b, "b_to_a": b_to_a, "symmetric": both}[direction]
    found = gradients(z_a, z_b, temperature=temperature, direction=direction, detach=detach)
    assert all(close(g, e) for g, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(("direction", "teacher"), [("a_to_b", 0), ("b_to_a", 1)])
def test_a_detached_teacher_gets_exactly_no_gradient(direction, teacher):
    found = gradients(*inputs()[:2], direction=direction, detach=True)
    assert (found[teacher] == 0).all()
    assert (found[1 - teacher] != 0).any()


@pytest.mark.parametrize(("direction", "teacher"), [("a_to_b", 0), ("b_to_a", 1)])
def test_a_teacher_that_is_not_detached_gets_a_gradient(direction, teacher):
    assert (gradients(*inputs()[:2], direction=direction, detach=False)[teacher] != 0).any()


def test_a_detached_teacher_still_learns_from_the_label():
    z_a, z_b, y = inputs()
    z_a.requires_grad_()
    SelfDistillationLoss(direction="a_to_b", detach=True)(z_a, z_b, y).total.backward()
    other = z_a.detach().clone().requires_grad_()
    (F.cross_entropy(other, y) / 2).backward()
    assert close(z_a.grad, other.grad)


def test_detach_changes_no_value():
    for direction in DIRECTIONS:
        loss, detached = (SelfDistillationLoss(direction=direction, detach=detach) for detach in (False, True))
        assert loss(*inputs()) == detached(*inputs())


@pytest.mark.parametrize(("images", "other"), [("a", 1), ("b", 0)])
def test_only_the_chosen_image_learns_from_the_label(images, other):
    z_a, z_b, y = inputs()
    both = (z_a.requires_grad_(), z_b.requires_grad_())
    terms = SelfDistillationLoss(cross_entropy=images)(z_a, z_b, y)
    found = torch.autograd.grad(terms.cross_entropy, both, allow_unused=True, materialize_grads=True)
    assert (found[other] == 0).all()
    chosen = both[1 - other].detach().clone().requires_grad_()
    F.cross_entropy(chosen, y).backward()
    assert close(found[1 - other], chosen.grad)


# --- temperature


@laws
@given(seed=st.integers(0, 99), temperature=temperatures, direction=st.sampled_from(DIRECTIONS))
def test_the_divergence_is_t_squared_times_that_of_the_divided_logits(seed, temperature, direction):
    z_a, z_b, _ = inputs(seed=seed)
    at_1 = distillation(z_a / temperature, z_b / temperature, temperature=1.0, direction=direction)
    assert close(distillation(z_a, z_b, temperature=temperature, direction=direction), temperature**2 * at_1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_for_a_large_t_the_divergence_is_half_the_squared_distance_of_the_centred_logits(direction):
    z_a, z_b, _ = inputs()
    difference = (z_a - z_a.mean(1, keepdim=True)) - (z_b - z_b.mean(1, keepdim=True))
    limit = difference.square().mean(1).mean() / 2
    assert close(distillation(z_a, z_b, temperature=1e4, direction=direction), limit, 1e-3)


def test_for_a_large_t_the_gradient_keeps_its_size():
    z_a, z_b, _ = inputs()
    limit = ((z_b - z_b.mean(1, keepdim=True)) - (z_a - z_a.mean(1, keepdim=True))) / z_a.numel()
    assert close(gradients(z_a, z_b, temperature=1e4, direction="a_to_b", detach=True)[1], limit, 1e-3)


def test_the_temperature_leaves_the_cross_entropy_alone():
    assert len({SelfDistillationLoss(t)(*inputs()).cross_entropy.item() for t in (0.5, 1.0, 4.0)}) == 1


# --- precision


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_logits_of_1e4_give_finite_terms_and_gradients(dtype, direction):
    big = 9984.0  # 1e4 as bf16 knows it
    z_a = torch.tensor([[big, 0.0], [0.0, -big]], dtype=dtype, requires_grad=True)
    z_b = torch.tensor([[0.0, big], [0.0, -big]], dtype=dtype, requires_grad=True)
    terms = SelfDistillationLoss(4.0, direction=direction)(z_a, z_b, torch.tensor([0, 0]))
    terms.total.backward()
    assert terms.cross_entropy.item() == pytest.approx(big / 4)  # 0, big; 0, 0
    assert terms.distillation.item() == pytest.approx(16 * (big / 4) / 2)  # in both directions; the second pair agrees
    assert z_a.grad.isfinite().all()
    assert z_b.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_floats_are_computed_in_float32(dtype):
    z_a, z_b, y = inputs(n=64, classes=100, dtype=dtype)
    h_a, h_b = features(n=64, dtype=dtype)
    loss = SelfDistillationLoss(feature_weight=1.0)
    terms, expected = loss(z_a, z_b, y, h_a, h_b), loss(z_a.float(), z_b.float(), y, h_a.float(), h_b.float())
    assert all(term.dtype == torch.float32 for term in terms)
    assert terms == expected


def test_the_gradient_has_the_dtype_of_the_logits():
    z_a, z_b, y = inputs(dtype=torch.bfloat16)
    z_a.requires_grad_()
    SelfDistillationLoss()(z_a, z_b, y).total.backward()
    assert z_a.grad.dtype == torch.bfloat16
    assert (z_a.grad != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_floats_keep_their_precision(dtype):
    terms = SelfDistillationLoss(feature_weight=1.0)(*inputs(dtype=dtype), *features(dtype=dtype))
    assert all(term.dtype == dtype for term in terms)


def test_autocast_changes_nothing():
    z_a, z_b, y = inputs(dtype=torch.bfloat16)
    h_a, h_b = features(dtype=torch.bfloat16)
    loss = SelfDistillationLoss(feature_weight=1.0, feature_distance="mse")
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(z_a, z_b, y, h_a, h_b)
    assert all(close(x, expected, 1e-6) for x, expected in zip(terms, loss(z_a, z_b, y, h_a, h_b), strict=True))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_the_terms_are_the_same(dtype):
    both = [*inputs(dtype=dtype), *features(dtype=dtype)]
    loss = SelfDistillationLoss(feature_weight=1.0)
    on_gpu = loss(*(x.cuda() for x in both))
    assert all(term.is_cuda for term in on_gpu)
    assert all(close(x.cpu(), expected, 1e-5) for x, expected in zip(on_gpu, loss(*both), strict=True))


@needs_cuda
def test_on_a_gpu_the_terms_of_dense_predictions_are_the_same():
    z_a, z_b, y = dense_inputs()
    y = ignore_some(y)
    on_gpu = SelfDistillationLoss()(z_a.cuda(), z_b.cuda(), y.cuda())
    assert all(close(x.cpu(), e) for x, e in zip(on_gpu, SelfDistillationLoss()(z_a, z_b, y), strict=True))


# --- soft targets


@pytest.mark.parametrize("images", ["both", "a", "b"])
def test_a_one_hot_target_is_its_label(images):
    z_a, z_b, y = inputs()
    loss = SelfDistillationLoss(cross_entropy=images)
    soft = loss(z_a, z_b, F.one_hot(y, 4).double())
    assert all(close(x, expected) for x, expected in zip(soft, loss(z_a, z_b, y), strict=True))


def test_a_soft_target_weighs_the_log_probabilities():
    z_a, z_b, _ = inputs(n=2, classes=3)
    target = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.9, 0.1]], dtype=torch.float64)
    expected = [
        -sum(t * math.log(q) for t, q in zip(row, softened(z, 1), strict=True))
        for logits in (z_a, z_b)
        for row, z in zip(target.tolist(), logits.tolist(), strict=True)
    ]
    assert close(SelfDistillationLoss()(z_a, z_b, target).cross_entropy, sum(expected) / 4)


@pytest.mark.parametrize("target_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_soft_targets_of_any_float_dtype_serve(dtype, target_dtype):
    z_a, z_b, _ = inputs(n=2, dtype=dtype)
    target = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.75, 0.25]], dtype=target_dtype)
    terms = SelfDistillationLoss()(z_a, z_b, target)
    expected = SelfDistillationLoss()(z_a.double(), z_b.double(), target.double())
    assert close(terms.total, expected.total.item(), 1e-5)


# --- dense predictions

SPATIAL = [(), (1,), (7,), (2, 5), (2, 3, 2)]
ALL_DIRECTIONS = (*DIRECTIONS, "easy_to_hard", "hard_to_easy")


def ignore_some(y: Tensor, seed: int = 0, ignore_index: int = -100) -> Tensor:
    """Label maps with about a third of the positions left out; never all, never none."""
    left_out = torch.rand(y.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    left_out.view(-1)[0], left_out.view(-1)[-1] = True, False
    return y.masked_fill(left_out, ignore_index)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_dense_predictions_are_those_of_their_positions(spatial, soft, direction):
    z_a, z_b, y = dense_inputs(spatial=spatial)
    loss = SelfDistillationLoss(2.0, 0.7, direction=direction)
    places = torch.ones_like(y).nonzero().tolist()
    rows_a, rows_b = (torch.stack([z[(n, slice(None), *at)] for n, *at in places]) for z in (z_a, z_b))
    flat, maps = y.flatten(), y
    if soft:
        flat = torch.randn(rows_a.shape, dtype=rows_a.dtype, generator=torch.Generator().manual_seed(1)).softmax(1)
        maps = flat.view(*y.shape, -1).movedim(-1, 1)
    assert all(close(x, e) for x, e in zip(loss(z_a, z_b, maps), loss(rows_a, rows_b, flat), strict=True))


def test_known_dense_predictions_give_known_terms():
    sure, even = [2 * math.log(q) for q in Q_A], [2 * math.log(q) for q in Q_B]
    z_a = torch.tensor([[sure, even, sure]], dtype=torch.float64).mT  # (1, 3 classes, 3 positions)
    z_b = torch.tensor([[even, even, sure]], dtype=torch.float64).mT
    terms = SelfDistillationLoss(2.0, 0.7, direction="a_to_b")(z_a, z_b, torch.tensor([[0, 1, -100]]))
    cross_entropy = ((math.log(1.5) + math.log(3)) / 2 + math.log(3)) / 2  # of the two positions that count
    assert terms.cross_entropy.item() == pytest.approx(cross_entropy, rel=1e-12)
    assert terms.distillation.item() == pytest.approx(4 * KL_AB / 2, rel=1e-12)
    assert terms.total.item() == pytest.approx(cross_entropy + 0.7 * 4 * KL_AB / 2, rel=1e-12)


@pytest.mark.parametrize("images", ["both", "a", "b"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_the_terms_of_the_positions_that_count_agree_with_plain_python(spatial, direction, images):
    z_a, z_b, y = dense_inputs(spatial=spatial)
    y = ignore_some(y)
    count = y != -100
    rows = (z.movedim(1, -1)[count] for z in (z_a, z_b))
    cross_entropy, divergence = by_hand(*rows, y[count], 3.0, direction, images)
    terms = SelfDistillationLoss(3.0, direction=direction, cross_entropy=images)(z_a, z_b, y)
    assert close(terms.cross_entropy, cross_entropy)
    assert close(terms.distillation, divergence)


@pytest.mark.parametrize("seed", range(5))
def test_the_cross_entropy_of_label_maps_is_that_of_torch(seed):
    z_a, z_b, y = dense_inputs(spatial=(4, 6), seed=seed)
    y = ignore_some(y, seed, 255)
    terms = SelfDistillationLoss(ignore_index=255)(z_a, z_b, y)
    assert close(
        terms.cross_entropy, (F.cross_entropy(z_a, y, ignore_index=255) + F.cross_entropy(z_b, y, ignore_index=255)) / 2
    )


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
def test_ignored_positions_get_no_gradient_and_the_others_do(direction, detach):
    z_a, z_b, y = dense_inputs()
    y = ignore_some(y)
    both = z_a.requires_grad_(), z_b.requires_grad_()
    terms = SelfDistillationLoss(direction=direction, detach=detach)(z_a, z_b, y)
    for term in (terms.cross_entropy, terms.distillation):
        found = torch.autograd.grad(term, both, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert torch.equal(sum(g.abs() for g in found).sum(dim=1) != 0, y != -100)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
def test_logits_of_ignored_positions_do_not_matter(value, direction):
    z_a, z_b, y = dense_inputs()
    y = ignore_some(y)
    loss = SelfDistillationLoss(direction=direction)
    expected = loss(z_a, z_b, y)
    z_a, z_b = (z.masked_fill((y == -100)[:, None], v).requires_grad_() for z, v in ((z_a, value), (z_b, 1.0)))
    terms = loss(z_a, z_b, y)
    assert terms == expected
    assert all(g.isfinite().all() for g in torch.autograd.grad(terms.total, (z_a, z_b)))


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_where_no_position_counts_the_terms_and_their_gradients_are_0(spatial, direction):
    z_a, z_b, y = dense_inputs(spatial=spatial)
    both = z_a.requires_grad_(), z_b.requires_grad_()
    terms = SelfDistillationLoss(direction=direction)(z_a, z_b, torch.full_like(y, -100))
    assert [term.item() for term in terms] == [0, 0, 0, 0]
    assert all((g == 0).all() for g in torch.autograd.grad(terms.total, both))


@pytest.mark.parametrize("ignore_index", [0, 255, -1])
def test_any_label_may_be_the_one_that_is_ignored(ignore_index):
    z_a, z_b, y = dense_inputs()
    y = y.clamp(min=1)  # no label is 0
    found = SelfDistillationLoss(ignore_index=ignore_index)(z_a, z_b, ignore_some(y, 0, ignore_index))
    assert found == SelfDistillationLoss()(z_a, z_b, ignore_some(y))


@pytest.mark.parametrize("direction", ["symmetric", "a_to_b"])
def test_the_gradients_of_dense_terms_are_those_of_finite_differences(direction):
    z_a, z_b, y = dense_inputs(n=2, classes=3, spatial=(2, 2))
    y = ignore_some(y)
    h_a, h_b = features(n=2)
    loss = SelfDistillationLoss(2.0, 0.7, direction=direction, feature_weight=0.5)
    leaves = [x.detach().clone().requires_grad_() for x in (z_a, z_b, h_a, h_b)]
    assert torch.autograd.gradcheck(lambda z_a, z_b, h_a, h_b: tuple(loss(z_a, z_b, y, h_a, h_b)), leaves)


def test_the_feature_term_of_dense_predictions_is_a_mean_over_pairs():
    z_a, z_b, y = dense_inputs(n=5)
    h = features()
    loss = SelfDistillationLoss(feature_weight=0.5)
    assert loss(z_a, z_b, ignore_some(y), *h).feature == loss(*inputs(), *h).feature


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_floats_of_dense_predictions_are_computed_in_float32(dtype):
    z_a, z_b, y = dense_inputs(n=8, spatial=(16, 16), dtype=dtype)
    assert SelfDistillationLoss()(z_a, z_b, y) == SelfDistillationLoss()(z_a.float(), z_b.float(), y)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("given_inputs", [inputs, dense_inputs])
def test_labels_of_any_integer_dtype_serve(given_inputs, dtype):
    z_a, z_b, y = given_inputs()
    assert SelfDistillationLoss()(z_a, z_b, y.to(dtype)) == SelfDistillationLoss()(z_a, z_b, y)


def test_values_of_single_predictions_are_the_plain_formula_to_the_last_bit():
    for n in (1, 3, 49, 100):
        z_a, z_b, y = inputs(n, 10, dtype=torch.float32)
        log_a, log_b = F.log_softmax(z_a / 4.0, 1), F.log_softmax(z_b / 4.0, 1)
        kl_ab = F.kl_div(log_b, log_a, reduction="batchmean", log_target=True)
        kl_ba = F.kl_div(log_a, log_b, reduction="batchmean", log_target=True)
        terms = SelfDistillationLoss()(z_a, z_b, y)
        assert terms.cross_entropy == (F.cross_entropy(z_a, y) + F.cross_entropy(z_b, y)) / 2
        assert terms.distillation == 16 * ((kl_ab + kl_ba) / 2)


# --- softened_kl


@laws
@given(n=st.integers(1, 4), classes=st.integers(2, 5), seed=st.integers(0, 99), temperature=temperatures)
def test_the_softened_divergence_agrees_with_plain_python(n, classes, seed, temperature):
    teacher, student, _ = inputs(n, classes, seed)
    rows = zip(teacher.tolist(), student.tolist(), strict=True)
    divergences = [kl(softened(z_t, temperature), softened(z_s, temperature)) for z_t, z_s in rows]
    assert close(softened_kl(teacher, student, temperature), temperature**2 * sum(divergences) / n)


# --- features


@pytest.mark.parametrize(("distance", "expected"), [("cosine", 1 - math.sqrt(0.5)), ("mse", 2 - math.sqrt(2))])
def test_known_features_have_a_known_distance(distance, expected):
    h_a, h_b = torch.tensor([[[3.0, 0.0]], [[2.0, 2.0]]], dtype=torch.float64)  # 45 degrees
    loss = SelfDistillationLoss(feature_weight=0.3, feature_distance=distance)
    assert close(loss(*inputs(n=1), h_a, h_b).feature, expected)


@pytest.mark.parametrize(("distance", "opposite"), [("cosine", 2.0), ("mse", 4.0)])
def test_features_differ_by_their_direction_alone(distance, opposite):
    h, _ = features()
    loss = SelfDistillationLoss(feature_weight=1.0, feature_distance=distance)
    assert close(loss(*inputs(), h, 7 * h).feature, 0.0)
    assert close(loss(*inputs(), h, -0.1 * h).feature, opposite)


def test_features_are_not_needed_and_not_used_without_weight():
    z_a, z_b, y = inputs()
    without, with_features = SelfDistillationLoss()(z_a, z_b, y), SelfDistillationLoss()(z_a, z_b, y, *features())
    assert without == with_features
    assert without.feature.item() == 0


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_feature_term_pulls_both_images(distance):
    h_a, h_b = (h.requires_grad_() for h in features())
    loss = SelfDistillationLoss(feature_weight=1.0, feature_distance=distance)
    loss(*inputs(), h_a, h_b).total.backward()
    step_a, step_b = h_a - 0.1 * h_a.grad, h_b - 0.1 * h_b.grad
    before = loss(*inputs(), h_a, h_b).feature
    assert loss(*inputs(), step_a, h_b).feature < before
    assert loss(*inputs(), h_a, step_b).feature < before


# --- module


def test_the_loss_holds_no_state():
    assert not SelfDistillationLoss().state_dict()
    assert not list(SelfDistillationLoss().parameters())


def test_the_loss_leaves_its_inputs_as_they_were():
    given_inputs = [*inputs(), *features()]
    before = [x.clone() for x in given_inputs]
    SelfDistillationLoss(feature_weight=1.0)(*given_inputs)
    assert all(map(torch.equal, given_inputs, before))


def test_the_repr_names_every_option():
    assert repr(SelfDistillationLoss(2.0, 0.5, True, "a_to_b", "a", 0.1, "mse")) == (
        "SelfDistillationLoss(temperature=2.0, weight=0.5, detach=True, direction='a_to_b', cross_entropy='a', "
        "feature_weight=0.1, feature_distance='mse', ignore_index=-100)"
    )


# --- bad options


@pytest.mark.parametrize("name", ["temperature", "weight", "feature_weight"])
@pytest.mark.parametrize("value", [-1.0, NAN, INF, -INF, None, "1"], ids=repr)
def test_what_is_no_finite_number_from_0_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number >=? 0, got ") as caught:
        SelfDistillationLoss(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [1.0, NAN, None, True, "255"], ids=repr)
def test_what_is_no_integer_is_no_ignore_index(value):
    with pytest.raises(ValueError, match=f"^ignore_index must be an integer, got {value!r}$"):
        SelfDistillationLoss(ignore_index=value)


def test_numbers_of_numpy_serve_as_options():
    numpy = pytest.importorskip("numpy")
    loss = SelfDistillationLoss(numpy.int64(2), numpy.float32(0.5), ignore_index=numpy.uint8(255))
    assert loss(*inputs()) == SelfDistillationLoss(2, 0.5, ignore_index=255)(*inputs())


@pytest.mark.parametrize("value", [0, 0.0])
def test_a_temperature_of_0_is_refused(value):
    with pytest.raises(ValueError, match=rf"^temperature must be a finite number > 0, got {value}$"):
        SelfDistillationLoss(temperature=value)


def test_weights_of_0_serve():
    terms = SelfDistillationLoss(weight=0, feature_weight=0)(*inputs())
    assert terms.total == terms.cross_entropy


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("direction", "'symmetric', 'a_to_b', 'b_to_a', 'easy_to_hard', 'hard_to_easy'"),
        ("cross_entropy", "'both', 'a', 'b'"),
        ("feature_distance", "'cosine', 'mse'"),
    ],
)
@pytest.mark.parametrize("value", ["both ways", "", None, 1, ["a"]], ids=repr)
def test_an_unknown_choice_is_refused_with_the_known_ones(name, choices, value):
    with pytest.raises(ValueError) as caught:
        SelfDistillationLoss(**{name: value})
    assert str(caught.value) == f"{name} must be one of {choices}, got {value!r}"


# --- bad input


def assert_refused(message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        SelfDistillationLoss(**options)(*arguments)


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((5, 4), (5, 3)), ((5, 4), (4, 4)), ((4,), (4,)), ((5, 4), (5, 4, 1)), ((5, 4, 2), (5, 4, 3))],
    ids=str,
)
def test_logits_of_wrong_shapes_are_refused(shape_a, shape_b):
    with pytest.raises(
        ValueError, match=r"logits_a and logits_b must have one shape \(N, C\) or \(N, C, \*spatial\)"
    ) as caught:
        SelfDistillationLoss()(torch.zeros(shape_a), torch.zeros(shape_b), torch.zeros(5, dtype=torch.int64))
    assert f"got {shape_a} and {shape_b}" in str(caught.value)


def test_an_empty_batch_is_refused():
    for shape, y in (((0, 4), (0,)), ((0, 4, 2, 2), (0, 2, 2)), ((3, 4, 0, 2), (3, 0, 2))):
        z = torch.zeros(shape)
        assert_refused("logits_a holds no pairs: its shape is ", z, z, torch.zeros(y, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), ()], ids=str)
def test_labels_of_a_wrong_shape_are_refused(shape):
    z_a, z_b, _ = inputs()
    with pytest.raises(ValueError, match=r"target must have shape \(5,\)") as caught:
        SelfDistillationLoss()(z_a, z_b, torch.zeros(shape, dtype=torch.int64))
    assert f"got {shape} of torch.int64" in str(caught.value)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (4, 5), (5, 4, 1)], ids=str)
def test_probabilities_of_a_wrong_shape_are_refused(shape):
    z_a, z_b, _ = inputs()
    with pytest.raises(ValueError, match=r"target must have shape \(5, 4\)") as caught:
        SelfDistillationLoss()(z_a, z_b, torch.full(shape, 0.25))
    assert f"got {shape} of torch.float32" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool], ids=str)
@pytest.mark.parametrize("given_inputs", [inputs, dense_inputs])
def test_labels_that_are_no_integers_are_refused(given_inputs, dtype):
    z_a, z_b, y = given_inputs()
    message = rf"^target holds labels of {dtype}, which are no integers; write target\.long\(\)$"
    assert_refused(message, z_a, z_b, y.to(dtype))


def test_what_is_no_tensor_is_refused():
    z_a, z_b, y = inputs()
    message = r"must be a tensor, got dict; of a model's output give the logits alone, .*output\[\"out\"\]$"
    assert_refused(f"^logits_a {message}", {"out": z_a}, z_b, y)
    assert_refused(f"^logits_b {message}", z_a, {"out": z_b}, y)
    assert_refused(r"^target must be a tensor, got list; write torch\.as_tensor\(target\)$", z_a, z_b, y.tolist())


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 5, 3), (2, 4, 3, 5), (6, 5)], ids=str)
def test_label_maps_of_a_wrong_shape_are_refused(shape):
    z_a, z_b, _ = dense_inputs(n=2, classes=4, spatial=(3, 4))
    with pytest.raises(ValueError, match=r"target must have shape \(2, 3, 4\)") as caught:
        SelfDistillationLoss()(z_a, z_b, torch.zeros(shape, dtype=torch.int64))
    assert f"got {shape} of torch.int64" in str(caught.value)


def test_a_label_out_of_range_beside_ignored_ones_is_refused():
    z_a, z_b, y = dense_inputs()
    y[0, 0, 0], y[1, 0, 0] = -100, 255
    message = r"labels from \d to 255, .*4 classes; positions to leave out hold ignore_index, which is -100"
    assert_refused(message, z_a, z_b, y)


def test_a_label_that_would_be_ignore_index_if_its_dtype_wrapped_is_refused():
    y = torch.tensor([0, 1, 156, 2, 3], dtype=torch.uint8)  # 156 is -100 as uint8
    assert_refused("labels from 0 to 156", *inputs()[:2], y)


@pytest.mark.parametrize(("label", "span"), [(4, "0 to 4"), (-1, "-1 to 0"), (-99, "-99 to 0")])
def test_labels_out_of_range_are_refused(label, span):
    z_a, z_b, _ = inputs()
    assert_refused(f"target holds labels from {span}, .*4 classes", z_a, z_b, torch.tensor([0, 0, label, 0, 0]))


@pytest.mark.parametrize(
    "row", [[0.5, 0.5, 0.5, 0.0], [0.2, 0.2, 0.2, 0.2], [1.5, -0.5, 0.0, 0.0], [NAN, 0.5, 0.5, 0.0]], ids=str
)
def test_a_soft_target_that_is_no_probability_is_refused(row):
    z_a, z_b, y = inputs()
    target = F.one_hot(y, 4).double()
    target[2] = torch.tensor(row)
    assert_refused("target holds rows that are no probabilities", z_a, z_b, target)
    maps = target.T[None, :, :, None]  # (1, 4, 5, 1)
    assert_refused(
        "target holds rows that are no probabilities", torch.zeros(maps.shape), torch.zeros(maps.shape), maps
    )


def test_targets_on_another_device_than_the_cpu_are_not_looked_at():
    z, y = torch.zeros(3, 4, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
    assert SelfDistillationLoss()(z, z, y).total.is_meta
    assert SelfDistillationLoss()(z, z, z).total.is_meta
    check_probabilities(z)


@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1)], ids=str)
def test_missing_features_are_refused(missing):
    given_features = [None if k in missing else h for k, h in enumerate(features())]
    assert_refused(
        "features_a and features_b are needed.* is 0.5; give", *inputs(), *given_features, feature_weight=0.5
    )


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((5, 6), (5, 7)), ((5, 6), (4, 6)), ((5,), (5,)), ((5, 6, 2, 2), (5, 6, 2, 2)), ((7, 6), (7, 6))],
    ids=str,
)
def test_features_of_wrong_shapes_are_refused(shape_a, shape_b):
    with pytest.raises(ValueError, match="features_a and features_b must have") as caught:
        SelfDistillationLoss(feature_weight=1.0)(*inputs(n=5), torch.ones(shape_a), torch.ones(shape_b))
    assert f"got {shape_a} and {shape_b}" in str(caught.value)


# --- compiled


def test_the_dense_loss_compiles_without_a_break(fresh_compiler):
    loss = SelfDistillationLoss()
    z_a, z_b, y = dense_inputs()
    y = ignore_some(y)
    terms = torch.compile(loss, backend="aot_eager", fullgraph=True)(z_a, z_b, y)
    assert all(close(x, expected) for x, expected in zip(terms, loss(z_a, z_b, y), strict=True))


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"detach": True, "cross_entropy": "b"},
        {"direction": "a_to_b", "feature_weight": 0.5},
        {"direction": "b_to_a", "detach": True, "feature_weight": 0.5, "feature_distance": "mse"},
    ],
    ids=str,
)
def test_the_loss_compiles_without_a_break(fresh_compiler, options, soft):
    loss = SelfDistillationLoss(**options)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    z_a, z_b, y = inputs()
    target = F.one_hot(y, 4).double() if soft else y
    h_a, h_b = features()
    found, expected = [], []
    for function, result in ((compiled, found), (loss, expected)):
        leaves = [x.clone().requires_grad_() for x in (z_a, z_b, h_a, h_b)]
        terms = function(leaves[0], leaves[1], target, leaves[2], leaves[3])
        result += [*terms, *torch.autograd.grad(terms.total, leaves, allow_unused=True, materialize_grads=True)]
    assert all(close(x, y) for x, y in zip(found, expected, strict=True))


# --- who teaches is decided pair by pair


@pytest.mark.parametrize("soft", [False, True])
def test_the_easier_image_teaches(soft):
    z_a = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    z_b = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 2.0]])
    y = torch.tensor([0, 2])  # the first pair is easier in a, the second in b
    target = F.one_hot(y, 3).float() if soft else y
    found = SelfDistillationLoss(2.0, direction="easy_to_hard")(z_a, z_b, target).distillation
    first = SelfDistillationLoss(2.0, direction="a_to_b")(z_a[:1], z_b[:1], y[:1]).distillation
    second = SelfDistillationLoss(2.0, direction="b_to_a")(z_a[1:], z_b[1:], y[1:]).distillation
    torch.testing.assert_close(found, (first + second) / 2)


def test_the_two_directions_by_ease_are_the_two_of_each_pair():
    torch.manual_seed(0)
    z_a, z_b, y = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 4
    by_ease = [SelfDistillationLoss(direction=d)(z_a, z_b, y).distillation for d in ("easy_to_hard", "hard_to_easy")]
    symmetric = SelfDistillationLoss()(z_a, z_b, y).distillation
    torch.testing.assert_close(sum(by_ease) / 2, symmetric)
    assert not torch.isclose(*by_ease)


def test_with_detach_the_easier_image_is_not_moved_by_the_divergence():
    z_a = torch.tensor([[3.0, 0.0, 0.0]], requires_grad=True)
    z_b = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    loss = SelfDistillationLoss(direction="easy_to_hard", detach=True)
    loss(z_a, z_b, torch.tensor([0])).distillation.backward()
    assert z_a.grad is None or z_a.grad.abs().sum() == 0
    assert z_b.grad.abs().sum() > 0
