"""What knows Detectron2's models: predictor, RoI heads, recording and attaching."""

from .attach import Attachment, attach, calibration_of, detach
from .box_predictors import (
    check_calibratable,
    classifier_parameters,
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
from .stages import RecordedStage, combine_stages
from .topk_inference import fast_rcnn_inference_exact

__all__ = [
    "Attachment",
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
    "RecordedStage",
    "Recording",
    "attach",
    "calibration_of",
    "calibrations_from_config",
    "check_calibratable",
    "classifier_parameters",
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
