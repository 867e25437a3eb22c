"""Data sets: LVIS-form registration of any vocabulary, and the drawn benchmark LT-Glyphs."""

from .check import DatasetReport, check_dataset, image_problem
from .counts import check_same_classes, class_counts
from .glyphs import draw_glyphs, register_glyphs, verify_glyphs
from .registration import load_lvis_form, register_from_config, register_lvis_form

__all__ = [
    "DatasetReport",
    "check_dataset",
    "check_same_classes",
    "class_counts",
    "draw_glyphs",
    "image_problem",
    "load_lvis_form",
    "register_from_config",
    "register_glyphs",
    "register_lvis_form",
    "verify_glyphs",
]
