"""The engine's checks and evaluation for image classifiers: one pass for all calibrations."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..classification import check_splits
from ..classification.accuracy import ImageResult, accuracy_table, class_groups, evaluate_images
from ..classification.logits import StoredLogits, collect_logits, scores_of
from ..classification.predictions import StoredPredictions, predictions_name
from ..core import AffineCalibration, ClassCounts
from ..data import class_counts
from ..data.loader import build_evaluation_loader
from ..errors import UserError
from ..files import as_file_name
from ..modeling.box_predictors import unwrapped

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, float]]]


def classifies_images(cfg: CfgNode) -> bool:
    """Whether the config describes an image classifier."""
    return cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"


def check_image_config(cfg: CfgNode, *, trains: bool) -> None:
    """Find mistakes that only image classifiers can have.

    Args:
        cfg (CfgNode): the config.
        trains (bool): whether training sets are needed.

    Raises:
        ValueError: a data set in another format, another population, or classes in only one split.
    """
    if not classifies_images(cfg):
        return
    check_image_sets([*(cfg.DATASETS.TRAIN if trains else ()), *cfg.DATASETS.TEST])
    if cfg.MODEL.LOGN.COLLECT.POPULATION != "images":
        raise UserError(
            f"MODEL.LOGN.COLLECT.POPULATION is {cfg.MODEL.LOGN.COLLECT.POPULATION}, but an image "
            "classifier has no regions. Set it to images."
        )
    if trains:
        check_splits(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)


def check_image_sets(names: Sequence[str]) -> None:
    """Check that registered data sets consist of labelled images.

    Raises:
        ValueError: the message names the first other data set.
    """
    for name in names:
        kind = MetadataCatalog.get(name).get("evaluator_type", None)
        if kind != "classification":
            raise UserError(
                f"MODEL.META_ARCHITECTURE is ImageClassifier, but '{name}' is a set for the "
                f"evaluator {kind!r}. Register sets of images with MODEL.LOGN.IMAGE.DATASETS."
            )


def one_pass_for_images(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    calibrations: Mapping[str, Sequence[AffineCalibration]],
    folder: str,
) -> Results:
    """Evaluate all calibrations from one pass; raw logits and each class's accuracy are stored.

    Args:
        cfg (CfgNode): the model's config.
        model (nn.Module): uncalibrated, with its weights.
        dataset (str): a registered set of images.
        calibrations (Mapping): name -> a list with one calibration, or an empty one.
        folder (str): folder for the files.

    Returns:
        dict: name -> "image" -> metrics in percent; empty on all processes but the first.
    """
    stored = collect_logits(model, build_evaluation_loader(cfg, dataset))
    if stored is None:
        return {}
    stored.save(os.path.join(folder, "logits.safetensors"))
    counts = training_counts(cfg)
    results = evaluate_stored(model, stored, calibrations, counts)
    write_results(results, {}, dataset, counts, folder)
    return {name: {"image": result.as_dict()} for name, result in results.items()}


def write_results(
    results: Mapping[str, ImageResult],
    scores: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    dataset: str,
    counts: ClassCounts | None,
    folder: str,
) -> None:
    """Write per_class_NAME.csv, and predictions_SET.safetensors, the input of `logn report`.

    Args:
        results (Mapping): name of a calibration -> result on the data set.
        scores (Mapping): see `StoredPredictions.gather`.
        dataset (str): a registered set of images.
        counts (ClassCounts): counts of the training set; None if it is not available.
        folder (str): folder for the files.
    """
    names = MetadataCatalog.get(dataset).thing_classes
    for name, result in results.items():
        path = os.path.join(folder, as_file_name(f"per_class_{name}.csv"))
        result.to_csv(path, names, counts)
    stored = StoredPredictions.gather(results, scores, names, counts)
    stored.save(os.path.join(folder, predictions_name(dataset)))


def evaluate_stored(
    model: nn.Module,
    stored: StoredLogits,
    calibrations: Mapping[str, Sequence[AffineCalibration]],
    counts: ClassCounts | None,
) -> dict[str, ImageResult]:
    """Results of each calibration, from raw logits.

    Args:
        model (nn.Module): an `ImageClassifier`; its loss computes the scores.
        stored (StoredLogits): raw logits and labels.
        calibrations (Mapping): name -> a list with one calibration, or an empty one.
        counts (ClassCounts): counts of the training set; None if it is not available.
    """
    # Groups are by training images, as in ImageNet-LT; without counts there are none.
    model, groups = unwrapped(model), None if counts is None else class_groups(counts)
    return {
        name: evaluate_images(
            scores_of(model, each[0] if each else None, stored.logits), stored.labels, groups
        )
        for name, each in calibrations.items()
    }


def training_counts(cfg: CfgNode) -> ClassCounts | None:
    """Class counts of the training set; None if it is not available."""
    # An evaluation needs only weights and test images; without counts it has no groups.
    try:
        return class_counts(cfg.DATASETS.TRAIN)
    except (AttributeError, KeyError, OSError, ValueError) as error:
        logger.info("No accuracy by groups of training images: %s", error)
        return None


def image_table(results: Results) -> str:
    """The table of `one_pass_for_images`."""
    return accuracy_table({name: by_task["image"] for name, by_task in results.items()})
