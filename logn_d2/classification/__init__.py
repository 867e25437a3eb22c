"""Image classification on Detectron2: data, model, evaluation.

An image is what a region is to a detector, and its classifier a predictor without boxes and
without background. Losses, calibrations, statistics, second stages, trainer and commands are those
of detectors.
"""

from .backbones import MLPBackbone, TorchvisionFeatures
from .classifier import ImageClassifier
from .head import ClassifierHead

__all__ = ["ClassifierHead", "ImageClassifier", "MLPBackbone", "TorchvisionFeatures"]
