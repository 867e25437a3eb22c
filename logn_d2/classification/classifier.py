"""The image classifier: backbone, global average pooling, one classifier.

Shapes: N images, K classes, D feature channels. Pixels are in [0, 255].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.build import TrainingClassCounts, calibrations_from_config, logn_node
from ..modeling.class_scales import add_class_scales
from ..modeling.second_stages import get_second_stage
from ..sites import ConfigSite, register_config_site
from .head import ClassifierHead

register_config_site("ImageClassifier", ConfigSite(background="none"))


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Any Detectron2 backbone with a classifier of whole images (Eq. 1 of the LogN paper).

    The input is a list of dicts with "image", a (channels, height, width) tensor, all of one size,
    and for training "label", a class index. In training the result is a dict of losses, otherwise
    one dict per image: "logits" (K,), raw; "scores" (K,), calibrated probabilities; "pred_class",
    the index of the largest score.

    Args:
        backbone (Backbone): its map ``in_feature`` is averaged over all positions.
        head (ClassifierHead): a head for as many features as that map has channels.
        in_feature (str): name of a map; "" for the last one.
        pixel_mean (Sequence[float]): one value per channel.
        pixel_std (Sequence[float]): one value per channel.

    Raises:
        ValueError: the backbone has no such map.

    Example:
        >>> from logn_d2.classification import MLPBackbone
        >>> head = ClassifierHead(8, num_classes=3)
        >>> backbone = MLPBackbone(channels=1, size=4, hidden=[8])
        >>> model = ImageClassifier(
        ...     backbone=backbone, head=head, pixel_mean=[128.0], pixel_std=[64.0]
        ... )
        >>> model.eval()([{"image": torch.zeros(1, 4, 4)}])[0]["scores"].shape
        torch.Size([3])
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: ClassifierHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        in_feature: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.in_feature = in_feature or list(backbone.output_shape())[-1]
        if self.in_feature not in backbone.output_shape():
            raise UserError(
                f"The backbone has no map '{in_feature}'. It has "
                f"{', '.join(backbone.output_shape())} (MODEL.LOGN.IMAGE.IN_FEATURE)."
            )
        # Not in the checkpoint, as in Detectron2: the config defines them.
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone, node = build_backbone(cfg), logn_node(cfg)
        shapes = backbone.output_shape()
        in_feature = node.IMAGE.IN_FEATURE or list(shapes)[-1]
        # An unknown map gets any number here; the constructor refuses it with a message.
        channels = shapes[in_feature].channels if in_feature in shapes else 1
        return {
            "backbone": backbone,
            "head": _head(cfg, channels),
            "in_feature": in_feature,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Losses in training, otherwise predictions; see the class."""
        images = self._pixels(batched_inputs)
        features = self.backbone(images)[self.in_feature].mean(dim=(2, 3))
        predictions = self.head(features)
        proposals = _as_proposals(batched_inputs, images)
        if self.training:
            return self.head.losses(predictions, proposals)
        scores = self.head.predict_probs(predictions, proposals)
        return [
            {"logits": logits, "scores": of_image[0], "pred_class": int(of_image.argmax())}
            for logits, of_image in zip(predictions[0], scores, strict=True)
        ]

    def _pixels(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        """(N, channels, height, width), normalised."""
        sizes = [tuple(each["image"].shape) for each in batched_inputs]
        other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            raise UserError(
                f"A batch has images of different shapes: {sizes[0]} and {sizes[other]} "
                f"({batched_inputs[other].get('file_name', f'number {other}')}). Crop them to one "
                "size, as MODEL.LOGN.IMAGE.SIZE does, or pass them one by one."
            )
        if sizes[0][0] != len(self.pixel_mean):
            raise UserError(
                f"An image has {sizes[0][0]} channels, MODEL.PIXEL_MEAN is for "
                f"{len(self.pixel_mean)}. INPUT.FORMAT and MODEL.PIXEL_MEAN must agree."
            )
        pixels = torch.stack([each["image"] for each in batched_inputs]).to(self.device)
        return (pixels - self.pixel_mean) / self.pixel_std


def _head(cfg: CfgNode, in_features: int) -> ClassifierHead:
    """The head of a config, with its calibration if the config names one."""
    node, counts = logn_node(cfg), TrainingClassCounts(cfg)
    head = ClassifierHead(
        in_features,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        classifier=node.CLASSIFIER,
        temperature=node.TEMPERATURE,
        loss=node.LOSS,
        counts=counts,
        dropout=node.IMAGE.DROPOUT,
    )
    # After the head is built: a calibration may be computed from its weights.
    (calibration,), (guard,) = calibrations_from_config(cfg, [head], counts, head.background)
    head._check_calibration(calibration)
    head.calibration, head.weights_check = calibration, guard
    stage = get_second_stage(node.SECOND_STAGE)
    if stage is not None and stage.scales:
        add_class_scales(head)
    return head


def _as_proposals(batched_inputs: Sequence[Mapping[str, Any]], images: Tensor) -> list[Instances]:
    """One region per image, the whole image; its class is -1 without a label."""
    labels = torch.tensor([int(each.get("label", -1)) for each in batched_inputs])
    size = tuple(images.shape[-2:])
    return [Instances(size, gt_classes=each) for each in labels.to(images.device).split(1)]
