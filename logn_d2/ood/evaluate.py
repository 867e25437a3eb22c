"""All metrics of one score on a set of ID and a set of OOD inputs.

Shapes: N ID inputs, M OOD inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from . import metrics

__all__ = ["OODResult", "evaluate_ood", "ood_table"]


@dataclass(frozen=True)
class OODResult:
    """The result of `evaluate_ood`; shares in [0, 1]. `logn_d2.ood.metrics` defines each metric.

    Attributes:
        auroc (float): area under the ROC curve; 0.5 for random scores.
        aupr_in, aupr_out (float): area under precision and recall, trapezoidal rule.
        ap_in, ap_out (float): average precision.
        fpr95_id_pos, fpr95_ood_pos (float): false positive rates under both conventions.
        detection_error (float): error at the best threshold.
        num_id, num_ood (int): N and M.
        distinct (float): share of different values among all scores; a share well below 1 means
            many ties.
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    ap_in: float
    ap_out: float
    fpr95_id_pos: float
    fpr95_ood_pos: float
    detection_error: float
    num_id: int
    num_ood: int
    distinct: float

    def as_dict(self) -> dict[str, float]:
        """The attributes as a dict."""
        return asdict(self)


def evaluate_ood(id_scores: ArrayLike, ood_scores: ArrayLike) -> OODResult:
    """Measures how well a score separates ID from OOD inputs.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> result = evaluate_ood([4.0, 3.0, 1.0], [2.0, 0.0])
        >>> round(result.auroc, 3), result.fpr95_id_pos
        (0.833, 0.5)
    """
    sides = np.asarray(id_scores), np.asarray(ood_scores)
    values = {
        "auroc": metrics.auroc(*sides),
        "aupr_in": metrics.aupr_in(*sides),
        "aupr_out": metrics.aupr_out(*sides),
        "ap_in": metrics.average_precision_in(*sides),
        "ap_out": metrics.average_precision_out(*sides),
        "fpr95_id_pos": metrics.fpr95_id_pos(*sides),
        "fpr95_ood_pos": metrics.fpr95_ood_pos(*sides),
        "detection_error": metrics.detection_error(*sides),
    }
    together = np.concatenate(sides)
    return OODResult(
        **values,
        num_id=len(sides[0]),
        num_ood=len(sides[1]),
        distinct=len(np.unique(together)) / len(together),
    )


def ood_table(results: Mapping[str, OODResult]) -> str:
    """A table in Markdown, in percent.

    Args:
        results (Mapping): name of a row -> its metrics.

    Example:
        >>> print(ood_table({"msp": evaluate_ood([1.0], [0.0])}))
        | score | AUROC | AUPR in | AUPR out | FPR95, ID pos. | FPR95, OOD pos. | det. error |
        |:--|--:|--:|--:|--:|--:|--:|
        | msp | 100.00 | 100.00 | 100.00 | 0.00 | 0.00 | 0.00 |
    """
    names = ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos", "detection_error")
    heads = ("AUROC", "AUPR in", "AUPR out", "FPR95, ID pos.", "FPR95, OOD pos.", "det. error")
    lines = [f"| score | {' | '.join(heads)} |", "|:--|" + "--:|" * len(heads)]
    for name, result in results.items():
        cells = " | ".join(f"{100 * getattr(result, each):.2f}" for each in names)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
