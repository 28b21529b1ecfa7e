"""The swap: conservation laws, a plain loop, distributions, and every bad input named.

Every pixel says which image it is from: the first image of a pair holds even numbers, the second odd ones.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from psd import ClassPairs, PatchSwap, patch_swap, same_class_partner, swap
from psd.swap import patch_mask

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8]
NAN = float("nan")

laws = settings(max_examples=40, deadline=None, derandomize=True)
sides = st.integers(1, 4)
probabilities = st.sampled_from([0.0, 0.3, 0.5, 1.0])
ratios = st.sampled_from([0.0, 0.3, 1.0, "uniform"])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(n: int = 4, c: int = 3, h: int = 8, w: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Integers below 256, exact in every dtype: even ones in x_a, odd ones in x_b."""
    x = torch.randint(128, (2, n, c, h, w), generator=seeded()) * 2
    return x[0].to(dtype), (x[1] + 1).to(dtype)


def from_b(x: Tensor) -> Tensor:
    """Which pixels are from x_b."""
    return x % 2 == 1


def enlarged(mask: Tensor, h: int, w: int) -> Tensor:
    """(N, rows, columns) -> (N, 1, rows * h, columns * w)."""
    return mask.repeat_interleave(h, dim=1).repeat_interleave(w, dim=2).unsqueeze(1)


def swap_in_a_loop(x_a: Tensor, x_b: Tensor, h: int, w: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, pair by pair and patch by patch."""
    x_a2, x_b2 = x_a.clone(), x_b.clone()
    for n, row, column in mask.nonzero().tolist():
        patch = (n, slice(None), slice(row * h, row * h + h), slice(column * w, column * w + w))
        x_a2[patch], x_b2[patch] = x_b[patch], x_a[patch]
    return x_a2, x_b2


def draws(n: int, rows: int = 1, columns: int = 1, seed: int = 0, **options: Any) -> Tensor:
    """Swapped positions (N, rows, columns) as `patch_swap` chose them, seen in the pixels."""
    x_a, x_b = torch.zeros(n, 1, rows, columns), torch.ones(n, 1, rows, columns)
    return patch_swap(x_a, x_b, 1, generator=seeded(seed), **options)[0][:, 0] == 1


def is_near(count: float, trials: int, probability: float) -> bool:
    """Within 4 standard deviations of a binomial count; exact where nothing is random."""
    return abs(count - trials * probability) <= 4 * math.sqrt(trials * probability * (1 - probability))


def chi_square(counts: Tensor, expected: Tensor | float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_limit(cells: int) -> float:
    """Mean plus 4 standard deviations of the statistic."""
    return (cells - 1) + 4 * math.sqrt(2 * (cells - 1))


# --- laws


@laws
@given(
    n=st.integers(0, 4),
    c=sides,
    rows=sides,
    columns=sides,
    h=sides,
    w=sides,
    p=probabilities,
    ratio=ratios,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_swap_conserves_the_pixels_of_the_pair_at_every_position(n, c, rows, columns, h, w, p, ratio, dtype, seed):
    x_a, x_b = pairs(n, c, rows * h, columns * w, dtype)
    x_a2, x_b2 = patch_swap(x_a, x_b, (h, w), p=p, ratio=ratio, generator=seeded(seed))
    assert x_a2.shape == x_b2.shape == x_a.shape
    assert x_a2.dtype == x_b2.dtype == dtype
    stayed = (x_a2 == x_a) & (x_b2 == x_b)
    moved = (x_a2 == x_b) & (x_b2 == x_a)
    assert (stayed ^ moved).all()


@laws
@given(c=sides, rows=sides, columns=sides, h=sides, w=sides, seed=st.integers(0, 99))
def test_patches_move_whole_and_with_all_their_channels(c, rows, columns, h, w, seed):
    x_a, x_b = pairs(5, c, rows * h, columns * w)
    moved = from_b(patch_swap(x_a, x_b, (h, w), generator=seeded(seed))[0])
    corners = moved[:, 0, ::h, ::w]
    assert torch.equal(moved, enlarged(corners, h, w).expand_as(moved))


@laws
@given(
    n=st.integers(1, 4),
    c=sides,
    rows=sides,
    columns=sides,
    h=sides,
    w=sides,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_swap_by_mask_agrees_with_a_plain_loop(n, c, rows, columns, h, w, dtype, seed):
    x_a, x_b = pairs(n, c, rows * h, columns * w, dtype)
    mask = torch.rand(n, rows, columns, generator=seeded(seed)) < 0.5
    x_a2, x_b2 = patch_swap(x_a, x_b, (h, w), mask=mask)
    expected_a, expected_b = swap_in_a_loop(x_a, x_b, h, w, mask)
    assert torch.equal(x_a2, expected_a)
    assert torch.equal(x_b2, expected_b)


@laws
@given(rows=sides, columns=sides, h=sides, w=sides, seed=st.integers(0, 99))
def test_the_same_mask_undoes_the_swap(rows, columns, h, w, seed):
    x_a, x_b = pairs(3, 2, rows * h, columns * w)
    mask = torch.rand(3, rows, columns, generator=seeded(seed)) < 0.5
    again_a, again_b = patch_swap(*patch_swap(x_a, x_b, (h, w), mask=mask), (h, w), mask=mask)
    assert torch.equal(again_a, x_a)
    assert torch.equal(again_b, x_b)


@pytest.mark.parametrize("ratio", [0.5, "uniform"])
def test_the_two_outputs_are_complementary(ratio):
    x_a2, x_b2 = patch_swap(*pairs(16), 2, ratio=ratio, generator=seeded())
    assert torch.equal(from_b(x_a2), ~from_b(x_b2))
    assert 0 < from_b(x_a2).float().mean() < 1


@pytest.mark.parametrize("ratio", [0.4, "uniform"])
def test_the_random_swap_is_the_swap_by_a_drawn_mask(ratio):
    x_a, x_b = pairs(16, h=8, w=12)
    mask = patch_mask(16, (4, 3), p=0.7, ratio=ratio, generator=seeded(3))
    x_a2, x_b2 = patch_swap(x_a, x_b, (2, 4), p=0.7, ratio=ratio, generator=seeded(3))
    expected_a, expected_b = swap_in_a_loop(x_a, x_b, 2, 4, mask)
    assert torch.equal(x_a2, expected_a)
    assert torch.equal(x_b2, expected_b)


# --- labels


def of_two_classes(per_class: int = 6) -> tuple[Tensor, Tensor]:
    """Images whose every pixel is their class."""
    labels = torch.arange(2 * per_class) % 2
    return labels.float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4), labels


def test_labels_of_class_pairs_stay_true_after_the_swap():
    images, labels = of_two_classes()
    dataset = ClassPairs(list(zip(images, labels.tolist(), strict=True)), targets=labels)
    x_a, x_b, y, index = next(iter(torch.utils.data.DataLoader(dataset, batch_size=len(dataset))))
    given_y = y.clone()
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, generator=seeded())
    assert torch.equal(y, given_y)
    assert torch.equal(y, labels[index])
    assert (x_a2 == y.view(-1, 1, 1, 1)).all()
    assert (x_b2 == y.view(-1, 1, 1, 1)).all()


def test_labels_of_same_class_partners_stay_true_after_the_swap():
    images, labels = of_two_classes()
    x_a2, x_b2 = patch_swap(images, images[same_class_partner(labels, seeded())], 2, generator=seeded())
    assert (x_a2 == labels.view(-1, 1, 1, 1)).all()
    assert (x_b2 == labels.view(-1, 1, 1, 1)).all()


# --- inputs and outputs


def test_inputs_are_unchanged():
    x_a, x_b = pairs()
    before_a, before_b = x_a.clone(), x_b.clone()
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    before_mask = mask.clone()
    patch_swap(x_a, x_b, 2, generator=seeded())
    patch_swap(x_a, x_b, 2, mask=mask)
    assert torch.equal(x_a, before_a)
    assert torch.equal(x_b, before_b)
    assert torch.equal(mask, before_mask)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_outputs_share_no_memory_with_the_inputs(p):
    x_a, x_b = pairs()
    before_a, before_b = x_a.clone(), x_b.clone()
    for x in patch_swap(x_a, x_b, 2, p=p, ratio=1.0):
        x.fill_(-1)
    assert torch.equal(x_a, before_a)
    assert torch.equal(x_b, before_b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_kept_and_swapped_exactly(dtype):
    x_a, x_b = (x.to(dtype) for x in pairs())
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, mask=mask)
    expected_a, expected_b = swap_in_a_loop(x_a, x_b, 2, 2, mask)
    assert x_a2.dtype == x_b2.dtype == dtype
    assert torch.equal(x_a2, expected_a)
    assert torch.equal(x_b2, expected_b)


def test_nan_and_infinity_stay_in_their_pixels():
    x_a, x_b = torch.full((2, 1, 4, 4), NAN), torch.full((2, 1, 4, 4), math.inf)
    mask = torch.tensor([[[True, False], [False, False]]] * 2)
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, mask=mask)
    moved = enlarged(mask, 2, 2)
    assert torch.equal(x_a2.isinf(), moved)
    assert torch.equal(x_b2.isnan(), moved)


@pytest.mark.parametrize("patch_size", [1, 2, (4, 2), 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_is_kept(memory_format, patch_size):
    x_a, x_b = (x.to(memory_format=memory_format) for x in pairs())
    for x in patch_swap(x_a, x_b, patch_size, generator=seeded()):
        assert x.is_contiguous(memory_format=memory_format)
        assert x.stride() == x_a.stride()


@pytest.mark.parametrize("first", [torch.contiguous_format, torch.channels_last], ids=str)
def test_each_output_has_the_memory_format_of_its_input(first):
    second = torch.channels_last if first is torch.contiguous_format else torch.contiguous_format
    x_a, x_b = pairs()
    x_a2, x_b2 = patch_swap(x_a.to(memory_format=first), x_b.to(memory_format=second), 2)
    assert x_a2.is_contiguous(memory_format=first)
    assert x_b2.is_contiguous(memory_format=second)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_values_do_not_depend_on_the_memory_format(memory_format):
    x_a, x_b = pairs()
    plain = patch_swap(x_a, x_b, 2, generator=seeded())
    other = patch_swap(*(x.to(memory_format=memory_format) for x in (x_a, x_b)), 2, generator=seeded())
    assert all(map(torch.equal, plain, other))


def test_views_are_swapped_like_their_copies():
    wide_a, wide_b = pairs(h=12, w=20)
    x_a, x_b = wide_a[::2, :, 2:10, 1::2].transpose(2, 3), wide_b[1::2, :, 2:10, 1::2].transpose(2, 3)
    mask = torch.rand(2, 5, 4, generator=seeded()) < 0.5
    views = patch_swap(x_a, x_b, 2, mask=mask)
    assert all(map(torch.equal, views, swap_in_a_loop(x_a, x_b, 2, 2, mask)))


def test_images_that_are_broadcast_are_swapped():
    x_a, x_b = torch.zeros(1, 1, 1, 1).expand(3, 2, 4, 4), torch.ones(1, 1, 1, 1).expand(3, 2, 4, 4)
    mask = torch.rand(3, 2, 2, generator=seeded()) < 0.5
    assert torch.equal(patch_swap(x_a, x_b, 2, mask=mask)[0] == 1, enlarged(mask, 2, 2).expand(3, 2, 4, 4))


def test_the_gradient_goes_where_the_pixels_come_from():
    x_a, x_b = (x.requires_grad_() for x in pairs())
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, mask=mask)
    (2 * x_a2 + 3 * x_b2).sum().backward()
    moved = enlarged(mask, 2, 2).expand_as(x_a)
    assert torch.equal(x_a.grad, torch.where(moved, 3.0, 2.0))
    assert torch.equal(x_b.grad, torch.where(moved, 2.0, 3.0))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_images_are_swapped(dtype):
    x_a, x_b = (torch.complex(x, x + 1).to(dtype) for x in pairs(dtype=torch.float64))
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    assert all(map(torch.equal, patch_swap(x_a, x_b, 2, mask=mask), swap_in_a_loop(x_a, x_b, 2, 2, mask)))


def test_on_a_cpu_real_images_do_without_the_slow_where(monkeypatch):
    monkeypatch.setattr(swap, "_exchange", None)
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    assert all(map(torch.equal, patch_swap(*pairs(), 2, mask=mask), swap_in_a_loop(*pairs(), 2, 2, mask)))


def test_the_swap_can_be_mapped_over_batches():
    x_a, x_b = (torch.stack([x, x.flip(0)]) for x in pairs())
    mask = torch.rand(2, 4, 4, 4, generator=seeded()) < 0.5
    mapped = torch.vmap(lambda a, b, mask: patch_swap(a, b, 2, mask=mask))(x_a, x_b, mask)
    for k in range(2):
        expected = swap_in_a_loop(x_a[k], x_b[k], 2, 2, mask[k])
        assert all(map(torch.equal, (x[k] for x in mapped), expected))


@pytest.mark.parametrize("dims", [(None, None, 0), (0, None, None), (1, 2, 0), (4, None, 1)])
def test_the_swap_can_be_mapped_over_some_of_its_arguments(dims):
    x_a, x_b = pairs()
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    whole = [torch.stack([x, x.flip(0), x.roll(1, 0)]) for x in (x_a, x_b, mask)]
    given = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(whole, dims, strict=True)]
    mapped = torch.vmap(lambda a, b, mask: patch_swap(a, b, 2, mask=mask), in_dims=dims)(*given)
    for k in range(3):
        expected = swap_in_a_loop(
            *(x[0 if dim is None else k] for x, dim in zip(whole[:2], dims[:2], strict=True)),
            2,
            2,
            whole[2][0 if dims[2] is None else k],
        )
        assert all(map(torch.equal, (x[k] for x in mapped), expected))


def test_the_derivative_along_a_direction_is_the_swap_of_the_direction():
    x, (v_a, v_b) = pairs(), (3 * x for x in pairs())
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    with forward_ad.dual_level():
        x_a2, x_b2 = patch_swap(*map(forward_ad.make_dual, x, (v_a, v_b)), 2, mask=mask)
        found = forward_ad.unpack_dual(x_a2).tangent, forward_ad.unpack_dual(x_b2).tangent
    assert all(map(torch.equal, found, swap_in_a_loop(v_a, v_b, 2, 2, mask)))


@needs_cuda
@pytest.mark.parametrize("where", ["cpu", "cuda"], ids="generator on {}".format)
def test_on_a_gpu_the_result_is_the_same_for_the_same_draw(where):
    x_a, x_b = pairs(16)
    generator = torch.Generator(where).manual_seed(5)
    mask = patch_mask(16, (4, 4), p=0.7, ratio="uniform", generator=generator, device="cpu")
    on_gpu = patch_swap(
        x_a.cuda(), x_b.cuda(), 2, p=0.7, ratio="uniform", generator=torch.Generator(where).manual_seed(5)
    )
    assert all(x.is_cuda for x in on_gpu)
    assert all(map(torch.equal, (x.cpu() for x in on_gpu), swap_in_a_loop(x_a, x_b, 2, 2, mask)))


@needs_cuda
def test_a_mask_on_the_cpu_serves_images_on_a_gpu():
    x_a, x_b = pairs()
    mask = torch.rand(4, 4, 4, generator=seeded()) < 0.5
    on_gpu = patch_swap(x_a.cuda(), x_b.cuda(), 2, mask=mask)
    assert all(map(torch.equal, (x.cpu() for x in on_gpu), swap_in_a_loop(x_a, x_b, 2, 2, mask)))


# --- p, ratio, mask


@pytest.mark.parametrize("options", [{"p": 0.0, "ratio": 1.0}, {"p": 1.0, "ratio": 0.0}, {"p": 0, "ratio": "uniform"}])
def test_without_probability_nothing_moves(options):
    x_a, x_b = pairs(64)
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, **options)
    assert torch.equal(x_a2, x_a)
    assert torch.equal(x_b2, x_b)


def test_with_p_1_and_ratio_1_the_images_change_places():
    x_a, x_b = pairs(64)
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, p=1.0, ratio=1.0)
    assert torch.equal(x_a2, x_b)
    assert torch.equal(x_b2, x_a)


def test_with_p_1_every_pair_is_swapped():
    assert draws(500, 8, 8, p=1.0).flatten(1).any(dim=1).all()  # none has no patch but by a chance of 500 / 2^64


def test_the_defaults_are_p_1_and_ratio_one_half():
    assert torch.equal(draws(100, 4, 4), draws(100, 4, 4, p=1.0, ratio=0.5))


@pytest.mark.parametrize("chosen", [False, True])
def test_a_mask_stands_in_for_p_and_ratio(chosen):
    x_a, x_b = pairs()
    options = {"p": 0.0, "ratio": 0.0} if chosen else {"p": 1.0, "ratio": 1.0}
    x_a2, x_b2 = patch_swap(x_a, x_b, 2, mask=torch.full((4, 4, 4), chosen), **options)
    assert torch.equal(x_a2, x_b if chosen else x_a)
    assert torch.equal(x_b2, x_a if chosen else x_b)


def test_a_mask_leaves_the_generator_alone():
    generator = seeded(1)
    patch_swap(*pairs(), 2, mask=torch.ones(4, 4, 4, dtype=torch.bool), generator=generator)
    assert torch.equal(generator.get_state(), seeded(1).get_state())


def test_rows_of_the_mask_are_rows_of_the_image():
    x_a, x_b = pairs(1, 1, 4, 6)
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True  # top right
    moved = from_b(patch_swap(x_a, x_b, (2, 3), mask=mask)[0])[0, 0]
    assert moved.nonzero().tolist() == [[row, column] for row in (0, 1) for column in (3, 4, 5)]


def test_patch_size_is_height_then_width():
    x_a, x_b = pairs(1, 1, 4, 6)
    mask = torch.tensor([[[True], [False]]])
    moved = from_b(patch_swap(x_a, x_b, (2, 6), mask=mask)[0])[0, 0]
    assert moved.all(dim=1).tolist() == [True, True, False, False]


def test_the_largest_patch_is_the_image():
    x_a, x_b = pairs(2, 3, 4, 6)
    x_a2, _ = patch_swap(x_a, x_b, (4, 6), mask=torch.tensor([[[True]], [[False]]]))
    assert torch.equal(x_a2, torch.stack([x_b[0], x_a[1]]))


@pytest.mark.parametrize("options", [{"p": 0.0, "ratio": 1.0}, {"ratio": 0.0}], ids=str)
def test_without_probability_not_even_a_draw_of_0_moves_a_patch(monkeypatch, options):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))
    assert not patch_mask(3, (4, 4), **options).any()
    assert patch_mask(3, (4, 4)).all()


def test_a_mask_s_defaults_are_those_of_the_swap():
    assert torch.equal(patch_mask(50, (4, 4), generator=seeded()), draws(50, 4, 4))


def test_a_mask_ends_on_the_device_that_is_asked_for():
    assert patch_mask(3, (4, 4), generator=seeded(), device="meta").device.type == "meta"
    before = torch.get_rng_state()
    assert patch_mask(3, (4, 4), device="meta").device.type == "meta"
    assert torch.equal(torch.get_rng_state(), before)  # without a generator it is drawn there, too


@pytest.mark.parametrize("n", [-1, 1.0, True, None], ids=repr)
def test_what_is_no_number_of_pairs_is_refused(n):
    with pytest.raises(ValueError, match=rf"^n must be an integer >= 0, got {n!r}$"):
        patch_mask(n, (4, 4))


@pytest.mark.parametrize("grid", [4, (4,), (4, 4, 4), (4, -1), (4, 1.0), None], ids=repr)
def test_what_is_no_grid_is_refused(grid):
    with pytest.raises(ValueError, match=r"^grid must be two integers >= 0") as caught:
        patch_mask(2, grid)
    assert repr(grid) in str(caught.value)


# --- distribution


@pytest.mark.parametrize("p", [0.25, 1.0])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_the_number_of_swapped_patches_is_binomial_in_a_share_p_of_the_pairs(p, ratio):
    n, positions = 4000, 16
    counts = draws(n, 4, 4, p=p, ratio=ratio).flatten(1).sum(dim=1)
    k = torch.arange(positions + 1, dtype=torch.float64)
    binomial = torch.distributions.Binomial(positions, torch.tensor(ratio, dtype=torch.float64))
    probability = p * binomial.log_prob(k).exp() + (1 - p) * (k == 0)
    common = n * probability >= 5  # the rest is one cell
    observed = torch.bincount(counts, minlength=positions + 1).double()
    cells = torch.cat([observed[common], observed[~common].sum().view(1)])
    expected = n * torch.cat([probability[common], probability[~common].sum().view(1)])
    assert chi_square(cells, expected) < chi_square_limit(len(cells))


def test_the_number_of_swapped_patches_is_uniform_for_the_ratio_uniform():
    n, positions = 8000, 16  # the integral of Binomial(positions, u) over u has equal weights
    counts = draws(n, 4, 4, ratio="uniform").flatten(1).sum(dim=1)
    observed = torch.bincount(counts, minlength=positions + 1).double()
    assert chi_square(observed, n / (positions + 1)) < chi_square_limit(positions + 1)


@pytest.mark.parametrize("ratio", [0.3, "uniform"])
def test_every_position_is_swapped_equally_often(ratio):
    n, share = 4000, 0.5 if ratio == "uniform" else ratio
    for count in draws(n, 3, 5, ratio=ratio).sum(dim=0).flatten().tolist():
        assert is_near(count, n, share)


def test_a_pair_is_swapped_as_a_whole_or_not_at_all():
    swapped = draws(2000, 4, 4, p=0.3, ratio=1.0).flatten(1)
    assert torch.equal(swapped.any(dim=1), swapped.all(dim=1))
    assert is_near(swapped.all(dim=1).sum().item(), 2000, 0.3)


def test_a_large_p_and_a_large_ratio_are_drawn_independently():
    swapped = draws(4000, p=0.5, ratio=0.5)  # one position: a shared draw would give 1/2
    assert is_near(swapped.sum().item(), 4000, 0.25)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"p": 0.5, "ratio": 1.0}, {"ratio": "uniform"}], ids=str)
def test_pairs_are_drawn_independently_of_each_other(options):
    first, second = draws(8000, **options).flatten().view(-1, 2).unbind(dim=1)  # neighbours in the batch
    cells = torch.bincount(2 * first + second, minlength=4).double()
    assert chi_square(cells, 1000.0) < chi_square_limit(4)


@pytest.mark.parametrize("places", [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 0))], ids=str)
def test_positions_of_a_pair_are_drawn_independently_of_each_other(places):
    swapped = draws(4000, 2, 2)
    first, second = (swapped[:, row, column].long() for row, column in places)
    cells = torch.bincount(2 * first + second, minlength=4).double()
    assert chi_square(cells, 1000.0) < chi_square_limit(4)


def test_the_ratio_uniform_is_drawn_per_pair():
    swapped = draws(6000, 1, 2, ratio="uniform").flatten(1).long()  # E[u^2] = 1/3, not E[u]^2 = 1/4
    assert is_near((swapped.sum(dim=1) == 2).sum().item(), 6000, 1 / 3)


# --- generator


def test_the_same_seed_gives_the_same_swap():
    assert torch.equal(draws(50, 4, 4, seed=7, p=0.5), draws(50, 4, 4, seed=7, p=0.5))


def test_another_seed_gives_another_swap():
    assert not torch.equal(draws(50, 4, 4, seed=7), draws(50, 4, 4, seed=8))


def test_the_generator_moves_on():
    x_a, x_b = pairs(50)
    generator = seeded()
    first, second = (patch_swap(x_a, x_b, 2, generator=generator)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    draws(50, 4, 4, ratio="uniform", p=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_torch_s_global_one_decides():
    x_a, x_b = pairs(50)

    def swapped(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return patch_swap(x_a, x_b, 2)[0]

    assert torch.equal(swapped(1), swapped(1))
    assert not torch.equal(swapped(1), swapped(2))


# --- module


def test_the_module_swaps_as_the_function_does():
    x_a, x_b = pairs(50)
    torch.manual_seed(3)
    from_module = PatchSwap((2, 4), p=0.6, ratio="uniform")(x_a, x_b)
    torch.manual_seed(3)
    assert all(map(torch.equal, from_module, patch_swap(x_a, x_b, (2, 4), p=0.6, ratio="uniform")))


def test_the_module_in_eval_mode_is_the_identity():
    x_a, x_b = pairs(h=5, w=7)  # no multiples of the patch either
    before = torch.get_rng_state()
    x_a2, x_b2 = PatchSwap(4, p=1.0, ratio=1.0).eval()(x_a, x_b)
    assert x_a2 is x_a
    assert x_b2 is x_b
    assert torch.equal(torch.get_rng_state(), before)


def test_the_module_s_defaults_are_those_of_the_documentation():
    module = PatchSwap()
    assert (module.patch_size, module.p, module.ratio) == (4, 0.5, 0.5)


def test_the_module_holds_no_state():
    assert not PatchSwap().state_dict()
    assert not list(PatchSwap().parameters())


def test_the_module_s_repr_names_its_options():
    assert repr(PatchSwap((2, 4), p=0.75, ratio="uniform")) == "PatchSwap(patch_size=(2, 4), p=0.75, ratio=uniform)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, r"patch_size .*got 0"),
        ({"p": 1.5}, r"p must .*got 1\.5"),
        ({"p": NAN}, r"p must .*got nan"),
        ({"ratio": -0.1}, r"ratio must .*got -0\.1"),
        ({"ratio": "unifrom"}, r"ratio must .*got 'unifrom'"),
    ],
)
def test_the_module_refuses_bad_options_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        PatchSwap(**options)


# --- bad input


@pytest.mark.parametrize("patch_size", [3, 5, 16, (3, 2), (2, 3)], ids=str)
def test_a_patch_size_that_does_not_divide_the_images_is_refused(patch_size):
    with pytest.raises(ValueError, match=r"patch_size .* does not divide .* 8 x 10 pixels; choose") as caught:
        patch_swap(*pairs(h=8, w=10), patch_size)
    assert str(patch_size) in str(caught.value)


@pytest.mark.parametrize("patch_size", [0, -2, 2.0, NAN, None, "4", (2,), (2, 2, 2), (2, 0), (2.0, 2)], ids=repr)
def test_what_is_no_patch_size_is_refused(patch_size):
    with pytest.raises(ValueError, match="patch_size must be a positive integer") as caught:
        patch_swap(*pairs(), patch_size)
    assert repr(patch_size) in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, 1.5, NAN, math.inf, None, "half"], ids=repr)
@pytest.mark.parametrize("name", ["p", "ratio"])
def test_what_is_no_probability_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a number in \[0, 1\]") as caught:
        patch_swap(*pairs(), 2, **{name: value})
    assert repr(value) in str(caught.value)


def test_the_message_about_ratio_names_uniform():
    with pytest.raises(ValueError, match='or "uniform", got 2'):
        patch_swap(*pairs(), 2, ratio=2)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (numpy.zeros((4, 8, 8, 3)), r"torch\.as_tensor\(x_a\), channels before height .*: \.permute\(0, 3, 1, 2\) of "),
        ([torch.zeros(3, 8, 8)] * 4, r"torch\.stack\(x_a\)$"),
        ((torch.zeros(3, 8, 8), None), r"torch\.stack\(\[torchvision\.transforms\.v2\.functional\.pil_to_tensor"),
        (SimpleNamespace(shape=(4, 3, 8, 8)), r"torch\.stack\(\[torchvision\."),
        (None, r"torch\.stack\(\[torchvision\."),
    ],
    ids=["array", "list of tensors", "list of others", "shape alone", "None"],
)
def test_images_that_are_no_tensor_are_refused_with_what_makes_one(value, remedy):
    with pytest.raises(ValueError, match=f"^x_a must be a tensor, got {type(value).__name__}; write {remedy}"):
        patch_swap(value, torch.zeros(4, 3, 8, 8), 2)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [(numpy.ones((4, 4, 4), bool), "torch.as_tensor(mask)"), ([[[True]]], "torch.tensor(mask)")],
    ids=["array", "list"],
)
def test_a_mask_that_is_no_tensor_is_refused_with_what_makes_one(value, remedy):
    with pytest.raises(ValueError) as caught:
        patch_swap(*pairs(), 2, mask=value)
    assert str(caught.value) == f"mask must be a tensor, got {type(value).__name__}; write {remedy}"


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (1, 4, 3, 8, 8)], ids=str)
def test_images_without_four_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"x_a must have shape \(N, C, H, W\), got") as caught:
        patch_swap(torch.zeros(shape), torch.zeros(shape), 2)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (4, 1, 8, 8), (4, 3, 4, 8), (4, 3, 8, 16), (3, 8, 8)], ids=str)
def test_images_of_different_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="x_a and x_b differ in shape") as caught:
        patch_swap(torch.zeros(4, 3, 8, 8), torch.zeros(shape), 2)
    assert "[4, 3, 8, 8]" in str(caught.value)
    assert str(list(shape)) in str(caught.value)


def test_images_of_different_dtypes_are_refused():
    x_a, x_b = pairs()
    with pytest.raises(ValueError, match=r"x_a and x_b differ in dtype: torch\.float32 and torch\.float16"):
        patch_swap(x_a, x_b.half(), 2)


def test_images_on_different_devices_are_refused():
    x_a, x_b = pairs()
    with pytest.raises(ValueError, match="x_a and x_b differ in device: cpu and meta"):
        patch_swap(x_a, x_b.to("meta"), 2)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 2), (4, 1, 4, 4), (1, 4, 4)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(4, 4, 4\)") as caught:
        patch_swap(*pairs(), 2, mask=torch.ones(shape, dtype=torch.bool))
    assert f"shape {shape}" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
def test_a_mask_of_another_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match="mask must be bool") as caught:
        patch_swap(*pairs(), 2, mask=torch.ones(4, 4, 4, dtype=dtype))
    assert str(dtype) in str(caught.value)


# --- compiled


def test_the_swap_by_mask_compiles_without_a_break(fresh_compiler):
    compiled = torch.compile(patch_swap, backend="aot_eager", fullgraph=True)
    x_a, x_b = pairs()
    mask = torch.rand(4, 4, 2, generator=seeded()) < 0.5
    assert all(map(torch.equal, compiled(x_a, x_b, (2, 4), mask=mask), swap_in_a_loop(x_a, x_b, 2, 4, mask)))


@pytest.mark.parametrize("ratio", [0.5, "uniform"])
def test_the_random_swap_compiles_without_a_break(fresh_compiler, ratio):
    compiled = torch.compile(patch_swap, backend="aot_eager", fullgraph=True)
    x_a, x_b = pairs(50)
    torch.manual_seed(4)
    expected = patch_swap(x_a, x_b, 2, p=0.7, ratio=ratio)
    torch.manual_seed(4)
    assert all(map(torch.equal, compiled(x_a, x_b, 2, p=0.7, ratio=ratio), expected))


def test_the_module_compiles_without_a_break(fresh_compiler):
    module = PatchSwap(2, p=0.7)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x_a, x_b = pairs(50)
    torch.manual_seed(4)
    expected = module(x_a, x_b)
    torch.manual_seed(4)
    assert all(map(torch.equal, compiled(x_a, x_b), expected))
