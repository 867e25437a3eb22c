"""The LVIS rule on arrays: detections, ground truth, matching, AP. Needs numpy and pycocotools.

Data sets in COCO format, where every image is annotated for every class, are a special case.
"""

from .checks import check_detections, check_groups
from .detections import Detections, image_id_array
from .evaluate import evaluate_lvis
from .fixed_ap import FixedApResult, evaluate_fixed_ap, pooled_ap
from .ground_truth import LvisGroundTruth
from .masks import RleMasks
from .matches import LvisMatches, match_lvis
from .result import LvisResult, class_members, group_members, write_csv

__all__ = [
    "Detections",
    "FixedApResult",
    "LvisGroundTruth",
    "LvisMatches",
    "LvisResult",
    "RleMasks",
    "check_detections",
    "check_groups",
    "class_members",
    "evaluate_fixed_ap",
    "evaluate_lvis",
    "group_members",
    "image_id_array",
    "match_lvis",
    "pooled_ap",
    "write_csv",
]
