"""`logn fold`: write a checkpoint with the calibration folded into its weights."""

from __future__ import annotations

import argparse
import copy
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor, nn

from ..analysis.run_table import markdown
from ..data.mappers import TestResize
from ..engine import load_config, short_errors
from ..engine.checkpoint import load_model
from ..engine.checks import check_classes
from ..errors import MissingFileError, UserError
from ..files import atomic_write, images_in, write_text
from ..modeling import (
    LogitRecorder,
    attach,
    fold,
    parts_of_logn_d2,
    plain_config,
)
from ..modeling.attach import calibration_of
from ..modeling.build import TrainingClassCounts, known_class_names
from ..sites import SiteRecorder, config_site, known_site, site_detector
from ..source import source_of

# Boxes of two models with a larger IoU are the same box, except for rounding.
SAME_BOX = 0.999


def run(args: argparse.Namespace) -> int:
    """Fold, compare, write; return the exit status."""
    with short_errors():
        cfg = setup(args)
        model, _ = load_model(cfg)
        calibrate(cfg, model)
        plain_cfg, folded = fold_copy(cfg, model)
        images = read_images(cfg, args.images, args.num_images)
        difference = compare(model, folded, images, cfg)
        print(difference)
        difference.check(args.tolerance)
        write(folded, plain_cfg, Path(args.output))
    return 0


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of the command line, which registers data sets."""
    cfg = load_config(args.config_file, args.opts, args.imports)
    cfg.MODEL.LOGN.CALIBRATION = cfg.MODEL.LOGN.CALIBRATION or "logn"
    check_classes(cfg)
    return cfg


def calibrate(cfg: CfgNode, model: nn.Module) -> None:
    """Attach the calibration of the config.

    Raises:
        StatisticsError: the statistics belong to another model or to other weights.
    """
    attach(
        model,
        cfg.MODEL.LOGN.STATISTICS or None,
        calibration=cfg.MODEL.LOGN.CALIBRATION,
        counts=TrainingClassCounts(cfg),
        class_names=known_class_names(cfg.DATASETS.TRAIN, config_site(cfg).classes_in(cfg)),
    )


def fold_copy(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, nn.Module]:
    """The config and model to write, with the model rebuilt from config and weights."""
    # Rebuilt, because the comparison must run what a user will load, not the object that was
    # folded.
    folded = fold(copy.deepcopy(model))
    plain_cfg = plain_config(cfg, folded)
    plain = source_of(plain_cfg).model().eval()
    plain.load_state_dict(folded.state_dict())
    return plain_cfg, plain


def read_images(cfg: CfgNode, source: str | None, count: int) -> list[dict[str, Any]]:
    """Read inputs for the model, resized as at test.

    Args:
        cfg (CfgNode): INPUT sets the size, DATASETS.TEST the images if ``source`` is None.
        source (str): a folder or the name of a registered data set.
        count (int): largest number of images.

    Raises:
        FileNotFoundError: there are no images.
    """
    # Lazily: a second data set is not loaded if the first has enough images.
    files = _image_files([source] if source else cfg.DATASETS.TEST)
    resize = TestResize(cfg)
    inputs = []
    for file in itertools.islice(files, count):
        image = read_image(file, format=cfg.INPUT.FORMAT)
        height, width = image.shape[:2]
        inputs.append({"image": resize(image), "height": height, "width": width, "file_name": file})
    if not inputs:
        raise MissingFileError(
            f"There are no images in {source or 'the data sets of DATASETS.TEST'} for the "
            "comparison. Give --images FOLDER."
        )
    return inputs


def _image_files(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if os.path.isdir(source):
            yield from map(str, images_in(source))
        elif source in DatasetCatalog.list():
            yield from (record["file_name"] for record in DatasetCatalog.get(source))
        else:
            raise MissingFileError(
                f"'{source}' is neither a folder nor a registered data set. Give --images FOLDER."
            )


@dataclass
class Difference:
    """Differences between the folded and the calibrated model.

    Attributes:
        images (int): number of compared images.
        rois (int): number of compared RoIs, over all cascade stages.
        scores (float): largest difference in a class probability of a RoI.
        detections (int): number of detections of the calibrated model.
        one_sided (int): number of detections of only one model.
        detection_scores (float): largest difference in a detection's score; for a one-sided
            detection, the change in its score after which both models or neither would have it.
    """

    images: int = 0
    rois: int = 0
    scores: float = 0.0
    detections: int = 0
    one_sided: int = 0
    detection_scores: float = 0.0

    def __str__(self) -> str:
        rows = [
            ("images", f"{self.images}"),
            ("RoIs, all stages", f"{self.rois}"),
            ("largest difference of class probabilities", f"{self.scores:.2e}"),
            ("detections", f"{self.detections}"),
            ("detections of one model only", f"{self.one_sided}"),
            ("largest difference of detection scores", f"{self.detection_scores:.2e}"),
        ]
        head = ["folded against calibrated", "value"]
        return markdown(rows, head)

    def check(self, tolerance: float) -> None:
        """Raise ValueError if the models differ, or if nothing was compared."""
        if self.rois == 0:
            raise UserError(
                "The images have no proposals, so nothing was compared. Give other images."
            )
        largest = max(self.scores, self.detection_scores)
        if not largest <= tolerance:  # NaN fails this comparison
            raise UserError(
                f"The folded model's scores differ from the calibrated one's by {largest:.2e}, "
                f"more than --tolerance {tolerance:g}. Nothing was written. A predictor that "
                "changes the logits after its cls_score can't be folded: attach the calibration."
            )


@torch.no_grad()
def compare(
    calibrated: nn.Module, folded: nn.Module, inputs: Sequence[dict[str, Any]], cfg: CfgNode
) -> Difference:
    """Run both models on the images.

    Raises:
        ValueError: the models have different proposals for an image.
    """
    difference = Difference(images=len(inputs))
    for image in inputs:
        # Region by region first: detections alone would hide classes below the threshold.
        for mine, theirs in zip(*(_stage_probs(m, image) for m in (calibrated, folded))):
            if mine.shape != theirs.shape:
                raise UserError(
                    f"The models have {len(mine)} and {len(theirs)} RoIs on {image['file_name']}: "
                    "their proposals are not reproducible, so they can't be compared."
                )
            difference.rois += len(mine)
            difference.scores = _larger(difference.scores, (mine - theirs).abs())
        mine, theirs = (model([image])[0]["instances"] for model in (calibrated, folded))
        # In both directions: a detection may be missing on either side.
        changes = [_score_changes(mine, theirs, cfg), _score_changes(theirs, mine, cfg)]
        difference.detections += len(mine)
        for matched, change in changes:
            difference.one_sided += int((~matched).sum())
            difference.detection_scores = _larger(difference.detection_scores, change)
    return difference


def _stage_probs(model: nn.Module, image: dict[str, Any]) -> list[Tensor]:
    """Class probabilities of each stage, S tensors (R, C)."""
    detector = site_detector(model)
    if detector is not None:
        return [_site_scores(detector, image)]
    stages = LogitRecorder(model, "proposals")([image]).stages
    return [torch.cat(list(s.predictor.predict_probs(s.predictions, s.proposals))) for s in stages]


def _site_scores(detector: nn.Module, image: dict[str, Any]) -> Tensor:
    """(R, K) scores of all candidates of a detector without box predictors."""
    site = replace(known_site(detector), chosen=None)  # both models choose by their own scores
    (stage,) = SiteRecorder(detector, site, "proposals")([image]).stages
    calibration = calibration_of(site.owner)
    return site.scores(stage.logits if calibration is None else calibration(stage.logits))


def _score_changes(mine: Instances, theirs: Instances, cfg: CfgNode) -> tuple[Tensor, Tensor]:
    """Whether the other model has each of N detections, and the difference in score.

    A detection may legitimately be missing if its score is close to that of another detection of
    its class, which can suppress it, or close to the limit below which detections are dropped.

    Returns:
        tuple[Tensor, Tensor]: (N,) bool, and (N,) difference of scores.
    """
    # In a full image the worst kept score is the limit, otherwise the score threshold.
    full = len(theirs) >= cfg.TEST.DETECTIONS_PER_IMAGE > 0
    limit = theirs.scores.min() if full else config_site(cfg).threshold_in(cfg)
    to_limit = (mine.scores - limit).clamp(min=0)
    if len(mine) == 0 or len(theirs) == 0:
        return torch.zeros_like(to_limit, dtype=torch.bool), to_limit
    apart = (mine.scores[:, None] - theirs.scores).abs()
    same_class = mine.pred_classes[:, None] == theirs.pred_classes
    same = same_class & (pairwise_iou(mine.pred_boxes, theirs.pred_boxes) >= SAME_BOX)
    matched = same.any(dim=1)
    to_same = apart.masked_fill(~same, torch.inf).amin(dim=1)
    to_class = apart.masked_fill(~same_class, torch.inf).amin(dim=1)
    return matched, torch.where(matched, to_same, torch.minimum(to_class, to_limit))


def _larger(largest: float, values: Tensor) -> float:
    """The maximum; NaN if any value is NaN, which Python's max would not guarantee."""
    return float(torch.cat([values.flatten().cpu(), torch.tensor([largest])]).max())


def write(model: nn.Module, cfg: CfgNode, output: Path) -> None:
    """Write ``output`` and the config beside it."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    # In the form of Detectron2's checkpoints, with tensors that load without a GPU.
    with atomic_write(output) as temporary:
        torch.save({"model": state}, temporary)
    lazy_file = source_of(cfg).file
    if lazy_file:
        print(f"Wrote {output}: train.init_checkpoint of {lazy_file}.")
    else:
        cfg.MODEL.WEIGHTS, config = str(output), output.with_suffix(".yaml")
        write_text(config, cfg.dump())
        print(f"Wrote {output} and {config}.")
    parts = parts_of_logn_d2(model)
    if not parts:
        print("No part of logn_d2 is needed to load it.")
        return
    print(f"Loading it needs logn_d2 for: {', '.join(parts)}.")
    if not lazy_file:
        print("Call logn_d2.add_logn_config(cfg) before the config is read.")
