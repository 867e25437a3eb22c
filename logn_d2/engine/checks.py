"""Checks of a config that run before any long job."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import torch
import tqdm
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..collection import LogitStatisticsCollector
from ..collection.collector import gathers_posteriors
from ..core import (
    ClassCounts,
    ClassificationLoss,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    build_calibration,
    build_loss,
    parse_calibration,
)
from ..core.calibration_registry import CalibrationInputs
from ..core.losses import build_loss_without_background
from ..data import check_same_classes, image_problem
from ..errors import MissingFileError, UnknownNameError, UserError
from ..lvis import LvisGroundTruth
from ..lvis.checks import check_groups
from ..modeling.build import known_class_names
from ..sites import ROI_HEADS, config_site
from .images import classifies_images


def check_output_folder(folder: str) -> None:
    """Create the folder if necessary, and check that files can be written to it.

    Raises:
        OSError: the folder can't be created or written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        # Trying is the only sure way: permissions do not tell of full or read-only disks.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"The folder {folder} can't be written ({error}). Choose another one with OUTPUT_DIR "
            "FOLDER at the end of the command."
        ) from error


def check_datasets(names: Sequence[str]) -> None:
    """Check that data sets are registered and that their files exist.

    Raises:
        FileNotFoundError: annotations or the image folder are missing.
        KeyError: a name is not registered.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            raise UnknownNameError(
                f"The data set '{name}' is not registered. Name it in MODEL.LOGN.DATASETS as "
                f"[{name}, JSON FILE, IMAGE FOLDER], or correct DATASETS.TRAIN and DATASETS.TEST."
            )
        metadata = MetadataCatalog.get(name)
        for key, what in (("json_file", "annotations"), ("image_root", "image folder")):
            path = metadata.get(key)
            # An address can't be checked without fetching it.
            if path and "://" not in path and not os.path.exists(path):
                hint = vars(metadata).get("_hint") or "See datasets/README.md."
                raise MissingFileError(f"The {what} of '{name}' are missing: {path}. {hint}")


def check_classes(cfg: CfgNode, names: Sequence[str] = ()) -> None:
    """Check that data sets and model have the same classes in the same order.

    If the data set has one category more than the model, an index means different classes in the
    two, and every result belongs to the wrong class. Training sets are checked only if their files
    are present: showing or folding a model works without a data set.

    Args:
        cfg (CfgNode): the model's config.
        names (Sequence[str]): registered data sets that the job needs.

    Raises:
        ValueError: the classes differ; the message names the first difference.
    """
    site = config_site(cfg)
    num_classes = site.classes_in(cfg)
    names = list(dict.fromkeys([*filter(_is_at_hand, cfg.DATASETS.TRAIN), *names]))
    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise UserError(
                f"'{name}' has {len(classes)} classes, {site.num_classes} is {num_classes}. "
                f"Set it to {len(classes)}, or name the data set of this model."
            )
        if classes is not None and names[0] != name:
            check_same_classes(names[0], name)


def _is_at_hand(name: str) -> bool:
    if name not in DatasetCatalog.list():
        return False
    path = MetadataCatalog.get(name).get("json_file")
    return path is not None and os.path.isfile(path)


def check_ground_truth(cfg: CfgNode) -> None:
    """Read the evaluation's ground truth, so that its errors show up before the training.

    The ground truth stays in the reader's cache, where the evaluation finds it.

    Raises:
        ValueError: the evaluation would refuse an annotation or a group.
    """
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        path = metadata.get("json_file")
        if metadata.get("evaluator_type") == "lvis" and path and os.path.isfile(path):
            # With the arguments of the evaluation, or its cache would not serve it.
            truth = LvisGroundTruth.from_json(path, masks=cfg.MODEL.MASK_ON)
            check_groups(truth.groups, truth.num_classes, {})


def check_masks(cfg: CfgNode) -> None:
    """Check that the training sets have the masks that the config trains.

    Raises:
        ValueError: no object has a mask, or a mask is in run lengths and INPUT.MASK_FORMAT is
            polygon.
    """
    if not cfg.MODEL.MASK_ON:
        return
    for name in cfg.DATASETS.TRAIN:
        objects = [o for r in DatasetCatalog.get(name) for o in r.get("annotations", ())]
        # An empty list stands for an object without a mask in a set with masks.
        masks = [o["segmentation"] for o in objects if o.get("segmentation")]
        if objects and not masks:
            raise UserError(
                f"None of the {len(objects)} objects of '{name}' has a mask, but MODEL.MASK_ON is "
                "True. Set it to False to train only boxes, or add masks to the objects."
            )
        if cfg.INPUT.MASK_FORMAT == "bitmask" and len(masks) < len(objects):
            raise UserError(
                f"{len(objects) - len(masks)} of the {len(objects)} objects of '{name}' have no "
                "mask, which Detectron2 can't train with INPUT.MASK_FORMAT bitmask. Set it to "
                "polygon, which skips these objects, or remove them from the json."
            )
        run_lengths = sum(isinstance(mask, dict) for mask in masks)
        if run_lengths and cfg.INPUT.MASK_FORMAT == "polygon":
            raise UserError(
                f"{run_lengths} of the {len(masks)} masks of '{name}' are run lengths, but "
                "INPUT.MASK_FORMAT is polygon. Set it to bitmask, which takes both."
            )


def check_images(names: Sequence[str], num_images: int) -> None:
    """Load data sets and read the headers of their first images.

    Args:
        names (Sequence[str]): registered data sets.
        num_images (int): images to read of each data set; 0 reads none.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: an image can't be read, is truncated, or has another size than in the json.
    """
    for name in names:
        records = DatasetCatalog.get(name)[:num_images]
        # On its own line, since it takes seconds to minutes on a slow disk.
        for record in tqdm.tqdm(records, f"images of {name}", disable=len(records) < 1000):
            path = record["file_name"]
            problem = None if "://" in path else image_problem(record)
            if problem and not os.path.isfile(path):
                raise MissingFileError(
                    f"An image of '{name}' is missing: {path}. See datasets/README.md, or set "
                    "DETECTRON2_DATASETS to the folder that has the data sets."
                )
            if problem:
                raise UserError(
                    f"An image of '{name}' can't be used: {problem}. Repair the file or remove "
                    "it from the json; `logn data check` checks all images."
                )


def check_weights(weights: str) -> None:
    """Check that a local weights file exists; addresses are not checked.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise MissingFileError(f"The weights are missing: there is no file {weights}.")


def check_calibration(
    cfg: CfgNode, text: str, has_statistics: bool, *, collects: bool = False
) -> set[str]:
    """Check the name and the options of a calibration, and that its inputs are available.

    Args:
        cfg (CfgNode): the model's config.
        text (str): for example "norcal(gamma=0.6)"; "" for none.
        has_statistics (bool): whether the run will have statistics.
        collects (bool): whether the run collects them itself, by MODEL.LOGN.COLLECT.

    Returns:
        set[str]: the inputs that it uses, of "statistics", "counts" and "weights".

    Raises:
        KeyError: no calibration has this name.
        ValueError: an option is wrong, statistics are missing, or the calibration is not defined
            for the scores of this site.
    """
    if not text:
        return set()
    parse_calibration(text)
    site, collect = config_site(cfg), cfg.MODEL.LOGN.COLLECT
    # Stand-ins of the right shapes: reading the counts takes minutes, the statistics hours.
    num_classes = site.classes_in(cfg)
    columns = num_classes + (site.background != "none")
    ones = torch.ones(columns, dtype=torch.float64)
    posteriors = PosteriorMoments(columns)
    # Of a given file it is not known yet which posteriors it has.
    matched = not collects or collect.POPULATION != "proposals"
    posteriors.update(ones[None], ones[None], torch.tensor([num_classes]) if matched else None)
    gathers = not collects or gathers_posteriors(collect.ESTIMATOR, collect.POPULATION)
    # Two logits of each class: with fewer, a class counts as unusable.
    stage = StageStatistics(
        mean=-ones, var=ones, count=2 * ones.long(), posteriors=posteriors if gathers else None
    )
    count = ones[:num_classes].long().numpy()
    names = tuple(map(str, range(num_classes)))
    counts = ClassCounts(names, count, count, num_images=1, fractal_dimensions=count)
    inputs = CalibrationInputs(
        num_classes,
        stage if has_statistics else None,
        counts,
        background=site.background,
        classifier=lambda: (ones[:, None], ones),
    )
    build_calibration(text, inputs).check_activation(site.activation == "sigmoid")
    return inputs.used


def check_loss_options(cfg: CfgNode) -> None:
    """Check the name of the loss in MODEL.LOGN.LOSS, and the names and values of its options.

    Raises:
        KeyError: no loss has this name.
        ValueError: an option or its value is wrong, or the loss needs a background.
    """
    build = build_loss_without_background if classifies_images(cfg) else build_loss
    # Counts are not given: reading them takes minutes, and no option depends on them.
    if cfg.MODEL.LOGN.LOSS:
        build(cfg.MODEL.LOGN.LOSS, config_site(cfg).classes_in(cfg))


def check_loss(cfg: CfgNode, model: nn.Module) -> None:
    """Check that the model trains with the loss that its config names.

    Raises:
        ValueError: the model's heads ignore MODEL.LOGN.LOSS.
    """
    if not cfg.MODEL.LOGN.LOSS or any(isinstance(m, ClassificationLoss) for m in model.modules()):
        return
    if config_site(cfg) is not ROI_HEADS:
        raise UserError(
            f"MODEL.LOGN.LOSS is {cfg.MODEL.LOGN.LOSS}, but a {cfg.MODEL.META_ARCHITECTURE} trains "
            "with its own loss. Leave MODEL.LOGN.LOSS empty, or train an R-CNN."
        )
    raise UserError(
        f"MODEL.LOGN.LOSS is {cfg.MODEL.LOGN.LOSS}, but MODEL.ROI_HEADS.NAME is "
        f"{cfg.MODEL.ROI_HEADS.NAME}, which has Detectron2's loss. Set LogNROIHeads, "
        "LogNCascadeROIHeads or LogNRes5ROIHeads, or leave MODEL.LOGN.LOSS empty."
    )


def check_collection_settings(cfg: CfgNode) -> None:
    """Check the settings in MODEL.LOGN.COLLECT, alone and together.

    Raises:
        ValueError: a setting does not exist, or two of them exclude each other.
    """
    node = cfg.MODEL.LOGN.COLLECT
    # The collector's own checks, without a pass.
    description = LogitStatistics(
        (), (), population=node.POPULATION, estimator=node.ESTIMATOR, stop_at=node.STOP_AT
    )
    LogitStatisticsCollector(description)


def check_statistics(cfg: CfgNode, path: str) -> LogitStatistics:
    """Read a statistics file and compare it with the config.

    The fingerprint is compared later, when the weights are loaded.

    Raises:
        FileNotFoundError: there is no such file.
        StatisticsError: the file is damaged, or has other classes.
    """
    statistics = LogitStatistics.load(path)
    num_classes = config_site(cfg).classes_in(cfg)
    statistics.check(
        num_classes=num_classes,
        # A config does not tell how many classifiers its heads have.
        num_stages=len(statistics.stages),
        class_names=known_class_names(cfg.DATASETS.TEST, num_classes),
    )
    return statistics
