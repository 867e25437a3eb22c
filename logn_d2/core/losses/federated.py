"""Federated loss: binary cross-entropy of some classes only (Zhou et al., arXiv 2103.07461).

For each image, LVIS verifies the absence of only a few classes. Negatives of all others may be
wrong, and they far outnumber the positives of a rare class.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), of which the last column is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import check_number
from .counts import CountedSigmoidLoss, CountsSource
from .registry import LOSS_REGISTRY
from .sigmoid_cross_entropy import binary_cross_entropy


@LOSS_REGISTRY.register("federated")
class FederatedLoss(CountedSigmoidLoss):
    """Binary cross-entropy over the classes of the batch and some random ones, divided by R.

    Each step uses the labels of the batch, background included, and fills them up to ``classes``
    with others, drawn without replacement. A class's probability is proportional to
    ``image_count ** power``, as in Detectron2's USE_FED_LOSS.

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set.
        classes (int): number of classes per step; more if the batch has more labels.
        power (float): exponent of the counts.
        prior (float): initial probability of each class; 0.5 is a bias of 0.
        unused_column (bool): see `SigmoidLoss`.

    Attributes:
        generator (torch.Generator): source of the random classes; None for PyTorch's default.

    Example:
        >>> import numpy as np
        >>> from logn_d2.core import ClassCounts
        >>> counts = ClassCounts(("cat", "axolotl"), np.array([90, 1]), np.array([99, 1]), 100)
        >>> loss = FederatedLoss(2, counts=counts, classes=1)
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> loss(logits, torch.tensor([0])).backward()
        >>> logits.grad.tolist()
        [[-0.5, 0.0, 0.0]]
    """

    # Classes are left out of a step because an image may show them unlabelled.
    absent = None

    def __init__(
        self,
        num_classes: int,
        *,
        counts: CountsSource = None,
        classes: int = 50,
        power: float = 0.5,
        prior: float = 0.5,
        unused_column: bool = True,
    ) -> None:
        super().__init__(num_classes, counts=counts, prior=prior, unused_column=unused_column)
        check_number("classes", classes, "[0, inf)", whole=True)
        check_number("power", power, "(-inf, inf)")
        self.classes = classes
        self.power = power
        self.generator: torch.Generator | None = None

    def class_weights(self) -> Tensor:
        """Unnormalised probability of drawing each class, (K,) float32."""
        return (self.counts.of("image") ** self.power).float()

    def entries(self, logits: Tensor, positives: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy(logits, positives) * self._draw(targets).to(logits)

    def _draw(self, targets: Tensor) -> Tensor:
        """(K,) bool, the classes of this step."""
        labels = targets.unique()
        selected = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=targets.device)
        selected[labels] = True
        # Classes of the batch are in already; drawing them again would shorten the list.
        weights = self.class_weights().masked_fill(selected[:-1], 0.0)
        # torch.multinomial would fill up with classes of weight 0, or fail.
        missing = min(self.classes - len(labels), int(weights.count_nonzero()))
        if missing > 0:
            drawn = torch.multinomial(weights, missing, generator=self.generator)
            selected[drawn] = True
        return selected[:-1]
