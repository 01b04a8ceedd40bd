"""DeepLabV3+ with a ResNet of output stride 8 (Chen et al. 2018; method M7): the paper's other segmenter.

Backbone, atrous pyramid and auxiliary head are torchvision's; the decoder, which it does not have, is here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

from fmwsss.core.errors import InputError
from fmwsss.core.segmenter.base import Segmenter, pixel_loss, pixel_weights

RESNETS = {"resnet26": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# mmsegmentation's ResNetV1c: three convolutions of 3 x 3 in place of one of 7 x 7 at the beginning.
DEEP_STEM = "_v1c"
RATES = (12, 24, 36)
AUXILIARY_WEIGHT = 0.2
LOW_LEVEL_WIDTH, WIDTH = 48, 256


class DeepLabV3Plus(Segmenter):
    """See the module.

    Args:
        num_classes: background included.
        resnet: one of RESNETS, or with `_v1c` behind it the same with mmsegmentation's stem.
        random_seed: of its weights; those of an ImageNet ResNet go into `backbone` by name (of a `_v1c`
            mmsegmentation's, of another torchvision's).

    Raises:
        ValueError: another resnet.
    """

    def __init__(self, num_classes: int, resnet: str, random_seed: int) -> None:
        super().__init__(num_classes, size_divisor=8)
        depths = RESNETS.get(resnet.removesuffix(DEEP_STEM))
        if depths is None:
            raise InputError(f"there is no {resnet!r}; there are {', '.join(RESNETS)}, and each with {DEEP_STEM!r}")
        with torch.random.fork_rng():
            torch.manual_seed(random_seed)
            body = ResNet(Bottleneck, list(depths), replace_stride_with_dilation=[False, True, True])
            if resnet.endswith(DEEP_STEM):
                body = _with_deep_stem(body)
            self.resnet = IntermediateLayerGetter(body, {"layer1": "low", "layer3": "middle", "layer4": "high"})
            self.pyramid = ASPP(2048, RATES, WIDTH)
            self.low_level = _convolution(256, LOW_LEVEL_WIDTH, 1)
            self.decoder = nn.Sequential(
                _convolution(WIDTH + LOW_LEVEL_WIDTH, WIDTH, 3), _convolution(WIDTH, WIDTH, 3), nn.Dropout(0.1),
                nn.Conv2d(WIDTH, num_classes, 1),
            )  # fmt: skip
            self.auxiliary = FCNHead(1024, num_classes)

    @property
    def backbone(self) -> nn.Module:
        """The ResNet; its parameters are named as torchvision's."""
        return self.resnet

    def measure(
        self, labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
    ) -> Float[Tensor, "1"]:
        """See `Segmenter.measure`: the weight of all pixels that are not ignored.

        Args:
            labels: class indices; 255 is ignored.
            weights: of each pixel, 0 to 1; None for 1.

        Returns:
            Sums over the batch.
        """
        return pixel_weights(labels, weights).sum()[None]

    def losses(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        labels: UInt8[Tensor, "batch height width"],
        weights: Float[Tensor, "batch height width"] | None,
        totals: Float[Tensor, " sums"],
        random_seeds: Sequence[int],
    ) -> dict[str, Float[Tensor, ""]]:
        """See `Segmenter.losses`: cross entropy per pixel, `pixels`, and that of the auxiliary head, `auxiliary`.

        Args:
            images: RGB, 0 to 255.
            labels: class indices; 255 is ignored.
            weights: of each pixel, 0 to 1; None for 1.
            totals: `measure` of the whole batch, summed over workers.
            random_seeds: of each image, for points that are drawn.

        Returns:
            Weighted losses by name; their sum is minimised.
        """
        features = self.resnet(self.normalise(images))
        logits, auxiliary = self._logits(features), self.auxiliary(features["middle"])
        with torch.autocast(images.device.type, enabled=False):
            return {
                "pixels": pixel_loss(logits, labels, weights, totals[0]),
                "auxiliary": AUXILIARY_WEIGHT * pixel_loss(auxiliary, labels, weights, totals[0]),
            }

    def scores(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """See `Segmenter.scores`: softmax of the logits, which are resized first."""
        logits = self._logits(self.resnet(self.normalise(images)))
        return functional.interpolate(logits.float(), images.shape[-2:], mode="bilinear").softmax(1)

    def _logits(self, features: Mapping[str, Tensor]) -> Tensor:
        low = self.low_level(features["low"])
        high = functional.interpolate(self.pyramid(features["high"]), low.shape[-2:], mode="bilinear")
        return self.decoder(torch.cat([high, low], dim=1))


def _with_deep_stem(body: ResNet) -> nn.Module:
    """The same ResNet with `stem` in place of `conv1`, `bn1` and `relu`, in their place, and mmsegmentation's names."""
    layers: list[nn.Module] = []
    for width_in, width_out, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        convolution = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]
    rest = {name: child for name, child in body.named_children() if name not in ("conv1", "bn1", "relu")}
    return nn.Sequential(OrderedDict(stem=nn.Sequential(*layers), **rest))


def _convolution(width_in: int, width_out: int, size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, size, padding=size // 2, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()
    )
