"""Scores that separate unknown inputs from known ones, their metrics, and confidence calibration.

In-distribution (ID) inputs show the classes of the training, out-of-distribution (OOD) inputs show
others. The functions work on numpy arrays, and the package imports only numpy.
"""

from .confidence import Calibration, expected_calibration_error, fit_temperature
from .evaluate import OODResult, evaluate_ood, in_percent, ood_table, resample_ood, score_figures
from .metrics import (
    aupr_in,
    aupr_out,
    auroc,
    average_precision_in,
    average_precision_out,
    detection_error,
    fpr95_id_pos,
    fpr95_ood_pos,
    roc_curve,
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
    "in_percent",
    "expected_calibration_error",
    "fit_temperature",
    "fpr95_id_pos",
    "fpr95_ood_pos",
    "log_softmax",
    "max_logit",
    "msp",
    "normalized_logits",
    "ood_table",
    "resample_ood",
    "roc_curve",
    "score_figures",
    "score_logits",
]
