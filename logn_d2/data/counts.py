"""Class counts of registered training sets, and the check that data sets share their classes.

They work with every registered data set, including Detectron2's own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..core.fractal import fractal_dimensions_of
from ..errors import UserError
from ..frequency import ClassCounts, count_classes, frequency_groups
from .lvis_loader import lvis_mistakes_named

logger = logging.getLogger(__name__)


def check_same_classes(train_name: str, test_name: str) -> None:
    """Check that two registered sets have the same classes in the same order.

    Raises:
        ValueError: the classes differ; the message names the first difference.

    Example:
        >>> check_same_classes("lvis_v1_train", "lvis_v1_val")
    """
    train = list(MetadataCatalog.get(train_name).thing_classes)
    test = list(MetadataCatalog.get(test_name).thing_classes)
    if train == test:
        return
    first = next((i for i, (a, b) in enumerate(zip(train, test)) if a != b), None)
    if first is None:
        what = f"{len(train)} classes versus {len(test)}"
    else:
        what = f"class {first} is '{train[first]}' versus '{test[first]}'"
    raise UserError(
        f"{train_name} and {test_name} have different classes: {what}. Both jsons must list the "
        "same categories with the same ids, even those without objects."
    )


def class_counts(dataset_name: str | Sequence[str]) -> ClassCounts:
    """Count images and objects of each class of a training set.

    Args:
        dataset_name (str or sequence of str): registered name, or names such as
            ``cfg.DATASETS.TRAIN``, whose counts are added.

    Returns:
        ClassCounts: image_count and instance_count are int64 (K,) in class order. Crowds, and
        images with nothing else, are not counted.

    Raises:
        ValueError: there are no objects, or the sets have different classes.

    Example:
        >>> class_counts("lt_glyphs_tiny_train").image_count.max()  # doctest: +SKIP
        39
    """
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    if not names:
        raise UserError("No training set is named; set DATASETS.TRAIN.")
    for other in names[1:]:
        check_same_classes(names[0], other)
    class_names = None
    image_count = instance_count = num_images = num_records = 0
    for name in names:
        with lvis_mistakes_named([name]):
            records = DatasetCatalog.get(name)
        class_names = tuple(MetadataCatalog.get(name).thing_classes)
        classes = [
            [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)]
            for record in records
        ]
        # Images with an object, which are fewer than those of the file.
        counts, annotated = count_classes(classes, len(class_names)), sum(map(bool, classes))
        _compare_counts(name, counts)
        image_count, instance_count = image_count + counts[0], instance_count + counts[1]
        num_images, num_records = num_images + annotated, num_records + len(records)
    if instance_count.sum() == 0:
        raise UserError(
            f"The training set {', '.join(names)} has {num_records} images but no annotated "
            "object; class counts need at least one. Check the json's 'annotations'."
        )
    return ClassCounts(
        class_names,
        image_count,
        instance_count,
        num_images,
        groups=_own_groups(names, image_count),
        num_records=num_records,
        fractal_dimensions=functools.partial(fractal_dimensions, tuple(names)),
    )


def fractal_dimensions(dataset_name: str | Sequence[str]) -> np.ndarray:
    """Fractal dimension of the object positions of each class, as FRACAL uses it.

    `class_counts` stores this function with the counts, so that it is computed only when needed.

    Args:
        dataset_name (str or sequence of str): see `class_counts`.

    Returns:
        ndarray: (K,) float64, at least 1; see `fractal_dimensions_of`. Crowds are left out.

    Example:
        >>> fractal_dimensions("lt_glyphs_tiny_train").max()  # doctest: +SKIP
        1.9
    """
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    classes, centres = [], []
    for record in (record for name in names for record in DatasetCatalog.get(name)):
        objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        if not objects:
            continue
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
        # In shares of the image, so that images of different sizes can be compared.
        centres.append(corners.mean(axis=1) / (record["width"], record["height"]))
        classes += [a["category_id"] for a in objects]
    # The empty start serves sets without objects, which concatenate would refuse.
    x, y = np.concatenate([np.zeros((0, 2)), *centres]).T
    return fractal_dimensions_of(classes, x, y, len(MetadataCatalog.get(names[0]).thing_classes))


def _own_groups(names: Sequence[str], image_count: np.ndarray) -> np.ndarray | None:
    """Groups from the sets' own limits or json, (K,); None if they define none."""
    metadata = MetadataCatalog.get(names[0])
    # Limits also apply to the summed counts of several sets, the letters of a json only to its own.
    limits = metadata.get("frequency_limits")
    if limits is not None:
        return frequency_groups(image_count, *limits)
    letters = metadata.get("class_groups") if len(names) == 1 else None
    return None if letters is None else np.array(letters)


def _compare_counts(name: str, counts: np.ndarray) -> None:
    """Warn if the json's own counts differ from the counted ones."""
    meta = MetadataCatalog.get(name)
    for key, counted in zip(("image_count", "instance_count"), counts):
        told = meta.get(f"class_{key}")
        if told is None or len(told) != len(counted):
            continue
        told = np.array([entry[key] for entry in sorted(told, key=lambda entry: entry["id"])])
        different = np.flatnonzero(told != counted)
        if different.size:
            first = int(different[0])
            logger.warning(
                "%s: the json's %s differs from the annotations for %d of %d classes (class '%s': "
                "%d in the json, %d counted); using the annotations.",
                name,
                key,
                different.size,
                len(counted),
                meta.thing_classes[first],
                told[first],
                counted[first],
            )
