"""Data sets in LVIS or COCO format: registration, checks, class counts."""

from .check import DatasetReport, check_dataset, image_problem
from .counts import check_same_classes, class_counts, fractal_dimensions
from .kept import records_kept, release_records
from .registration import load_lvis_form, register_from_config, register_lvis_form
from .unknown_images import images_without

__all__ = [
    "DatasetReport",
    "check_dataset",
    "check_same_classes",
    "class_counts",
    "fractal_dimensions",
    "image_problem",
    "images_without",
    "load_lvis_form",
    "records_kept",
    "release_records",
    "register_from_config",
    "register_lvis_form",
]
