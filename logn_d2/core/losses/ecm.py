"""Effective class margins (Cho and Krähenbühl, ECCV 2022), in closed form.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), the last one a detector of background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import check_number, one_hot
from .counts import CountBuffers, CountsSource
from .one_vs_all import OneVsAllLoss
from .registry import LOSS_REGISTRY
from .sigmoid_cross_entropy import binary_cross_entropy


@LOSS_REGISTRY.register("ecm")
class EffectiveClassMargins(OneVsAllLoss):
    """Weighted sigmoid cross-entropy of logits shifted by a margin that depends on the counts.

    With n_c the class's training images, n_bg a multiple of their sum, N the sum of all these and
    ``a_c = (N - n_c) / n_c``:

        L = (1 / R) sum_i sum_c w_c BCE(2 z_ic + log(n_c / (N - n_c)) / 4, 1[y_i = c]),
        w_c = a_c log((1 + a_c) / a_c)

    over all K + 1 columns. The factor and the margin apply only in training: scores are
    ``sigmoid(z_c) (1 - sigmoid(z_bg))``. The authors' code reaches these values by surrogate
    scores, with the background's multiple for LVIS v1.

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set; a class without images counts as one.
        background_share (float): n_bg as a multiple of the classes' images.

    Example:
        >>> import numpy as np
        >>> from logn_d2.core import ClassCounts
        >>> counts = ClassCounts(("cat", "axolotl"), np.array([90, 1]), np.array([99, 1]), 100)
        >>> loss = EffectiveClassMargins(2, counts=counts)
        >>> loss.margins()[1].round(decimals=2).tolist()  # the weights
        [0.93, 1.0, 0.31]
    """

    needs_counts = True

    def __init__(
        self,
        num_classes: int,
        *,
        counts: CountsSource = None,
        background_share: float = 6.3313,
    ) -> None:
        super().__init__(num_classes)
        check_number("background_share", background_share, "(0, inf)")
        self.counts = CountBuffers(num_classes, counts)
        self.background_share = background_share

    def margins(self) -> tuple[Tensor, Tensor]:
        """The shifts of the doubled logits, and the weights, (K + 1,) float64 each."""
        count = self.counts.of("image")
        # Background has no images to count, so it gets a multiple of the sum over the classes.
        count = torch.cat([count, self.background_share * count.sum()[None]])
        ratio = (count.sum() - count) / count
        # log1p, because a rare class has a ratio a of up to 1e6, for which log((1 + a) / a) loses
        # digits.
        return -ratio.log() / 4, ratio * (1 / ratio).log1p()

    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        offset, weight = (each.to(logits) for each in self.margins())
        positives = one_hot(targets, self.num_outputs)
        return (weight * binary_cross_entropy(2 * logits + offset, positives)).sum(dim=1)
