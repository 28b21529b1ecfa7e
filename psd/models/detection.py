"""Networks for detection: torchvision's detectors on the maps of any backbone.

In training mode `model(images, targets)` gives a dict of losses, in eval mode `model(images)` a list of {"boxes",
"scores", "labels"}; images are normalised, float32 (N, 3, S, S). Classes are counted with background, which is 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from psd.checks import Refused
from psd.models.backbone import Backbone, map_at

FINEST = 4  # stride of the finest map that a detector looks at
LEVELS = 3  # of the pyramid, at most, besides one that is made by pooling
WIDTH = 64  # channels of the pyramid of a narrow backbone; 256, as torchvision has it, where the last map is wider


class AsTheyAre(nn.Module):
    """In the place of torchvision's transform, which would normalise and resize: images and boxes stay as they are."""

    def forward(self, images: Any, targets: Any = None) -> tuple[Any, Any]:
        import torch
        from torchvision.models.detection.image_list import ImageList

        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        return ImageList(batch, [tuple(batch.shape[-2:])] * len(batch)), targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


class Pyramid(nn.Module):
    """A backbone's maps from stride 4 on, as a feature pyramid (Lin et al., CVPR 2017) with one more level."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.first = max(map_at(backbone.strides, FINEST), len(backbone.strides) - LEVELS)
        channels = backbone.channels[self.first :]
        self.out_channels = WIDTH if channels[-1] <= 4 * WIDTH else 256
        self.body = backbone.body
        self.backbone = [backbone]  # in a list: its parameters are those of `body`
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, extra_blocks=LastLevelMaxPool())
        last = backbone.strides[-1]
        self.strides = [*backbone.strides[self.first :], 2 * last]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.backbone[0](x)[self.first :]
        found: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(k), m) for k, m in enumerate(maps)))
        return found


def fcos(backbone: Backbone, num_classes: int) -> nn.Module:
    """Tian et al., ICCV 2019."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    pyramid = Pyramid(backbone)
    anchors = AnchorGenerator(tuple((s,) for s in pyramid.strides), ((1.0,),) * len(pyramid.strides))
    return _finished(FCOS(pyramid, num_classes, anchor_generator=anchors), num_classes)


def retinanet(backbone: Backbone, num_classes: int) -> nn.Module:
    """Lin et al., ICCV 2017."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    pyramid = Pyramid(backbone)
    sizes = tuple(tuple(int(4 * s * 2 ** (k / 3)) for k in range(3)) for s in pyramid.strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return _finished(RetinaNet(pyramid, num_classes, anchor_generator=anchors), num_classes)


def fasterrcnn(backbone: Backbone, num_classes: int) -> nn.Module:
    """Ren et al., NeurIPS 2015, on a feature pyramid."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    pyramid = Pyramid(backbone)
    anchors = AnchorGenerator(tuple((8 * s,) for s in pyramid.strides), ((0.5, 1.0, 2.0),) * len(pyramid.strides))
    names = [str(k) for k in range(len(pyramid.strides) - 1)]
    pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
    made = FasterRCNN(pyramid, num_classes, rpn_anchor_generator=anchors, box_roi_pool=pool)
    return _finished(made, num_classes)


def ssdlite(backbone: Backbone, num_classes: int) -> nn.Module:
    """SSD (Liu et al., ECCV 2016) with the separable convolutions of SSDlite (Sandler et al., CVPR 2018)."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    pyramid = Pyramid(backbone)
    levels = len(pyramid.strides)
    # a level's boxes are as large as seems right for its stride, in shares of the image: of 8 strides at 96 pixels
    anchors = DefaultBoxGenerator([[2]] * levels, min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead([pyramid.out_channels] * levels, anchors.num_anchors_per_location(), num_classes, nn.BatchNorm2d)
    return _finished(SSD(pyramid, anchors, (96, 96), num_classes, head=head), num_classes)


def _finished(detector: Any, num_classes: int) -> nn.Module:
    detector.transform = AsTheyAre()
    detector.num_classes = num_classes
    made: nn.Module = detector
    return made


HEADS: dict[str, Callable[[Backbone, int], nn.Module]] = {
    "ssdlite": ssdlite,
    "fcos": fcos,
    "retinanet": retinanet,
    "fasterrcnn": fasterrcnn,
}


def check_maps(backbone: Backbone, name: str) -> None:
    """ValueError for a backbone without a map that is coarse enough."""
    if backbone.strides[-1] < FINEST:
        raise Refused(
            f"model {name!r}: its maps have strides {backbone.strides}, a detector needs one of {FINEST} or more"
        )
