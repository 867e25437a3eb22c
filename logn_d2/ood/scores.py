"""Scores of logits that are higher for inputs that look known.

All scores are computed in float64, and MSP as a logarithm: in float32 the softmax of a confident
network is exactly 1 for thousands of inputs, and ties destroy the ranking.

Shapes: N inputs, K classes; logits (N, K) in nats. Remove a detector's background column first
(``logits[:, :-1]``), as VOS does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError, check_known


def log_softmax(logits: ArrayLike) -> np.ndarray:
    """(N, K) float64 logarithms of the softmax.

    Raises:
        ValueError: the logits have another shape or no columns, or are not finite.

    Example:
        >>> log_softmax([[0.0, 0.0]]).round(4).tolist()
        [[-0.6931, -0.6931]]
    """
    logits = _checked(logits)
    # Without the largest logit, exp would overflow above 709.
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def msp(logits: ArrayLike) -> np.ndarray:
    """Maximum softmax probability (Hendrycks and Gimpel, ICLR 2017), as a margin in log space.

        log p - log(1 - p),   p the largest softmax probability

    It has the same ranking as p, and still separates inputs whose p is 1 to machine precision.

    Args:
        logits (ArrayLike): (N, K).

    Returns:
        ndarray: (N,) log odds in nats; infinite for a single class.

    Raises:
        ValueError: the logits have another shape or no columns, or are not finite.

    Example:
        >>> msp([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]]).tolist()
        [0.0, 100.0, 200.0]
    """
    logits = np.sort(_checked(logits), axis=1)
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf)
    # Without the largest logit: 1 - p as a difference would be 0 for a confident network.
    return logits[:, -1] - _log_sum_exp(logits[:, :-1])


def max_logit(logits: ArrayLike) -> np.ndarray:
    """(N,) largest logit (Hendrycks et al., ICML 2022).

    Raises:
        ValueError: the logits have another shape or no columns, or are not finite.

    Example:
        >>> max_logit([[1.0, 3.0]]).tolist()
        [3.0]
    """
    return _checked(logits).max(axis=1)


def energy(logits: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Negative free energy (Liu et al., NeurIPS 2020): ``T log sum exp(z / T)``.

    Args:
        logits (ArrayLike): (N, K).
        temperature (float): T, above 0.

    Returns:
        ndarray: (N,).

    Raises:
        ValueError: the temperature is not above 0, or `log_softmax` refuses the logits.

    Example:
        >>> energy([[0.0, 0.0]]).round(4).tolist()
        [0.6931]
    """
    if not 0 < temperature < np.inf:
        raise UserError(f"The temperature is {temperature!r}, expected a number above 0.")
    return temperature * _log_sum_exp(_checked(logits) / temperature)


def normalized_logits(logits: ArrayLike, tau: float = 0.04, eps: float = 1e-7) -> np.ndarray:
    """``z / (tau (|z| + eps))``, the logits in the loss of LogitNorm (Wei et al., ICML 2022).

    The paper scores raw logits, whose norm the loss leaves free. Normalised logits rank better if
    the norm is arbitrary, and worse if it separates known from unknown inputs.

    Args:
        logits (ArrayLike): (N, K).
        tau (float): temperature, above 0.
        eps (float): added to the norm.

    Returns:
        ndarray: (N, K) float64.

    Raises:
        ValueError: tau is not above 0, or `log_softmax` refuses the logits.

    Example:
        >>> normalized_logits([[3.0, 4.0]], tau=0.5).round(4).tolist()
        [[1.2, 1.6]]
    """
    if not 0 < tau < np.inf:
        raise UserError(f"tau is {tau!r}, expected a number above 0.")
    logits = _checked(logits)
    return logits / (tau * (np.linalg.norm(logits, axis=1, keepdims=True) + eps))


OOD_SCORES: Mapping[str, Callable[..., np.ndarray]] = {
    "msp": msp,
    "max_logit": max_logit,
    "energy": energy,
}
"""Name -> function of (N, K) logits to (N,) scores."""


def score_logits(name: str, logits: ArrayLike) -> np.ndarray:
    """Compute a score by its name.

    Args:
        name (str): a name in `OOD_SCORES`.
        logits (ArrayLike): (N, K).

    Raises:
        KeyError: no score has this name; the message lists the names.

    Example:
        >>> score_logits("max_logit", [[1.0, 3.0]]).tolist()
        [3.0]
    """
    check_known("OOD score", name, OOD_SCORES)
    return OOD_SCORES[name](logits)


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)  # as in `log_softmax`, against overflow
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def _checked(logits: ArrayLike) -> np.ndarray:
    """Logits as float64 (N, K)."""
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise UserError(f"The logits have shape {logits.shape}, expected (inputs, classes).")
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(logits)} inputs have NaN or infinite logits, the first is number "
            f"{bad[0]}. Check the weights and the input."
        )
    return logits
