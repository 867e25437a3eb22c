"""Image classification on Detectron2: data, model, evaluation.

An image takes the place of a detector's region, and its classifier that of a predictor, without
boxes and without background. Losses, calibrations, statistics, second stages, trainer and commands
are those of detectors.
"""

from . import arrays, files, glyph_images  # noqa: F401  # only registration
from .backbones import MLPBackbone, TorchvisionFeatures
from .classifier import ImageClassifier
from .head import ClassifierHead
from .image_data import IMAGE_SOURCES, ImageData, array_records, file_records
from .long_tail import long_tail_counts, long_tail_indices
from .mapper import ImageMapper
from .registration import check_splits, register_image_sets, register_images
from .unknown import OODEvaluator

__all__ = [
    "IMAGE_SOURCES",
    "ClassifierHead",
    "ImageClassifier",
    "ImageData",
    "ImageMapper",
    "MLPBackbone",
    "OODEvaluator",
    "TorchvisionFeatures",
    "array_records",
    "check_splits",
    "file_records",
    "long_tail_counts",
    "long_tail_indices",
    "register_image_sets",
    "register_images",
]
