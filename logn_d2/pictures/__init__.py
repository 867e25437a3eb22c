"""Pictures of an image's detections before and after calibration."""

from .before_after import BeforeAfter, Shown
from .side_by_side import draw_side_by_side, enlarged

__all__ = [
    "BeforeAfter",
    "Shown",
    "draw_side_by_side",
    "enlarged",
]
