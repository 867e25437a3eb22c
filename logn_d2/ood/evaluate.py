"""All metrics of one score on a set of ID and a set of OOD inputs.

Shapes: N ID inputs, M OOD inputs, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import metrics


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
    """Measure how well a score separates ID from OOD inputs.

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
    known, unknown = metrics.score_histograms(id_scores, ood_scores)
    num_id, num_ood = int(known.sum()), int(unknown.sum())
    return OODResult(
        **metrics.all_metrics(known, unknown),
        num_id=num_id,
        num_ood=num_ood,
        distinct=len(known) / (num_id + num_ood),
    )


def in_percent(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Shares in percent; whole numbers and thresholds as they are.

    Args:
        figures (Mapping): name -> figure, or such a mapping.

    Example:
        >>> in_percent({"auroc": 0.9, "num_id": 3, "ap": {"msp": 0.5}})
        {'auroc': 90.0, 'num_id': 3, 'ap': {'msp': 50.0}}
    """
    return {
        name: in_percent(value)
        if isinstance(value, Mapping)
        else (value if isinstance(value, int) or name == "threshold" else 100 * value)
        for name, value in figures.items()
    }


def score_figures(by_score: Mapping[str, OODResult]) -> dict[str, float]:
    """ "SCORE METRIC" -> percent, or a number of images, as in result files.

    Example:
        >>> found = score_figures({"msp": evaluate_ood([4.0, 3.0], [1.0, 0.0])})
        >>> found["msp auroc"], found["msp num_ood"]
        (100.0, 2)
    """
    return {
        f"{score} {metric}": value
        for score, result in by_score.items()
        for metric, value in in_percent(result.as_dict()).items()
    }


def resample_ood(
    id_scores: ArrayLike, ood_scores: ArrayLike, samples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Bootstrap: draw as many ID and OOD inputs with replacement, and evaluate each resample.

    With the same seed, scores of the same inputs have the same draws, so differences are paired.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).
        samples (int): B.
        seed (int): seed of the draws.

    Returns:
        dict: name, as in `OODResult`, -> (B,) metric in [0, 1].

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> resample_ood([4.0, 3.0], [1.0, 0.0], samples=3)["auroc"].tolist()
        [1.0, 1.0, 1.0]
    """
    scores = np.concatenate([np.asarray(id_scores), np.asarray(ood_scores)])
    metrics.score_histograms(id_scores, ood_scores)  # checks them
    # A resample is a new histogram over the same different scores, so only this step sorts.
    places = np.split(np.unique(scores, return_inverse=True)[1], [len(np.asarray(id_scores))])
    rng, rows = np.random.default_rng(seed), []
    for _ in range(samples):
        drawn = [place[rng.integers(len(place), size=len(place))] for place in places]
        # One length for both sides; `all_metrics` leaves out scores without inputs.
        counts = [np.bincount(place, minlength=len(scores)) for place in drawn]
        rows.append(metrics.all_metrics(*counts))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def ood_table(results: Mapping[str, OODResult]) -> str:
    """A Markdown table in percent.

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
