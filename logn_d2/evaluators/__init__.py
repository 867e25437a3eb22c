"""Detectron2 evaluators for data sets in LVIS and COCO format, and resumable inference."""

from .coco_form import COCOFormEvaluator, training_groups
from .limits import detection_limits
from .lvis_form import LVISFormEvaluator
from .resumable_inference import resumable_inference

__all__ = [
    "COCOFormEvaluator",
    "LVISFormEvaluator",
    "detection_limits",
    "resumable_inference",
    "training_groups",
]
