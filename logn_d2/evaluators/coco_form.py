"""COCO's metrics, and AP of classes that are rare, common or frequent in training.

AP of a data set in COCO format is pycocotools' own, through Detectron2's evaluator. COCO has no
groups of classes; here the number of training images defines them, as in LVIS.

Shapes: K foreground classes. Results are in percent.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from ..data import class_counts
from ..errors import UserError
from ..frequency import frequency_groups as groups_by_images
from ..lvis.checks import check_groups
from ..lvis.result import class_members, group_members, known_mean, write_csv

logger = logging.getLogger(__name__)


class COCOFormEvaluator(COCOEvaluator):
    """Detectron2's `COCOEvaluator` that also reports APr, APc and APf, or AP of any groups.

    AP of a group is the mean of its classes' AP, so boxes and masks follow COCO's rule exactly.
    With `output_dir` it also writes `per_class_bbox.csv` and `per_class_segm.csv`.

    Args:
        dataset_name (str): a registered data set in COCO format, with unique class names.
        train_datasets (str | Sequence[str] | None): registered training sets whose images are
            counted: rare in up to 10 images, common in up to 100, else frequent.
        frequency_groups (Sequence[str] | None): (K,) group of each class, overriding the counts.
        class_groups (Mapping | None): further groups: name -> class names or category ids.
        output_dir (str | None): output folder.
        kwargs (Any): as for `COCOEvaluator`.

    Raises:
        ValueError: groups for other classes, or several classes with the same name.

    Example:
        >>> COCOFormEvaluator("coco_2017_val", train_datasets="coco_2017_train")  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        train_datasets: str | Sequence[str] | None = None,
        frequency_groups: Sequence[str] | None = None,
        class_groups: Mapping[str, Sequence[str | int]] | None = None,
        output_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset_name, output_dir=output_dir, **kwargs)
        self._group_folder = output_dir
        metadata = MetadataCatalog.get(dataset_name)
        # Refused here: after inference, equal names would cost the whole pass.
        self._names = _different(metadata.get("thing_classes", ()), dataset_name)
        if frequency_groups is None and train_datasets is not None:
            # Counted before inference, so that a missing training set is noticed early.
            frequency_groups = training_groups(train_datasets)
        self._groups = None if frequency_groups is None else np.asarray(frequency_groups)
        mapping = metadata.get("thing_dataset_id_to_contiguous_id")
        ids = range(len(self._names))
        if mapping is not None and self._names:
            # In the order of the class indices, in which `class_members` expects the ids.
            ids = sorted(mapping, key=mapping.get)
        # Detectron2 gives the n-th name to the n-th category by id, whatever the mapping.
        self._places = np.argsort(np.argsort(list(ids)))
        members = class_members(class_groups or {}, self._names, list(ids))
        check_groups(self._groups, len(self._names), members)
        self._members = members if self._groups is None else group_members(self._groups, members)

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep detections like `COCOEvaluator`, but sort those of each image.

        Among equal scores, pycocotools ranks the first highest. Here box and mask decide, so that
        the order of a model's detections has no effect.
        """
        # Only the predictions of this batch: the parent appends to one list.
        before = len(self._predictions)
        super().process(inputs, outputs)
        for prediction in self._predictions[before:]:
            prediction.get("instances", []).sort(key=_rank)

    def evaluate(self, *args: Any, **kwargs: Any) -> OrderedDict[str, Any]:
        """Evaluate like `COCOEvaluator`, then add "AP" with the name of each group."""
        results = super().evaluate(*args, **kwargs)
        # Detectron2 gives results to the first process alone.
        if not comm.is_main_process():
            return results
        # Keypoints have no classes to group.
        for task in {"bbox", "segm"} & set(results or {}):
            ap = self._class_ap(results[task])
            own = {f"AP-{name}": value for name, value in zip(self._names, ap.tolist())}
            results[task].update({name: own[name] for name in own if name in results[task]})
            results[task].update(
                (f"AP{name}", known_mean(ap[members])) for name, members in self._members.items()
            )
            if len(ap):
                self._write(task, ap)
        return results

    def _class_ap(self, metrics: Mapping[str, float]) -> np.ndarray:
        """AP of each class in percent, (K,)."""
        if len(self._names) == 1:  # Detectron2 lists no classes if there is only one
            return np.array([metrics["AP"]])
        # By name, which is all that Detectron2 keeps; hence unique names.
        given = np.array([metrics.get(f"AP-{name}", np.nan) for name in self._names])
        return given[self._places]

    def _write(self, task: str, ap: np.ndarray) -> None:
        if self._group_folder is None:
            return
        groups = [""] * len(ap) if self._groups is None else self._groups.tolist()
        rows = [
            {"class": name, "group": group, "AP": value}
            for name, group, value in zip(self._names, groups, ap.tolist(), strict=True)
        ]
        path = os.path.join(self._group_folder, f"per_class_{task}.csv")
        write_csv(path, rows, ("class", "group", "AP"))


def training_groups(train_datasets: str | Sequence[str]) -> np.ndarray:
    """Return LVIS's group of each class by its number of training images.

    Args:
        train_datasets (str | Sequence[str]): registered names.

    Returns:
        ndarray: (K,) of "r", "c", "f".

    Example:
        >>> training_groups("lt_glyphs_tiny_train")[0]  # doctest: +SKIP
        'c'
    """
    return groups_by_images(class_counts(train_datasets).image_count)


def _rank(result: Mapping[str, Any]) -> tuple:
    """Sort key of the results of an image, see `Detections.canonical`."""
    mask = result.get("segmentation", {}).get("counts", "")
    # A total order: with ties left, AP would depend on the order of a batch.
    return result["category_id"], -result["score"], result["bbox"], mask


def _different(names: Sequence[str], dataset_name: str) -> tuple[str, ...]:
    """Refuse classes with the same name, because results are stored by name."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError(
            f"'{dataset_name}' has {len(twice)} class names that several classes share, the first "
            f"is {twice[0]!r}. Rename them in its json: COCO's results are by name."
        )
    return tuple(names)
