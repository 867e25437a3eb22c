"""Detectron2's models: predictors, RoI heads, recording, attaching and folding."""

from .attach import Attachment, attach, calibration_of, detach
from .box_predictors import (
    check_calibratable,
    find_box_predictors,
    num_classes_of,
    predictor_fingerprint,
)
from .build import calibrations_from_config
from .cosine import CosineConv2d, CosineLinear, CosineMaskHead
from .fast_rcnn import LogNFastRCNNOutputLayers
from .feature_memory import FeatureMemory, LogNMemoryROIHeads
from .folding import fold, parts_of_logn_d2, plain_config
from .recording import LogitRecorder, Recording
from .roi_heads import LogNCascadeROIHeads, LogNRes5ROIHeads, LogNROIHeads
from .stages import StageOutput, combine_stages
from .topk_inference import fast_rcnn_inference_exact
from .torchvision_backbone import (
    TorchvisionBackbone,
    build_torchvision_backbone,
    build_torchvision_fpn_backbone,
)
from .torchvision_weights import IMAGENET, PixelConvention, check_pixels

__all__ = [
    "Attachment",
    "IMAGENET",
    "CosineConv2d",
    "CosineLinear",
    "CosineMaskHead",
    "FeatureMemory",
    "LogNCascadeROIHeads",
    "LogNFastRCNNOutputLayers",
    "LogNMemoryROIHeads",
    "LogNROIHeads",
    "LogNRes5ROIHeads",
    "LogitRecorder",
    "PixelConvention",
    "StageOutput",
    "Recording",
    "TorchvisionBackbone",
    "attach",
    "build_torchvision_backbone",
    "build_torchvision_fpn_backbone",
    "calibration_of",
    "calibrations_from_config",
    "check_calibratable",
    "check_pixels",
    "combine_stages",
    "detach",
    "fast_rcnn_inference_exact",
    "find_box_predictors",
    "fold",
    "num_classes_of",
    "parts_of_logn_d2",
    "plain_config",
    "predictor_fingerprint",
]
