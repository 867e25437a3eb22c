"""Small models, built in under a second, and images with ground truth for them."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from torch import Tensor, nn

from logn_d2.config import add_logn_config
from logn_d2.core import (
    LogitMoments,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    classifier_fingerprint,
)

NUM_CLASSES = 5
CLASS_NAMES = tuple("abcde")
CHANNELS = 16

PARENTS = {
    "LogNROIHeads": "StandardROIHeads",
    "LogNCascadeROIHeads": "CascadeROIHeads",
    "LogNRes5ROIHeads": "Res5ROIHeads",
}
"""Our heads, and those of Detectron2 that each is made of."""


class SmallBackbone(Backbone):
    """Two levels, of strides 8 and 16, with the names that the heads' defaults ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 8, stride=8), nn.BatchNorm2d(CHANNELS))
        self.next = nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Conv2d(CHANNELS, CHANNELS, 2, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p3 = self.stem(x)
        return {"p3": p3, "res4": self.next(p3)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            "p3": ShapeSpec(channels=CHANNELS, stride=8),
            "res4": ShapeSpec(channels=CHANNELS, stride=16),
        }


@BACKBONE_REGISTRY.register()
def build_small_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallBackbone:
    return SmallBackbone()


def small_config(head: str = "LogNROIHeads", **options: object) -> CfgNode:
    """A detector of few layers and channels.

    Args:
        head (str): MODEL.ROI_HEADS.NAME; the architecture that it needs follows.
        **options: keys with "__" for the dots, for example MODEL__MASK_ON=False.
    """
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = head
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 24
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.MODEL.BACKBONE.NAME = "build_small_backbone"
    if "Res5" in head:
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1
    else:
        cfg.MODEL.RPN.IN_FEATURES = ["p3", "res4"]
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "res4"]
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    if "Cascade" in head:
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def small_model(head: str = "LogNROIHeads", seed: int = 0, **options: object) -> nn.Module:
    """The model of `small_config`, with classifiers that say something."""
    torch.manual_seed(seed)
    model = build_model(small_config(head, **options)).eval()
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        nn.init.normal_(predictor.cls_score.weight, std=0.5)
    return model


def images(count: int = 2, seed: int = 0, size: int = 64) -> list[dict]:
    """Model inputs: noise, three objects each."""
    generator = torch.Generator().manual_seed(seed)
    return [_image(index, generator, size) for index in range(count)]


def _image(index: int, generator: torch.Generator, size: int) -> dict:
    corner = torch.rand(3, 2, generator=generator) * size / 2
    extent = 8 + torch.rand(3, 2, generator=generator) * size / 4
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
    instances.gt_classes = torch.randint(NUM_CLASSES, (3,), generator=generator)
    instances.gt_masks = BitMasks(torch.ones(3, size, size, dtype=torch.bool))
    points = torch.cat([corner, torch.full((3, 1), 2.0)], dim=1)
    instances.gt_keypoints = Keypoints(points[:, None].repeat(1, 17, 1))
    return {
        "image": torch.randint(256, (3, size, size), generator=generator).float(),
        "image_id": index,
        "file_name": f"{index}.png",
        "height": size,
        "width": size,
        "instances": instances,
    }


def statistics_of(model: nn.Module, seed: int = 1) -> LogitStatistics:
    """Statistics that fit the model: its classifiers' fingerprints, moments of noise."""
    torch.manual_seed(seed)
    predictors = model.roi_heads.box_predictor
    predictors = predictors if isinstance(predictors, nn.ModuleList) else [predictors]
    return LogitStatistics(
        stages=tuple(_stage(p.cls_score.weight, p.cls_score.bias) for p in predictors),
        class_names=CLASS_NAMES[: predictors[0].num_classes],
        datasets=("drawn",),
    )


def _stage(weight: Tensor, bias: Tensor) -> StageStatistics:
    moments, posteriors = LogitMoments(len(weight)), PosteriorMoments(len(weight))
    logits = torch.randn(50, len(weight)) * (1 + torch.rand(len(weight))) - 1
    moments.update(logits)
    posteriors.update(logits, logits.softmax(dim=1), torch.arange(50) % len(weight))
    return StageStatistics.from_moments(moments, classifier_fingerprint(weight, bias), posteriors)


def detections(model: nn.Module, inputs: list[dict]) -> list[dict[str, Tensor]]:
    """Every field of the model's output, as tensors."""
    with torch.no_grad():
        outputs = model.eval()(inputs)
    fields = [output["instances"].get_fields() for output in outputs]
    return [{k: getattr(v, "tensor", v) for k, v in each.items()} for each in fields]


def assert_same(left: list[dict[str, Tensor]], right: list[dict[str, Tensor]]) -> None:
    """Both outputs are equal, bit for bit."""
    assert len(left) == len(right)
    for one, other in zip(left, right):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
