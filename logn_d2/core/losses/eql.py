"""Equalization loss (Tan et al., CVPR 2020, https://github.com/tztztztztz/eql.detectron2).

Shapes: R RoIs, K foreground classes; logits (R, K + 1), of which the last column is not used.
"""

from __future__ import annotations

from torch import Tensor

from .base import check_number, is_foreground
from .counts import CountedSigmoidLoss, CountsSource
from .registry import LOSS_REGISTRY
from .sigmoid_cross_entropy import binary_cross_entropy


@LOSS_REGISTRY.register("eql")
class EqualizationLoss(CountedSigmoidLoss):
    """Sigmoid cross-entropy in which objects of other classes don't count against a rare class.

    ``w_ic = 1 - 1[y_i is foreground] 1[f_c < threshold] (1 - 1[y_i = c])``, where f_c is the share
    of the annotated training images that show class c. Background counts against all classes.

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set.
        threshold (float): lambda, a share of images: 0.0011 for LVIS v1, 0.00177 for LVIS v0.5.
        prior (float): initial probability of each class.
        unused_column (bool): see `SigmoidLoss`.

    Example:
        >>> import numpy as np, torch
        >>> from logn_d2.core import ClassCounts
        >>> counts = ClassCounts(("cat", "axolotl"), np.array([90, 1]), np.array([99, 1]), 100)
        >>> loss = EqualizationLoss(2, counts=counts, threshold=0.05)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> loss(logits, torch.tensor([0])).backward()  # a cat
        >>> logits.grad.tolist()
        [[-0.5, 0.0, 0.0]]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        counts: CountsSource = None,
        threshold: float = 0.0011,
        prior: float = 0.001,
        unused_column: bool = True,
    ) -> None:
        super().__init__(num_classes, counts=counts, prior=prior, unused_column=unused_column)
        check_number("threshold", threshold, "[0, 1]")
        self.threshold = threshold

    def entries(self, logits: Tensor, positives: Tensor, targets: Tensor) -> Tensor:
        rare = self.counts.image_frequency() < self.threshold
        foreground = is_foreground(targets, self.num_classes)
        # Background RoIs still push rare classes down: without any negatives their scores would
        # only rise.
        spared = foreground[:, None] & rare & ~positives
        return binary_cross_entropy(logits, positives).masked_fill(spared, 0.0)
