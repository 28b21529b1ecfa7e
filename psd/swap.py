"""The augmentation: two images of one class exchange random patches.

This file needs torch alone and can be lifted into another project as it stands.

Source: Choi, Jeon, Shukla, Turaga, "Intra-class Patch Swap for Self-Distillation", Neurocomputing 645 (2025)
130408, arXiv 2505.14124: patches of side m change places with probability p. The share of patches that
move (`ratio`) is not stated there and is an option here.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

Ratio = float | Literal["uniform"]


def patch_swap(
    x_a: Tensor,
    x_b: Tensor,
    patch_size: int | tuple[int, int],
    *,
    p: float = 1.0,
    ratio: Ratio = 0.5,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Exchange random patches between `x_a[i]` and `x_b[i]`, for every pair i of the batch.

    Each pair is cut into a grid of patches. With probability `p` a random set of grid positions is drawn, and
    the patches at those positions change places. Together the two results hold exactly the pixels of the pair.

    Args:
        x_a, x_b: images (N, C, H, W) of one shape, dtype and device; they are not changed.
            Label maps (N, H, W) of a pair go through as (N, 1, H, W), with the mask of their images.
        patch_size: side m of a patch in pixels, or (height, width); must divide (H, W).
        p: probability in [0, 1] that a pair is swapped at all.
        ratio: probability in [0, 1] of each grid position to be swapped, or "uniform": drawn per pair from U(0, 1).
        mask: bool (N, H/m, W/m), True = swapped; stands in for the random draw, `p` and `ratio`.
        generator: source of the draw; torch's global one if None.

    Returns:
        (x_a2, x_b2), shapes, dtype and memory format as x_a and x_b have them.

    Raises:
        ValueError: naming the argument and its value.

    Compiles with `fullgraph=True` when `mask` is given or `generator` is None.

    >>> a, b = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    >>> a2, b2 = patch_swap(a, b, 1, mask=torch.tensor([[[True, False], [False, True]]]))
    >>> a2.flatten().tolist(), b2.flatten().tolist()
    ([1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    rows, columns = _grid(x_a, x_b, patch_size)
    if mask is None:
        mask = patch_mask(len(x_a), (rows, columns), p=p, ratio=ratio, generator=generator, device=x_a.device)
    elif not isinstance(mask, Tensor):
        raise _no_tensor("mask", mask)
    elif mask.dtype != torch.bool or tuple(mask.shape) != (len(x_a), rows, columns):
        raise ValueError(
            f"mask must be bool of shape {(len(x_a), rows, columns)}, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    swapped = mask.to(x_a.device)[:, None, :, None, :, None]  # (N, 1, H/m, 1, W/m, 1)
    a, b = _to_patches(x_a, rows, columns), _to_patches(x_b, rows, columns)  # (N, C, H/m, m, W/m, m), views
    bitwise = x_a.device.type == "cpu" and not x_a.is_complex() and not torch.compiler.is_compiling()
    a2, b2 = (_ExchangeBits.apply if bitwise else _exchange)(a, b, swapped)
    return _like(x_a, _to_images(a2)), _like(x_b, _to_images(b2))


def patch_mask(
    n: int,
    grid: tuple[int, int],
    *,
    p: float = 1.0,
    ratio: Ratio = 0.5,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw which grid positions change places, as `patch_swap` does: one mask for images and their label maps.

    Every pair and every position is drawn independently.

    Args:
        n: number of pairs.
        grid: number of patches in (height, width): for images (N, C, H, W), (H/m, W/m).
        p, ratio, generator: as in `patch_swap`. The draw happens on the generator's device, where one is given.
        device: where the mask ends; the generator's device (without one, torch's default device) if None.

    Returns:
        bool (n, rows, columns), True = swapped.

    Raises:
        ValueError: naming the argument and its value.

    >>> mask = patch_mask(2, (4, 4), generator=torch.Generator().manual_seed(0))
    >>> x_a, x_b = patch_swap(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), 2, mask=mask)
    >>> y_a, y_b = patch_swap(torch.zeros(2, 1, 8, 8).long(), torch.ones(2, 1, 8, 8).long(), 2, mask=mask)
    >>> torch.equal(x_a[:, 0], y_a[:, 0].float())
    True
    """
    if not _is_count(n):
        raise ValueError(f"n must be an integer >= 0, got {n!r}")
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(map(_is_count, grid)):
        raise ValueError(f"grid must be two integers >= 0, the patches in (height, width), got {grid!r}")
    _check_probability("p", p)
    if ratio != "uniform":
        _check_probability("ratio", ratio)
    source = device if generator is None else generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=source)

    threshold = uniform(n, 1, 1) if ratio == "uniform" else ratio
    mask = (uniform(n, *grid) < threshold) & (uniform(n, 1, 1) < p)
    return mask if device is None else mask.to(device)


class PatchSwap(nn.Module):
    """`patch_swap` as a module: (x_a, x_b) -> (x_a2, x_b2); the identity in eval mode.

    Arguments as in `patch_swap`. The defaults are those of the method `psd.methods.patch_swap`, where their evidence
    stands.

    >>> PatchSwap(4, p=0.5)
    PatchSwap(patch_size=4, p=0.5, ratio=0.5)
    """

    def __init__(self, patch_size: int | tuple[int, int] = 4, p: float = 0.5, ratio: Ratio = 0.5) -> None:
        super().__init__()
        _patch_shape(patch_size)
        _check_probability("p", p)
        if ratio != "uniform":
            _check_probability("ratio", ratio)
        self.patch_size, self.p, self.ratio = patch_size, p, ratio

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return x_a, x_b
        return patch_swap(x_a, x_b, self.patch_size, p=self.p, ratio=self.ratio)

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}, p={self.p}, ratio={self.ratio}"


def _exchange(a: Tensor, b: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(swapped, b, a), torch.where(swapped, a, b)


class _ExchangeBits(torch.autograd.Function):
    """`_exchange` on a CPU, where bitwise operations take many elements at once and torch.where takes one by one.

    Bits have no gradient, hence a function of its own: the exchange is linear and its own transpose.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        mask = swapped.to(integer).neg_()  # all bits of a swapped position are 1
        if a.stride(-1) == 1:  # the pixels of a row are neighbours in memory: make runs longer than one patch
            mask = mask.expand(*mask.shape[:-1], a.shape[-1]).contiguous()
        bits_a, bits_b = a.view(integer), b.view(integer)
        # a2 = a ^ d and b2 = b ^ d with d = (a ^ b) & mask; in place, because new memory costs more than the arithmetic
        a2 = bits_a ^ bits_b
        a2 &= mask
        b2 = bits_b ^ a2
        a2 ^= bits_a
        return a2.view(a.dtype), b2.view(b.dtype)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *parts: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        mapped = [
            part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            for part, dim in zip(parts, in_dims, strict=True)
        ]
        return _ExchangeBits.apply(*mapped), (0, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_exchange(*gradients, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor, tangent_b: Tensor, _: None) -> tuple[Tensor, Tensor]:
        return _exchange(tangent_a, tangent_b, *ctx.saved_tensors)


def _to_patches(x: Tensor, rows: int, columns: int) -> Tensor:
    patches: Tensor = x.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (N, C, rows, m, columns, m)
    return patches


def _to_images(patches: Tensor) -> Tensor:
    images: Tensor = patches.flatten(4, 5).flatten(2, 3)  # (N, C, H, W)
    return images


def _like(x: Tensor, images: Tensor) -> Tensor:
    """The images in x's memory format; a copy only where x_a and x_b differ in it."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if x.is_contiguous(memory_format=memory_format):
            return images.contiguous(memory_format=memory_format)
    return images


def _patch_shape(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(patch_size) if isinstance(patch_size, (tuple, list)) else (patch_size, patch_size)
    if len(sides) != 2 or not all(_is_count(m) and m > 0 for m in sides):
        raise ValueError(f"patch_size must be a positive integer or a pair of them, got {patch_size!r}")
    return int(sides[0]), int(sides[1])


def _grid(x_a: Tensor, x_b: Tensor, patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Number of patches (rows, columns), after checking everything that can be wrong with the images."""
    for name, x in (("x_a", x_a), ("x_b", x_b)):
        if not isinstance(x, Tensor):
            raise _no_tensor(name, x)
    if x_a.ndim != 4:
        raise ValueError(f"x_a must have shape (N, C, H, W), got {tuple(x_a.shape)}")
    for what in ("shape", "dtype", "device"):
        if getattr(x_a, what) != getattr(x_b, what):
            raise ValueError(f"x_a and x_b differ in {what}: {getattr(x_a, what)} and {getattr(x_b, what)}")
    height, width = _patch_shape(patch_size)
    if x_a.shape[2] % height or x_a.shape[3] % width:
        raise ValueError(
            f"patch_size {patch_size!r} does not divide the images of {x_a.shape[2]} x {x_a.shape[3]} pixels; "
            "choose a divisor or resize the images"
        )
    return x_a.shape[2] // height, x_a.shape[3] // width


def _no_tensor(name: str, value: object) -> ValueError:
    """What to write instead; PIL, like numpy, is not imported for it."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        images = "" if name == "mask" else ", channels before height and width: .permute(0, 3, 1, 2) of (N, H, W, C)"
        remedy = f"torch.as_tensor({name}){images}"
    elif name == "mask":
        remedy = "torch.tensor(mask)"
    elif isinstance(value, (list, tuple)) and all(isinstance(x, Tensor) for x in value):
        remedy = f"torch.stack({name})"
    else:
        remedy = "torch.stack([torchvision.transforms.v2.functional.pil_to_tensor(image) for image in images])"
    return ValueError(f"{name} must be a tensor, got {type(value).__name__}; write {remedy}")


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 0  # type: ignore[operator]


def _check_probability(name: str, value: object) -> None:
    # "not (0 <= x <= 1)" is also true for NaN
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:  # type: ignore[operator]
        extra = ' or "uniform"' if name == "ratio" else ""
        raise ValueError(f"{name} must be a number in [0, 1]{extra}, got {value!r}")
