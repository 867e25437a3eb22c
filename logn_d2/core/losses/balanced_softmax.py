"""Balanced softmax (Ren et al., NeurIPS 2020): logits are trained on top of the class prior.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), background last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import check_choice
from .base import IMPOSSIBLE, SoftmaxLoss, check_number, is_foreground
from .counts import COUNTED, CountBuffers, Counted, CountedSigmoidLoss, CountsSource
from .registry import LOSS_REGISTRY
from .sigmoid_cross_entropy import binary_cross_entropy


@LOSS_REGISTRY.register("balanced_softmax")
class BalancedSoftmax(SoftmaxLoss):
    """Cross-entropy of ``z_c + tau log pi_c`` for the classes and of z itself for background.

    pi is the share of each class among all counts. The softmax form is the classification paper's
    (https://github.com/jiawei-ren/BalancedMetaSoftmax-Classification), where the scale of pi
    cancels out; with a background column it does not, and shares leave the foreground lower against
    background than counts would. With tau = 1 it is also the loss of logit adjustment (Menon et
    al., ICLR 2021).

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set.
        count (str): unit of the counts in pi, "image" or "instance".
        tau (float): strength.

    Example:
        >>> import numpy as np
        >>> from logn_d2.core import ClassCounts
        >>> counts = ClassCounts(("cat", "axolotl"), np.array([90, 1]), np.array([99, 1]), 100)
        >>> loss = BalancedSoftmax(2, counts=counts, count="instance")
        >>> loss.training_logits(torch.zeros(1, 3)).exp()
        tensor([[0.9900, 0.0100, 1.0000]])
    """

    needs_counts = True
    absent = (IMPOSSIBLE,)

    def __init__(
        self,
        num_classes: int,
        *,
        counts: CountsSource = None,
        count: Counted = "image",
        tau: float = 1.0,
    ) -> None:
        super().__init__(num_classes)
        self.counts = CountBuffers(num_classes, counts)
        check_choice("count", count, COUNTED)
        check_number("tau", tau, "(-inf, inf)")
        self.count = count
        self.tau = tau

    def training_logits(self, logits: Tensor) -> Tensor:
        count = self.counts.of(self.count)
        offset = self.tau * (count / count.sum()).log()
        return logits + torch.cat([offset, offset.new_zeros(1)]).to(logits)


@LOSS_REGISTRY.register("balanced_sigmoid")
class BalancedSigmoid(CountedSigmoidLoss):
    """Balanced softmax for detectors, whose scores are sigmoids.

    Sigmoid cross-entropy of ``z_c - log((1 - f_c) / f_c)`` for foreground RoIs, and of z itself for
    background RoIs; f_c is the share of the annotated training images that show the class. From the
    authors' https://github.com/cunjunyu/BalancedMetaSoftmax-InstanceSeg.

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set.
        prior (float): initial probability of each class.
        unused_column (bool): see `SigmoidLoss`.

    Example:
        >>> import numpy as np
        >>> from logn_d2.core import ClassCounts
        >>> counts = ClassCounts(("cat", "axolotl"), np.array([90, 1]), np.array([99, 1]), 100)
        >>> loss = BalancedSigmoid(2, counts=counts)
        >>> found = loss(torch.zeros(1, 3), torch.tensor([0]))  # -log 0.9 - log 0.99
        >>> round(found.item(), 4)
        0.1154
    """

    def entries(self, logits: Tensor, positives: Tensor, targets: Tensor) -> Tensor:
        # At 0 and at 1 the offset would be infinite.
        frequency = self.counts.image_frequency(margin=0.5)
        foreground = is_foreground(targets, self.num_classes)
        # -log((1 - f) / f) in the source is the logit of f.
        offset = torch.where(foreground[:, None], frequency.logit().to(logits), 0.0)
        return binary_cross_entropy(logits + offset, positives)
