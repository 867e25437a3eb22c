"""What knows Detectron2's models: predictor, RoI heads, recording and attaching."""

from .build import calibrations_from_config
from .cosine import CosineConv2d, CosineLinear, CosineMaskHead
from .fast_rcnn import LogNFastRCNNOutputLayers
from .roi_heads import LogNCascadeROIHeads, LogNRes5ROIHeads, LogNROIHeads
from .stages import RecordedStage, combine_stages

__all__ = [
    "CosineConv2d",
    "CosineLinear",
    "CosineMaskHead",
    "LogNCascadeROIHeads",
    "LogNFastRCNNOutputLayers",
    "LogNROIHeads",
    "LogNRes5ROIHeads",
    "RecordedStage",
    "calibrations_from_config",
    "combine_stages",
]
