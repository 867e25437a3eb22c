"""Telling unknown inputs from known ones: scores, their metrics, and calibration of confidence.

In-distribution (ID) inputs are those of the classes that were trained, out-of-distribution (OOD)
inputs are others. Everything here works on numpy arrays and imports numpy alone.
"""

from .confidence import Calibration, expected_calibration_error, fit_temperature
from .evaluate import OODResult, evaluate_ood, ood_table
from .metrics import (
    aupr_in,
    aupr_out,
    auroc,
    average_precision_in,
    average_precision_out,
    detection_error,
    fpr95_id_pos,
    fpr95_ood_pos,
)
from .scores import (
    OOD_SCORES,
    energy,
    log_softmax,
    max_logit,
    msp,
    normalized_logits,
    score_logits,
)

__all__ = [
    "OOD_SCORES",
    "Calibration",
    "OODResult",
    "aupr_in",
    "aupr_out",
    "auroc",
    "average_precision_in",
    "average_precision_out",
    "detection_error",
    "energy",
    "evaluate_ood",
    "expected_calibration_error",
    "fit_temperature",
    "fpr95_id_pos",
    "fpr95_ood_pos",
    "log_softmax",
    "max_logit",
    "msp",
    "normalized_logits",
    "ood_table",
    "score_logits",
]
