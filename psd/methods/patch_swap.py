"""Self-distillation by intra-class patch swap: the method this project is about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from psd.methods import Batch, Progress, part_mask
from psd.methods.pair_distillation import PairDistillation
from psd.swap import PatchSwap as Swap
from psd.swap import Ratio, patch_swap


@dataclass(kw_only=True)
class PatchSwap(PairDistillation):
    """patch_size (pixels), p, ratio: as in `psd.patch_swap`; the rest as in `psd.SelfDistillationLoss`.

    Loss: that of `psd.SelfDistillationLoss` on the two swapped images of each pair.
    Cost: 1 forward and 1 backward of 2N images. Memory: none. Needs: partners.
    before: swap before crop and flip, which each image of the pair then has of its own; by default the swap stands
    after crop, flip and normalisation, right before the forward pass.
    Source: Choi et al., arXiv 2505.14124; what the paper leaves open is listed in `psd.SelfDistillationLoss`. Defaults:
    ratio 0.5 mixes most pairs, and no other ratio, nor the swap before crop and flip, is above it in our ablations.
    Patch size and p depend on the data and on each other (results/shapes-fit: small patches want a small p, patches of
    the size of a part p 1), so choose them on a tune split; on photographs of 32 pixels 8 are 1.5 ± 0.7 points
    above cross-entropy and the default of 4 level with it (results/final, results/again), and p 1 is
    5.4 ± 2.3 points below p 0.5 (results/cifar100-small-replicates-fit).
    Networks that cut images into tokens: let the patch be a multiple of the token. For a small ViT, patches of half a
    token's side cost 3.5 ± 2.7 (tokens of 8) and 4.8 ± 3.4 points (of 4) beside patches of 8 pixels, a quarter 21 ± 9;
    one or two tokens' sides are alike (results/shapes-classes4-per_class800-seed2-fit, compare/shapes-vit-token4, -8).
    """

    patch_size: int | tuple[int, int] = 4
    p: float = 0.5
    ratio: Ratio = 0.5
    before: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        Swap(self.patch_size, self.p, self.ratio)  # refuses what is out of range
        if self.before:
            self.needs = self.needs | {"raw"}  # type: ignore[misc]  # of this instance

    def images(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        if batch.raw is not None:
            return batch.raw.augment(*self._swapped(batch.raw.a, batch.raw.b, progress))
        return self._swapped(*super().images(batch, progress), progress)

    def _swapped(self, a: Tensor, b: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        return patch_swap(a, b, self.patch_size, mask=part_mask(a, self.patch_size, self.p, self.ratio, progress))
