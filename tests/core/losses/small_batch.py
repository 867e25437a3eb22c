"""The batch and the class counts of the oracles in these tests.

Class 0 is frequent, 1 common, 2 rare; 3 is background.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from logn_d2.core import LOSS_REGISTRY, ClassCounts, ClassificationLoss, build_loss

NUM_CLASSES = 3
COUNTS = ClassCounts(tuple("abc"), np.array([1000, 100, 5]), np.array([5000, 200, 8]), 20_000)
NAMES = sorted(LOSS_REGISTRY)
STATEFUL = ["eql_v2", "inverse_logn(momentum=0.3)", "loce", "seesaw"]

TARGETS = torch.tensor([1, 3])
LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]], dtype=torch.float64)
# What goes in the place of background, or behind it.
OBJECTNESS = torch.tensor([[0.5, -0.5], [-1.0, 1.5]], dtype=torch.float64)
GROUPED = torch.tensor(
    [
        [0.2, 1.0, 0.5, -1.0, 0.0, -0.3, 0.5, 0.1, 2.0],
        [2.0, -1.0, 1.0, -2.0, 0.0, 0.7, 0.0, 0.9, -0.5],
    ],
    dtype=torch.float64,
)


def make(text: str, num_classes: int = NUM_CLASSES) -> ClassificationLoss:
    """A loss with the counts of the fixture, or with made-up ones for other numbers of classes."""
    counts = COUNTS
    if num_classes != NUM_CLASSES:
        image_count = np.arange(1, num_classes + 1) ** 2
        names = tuple(map(str, image_count))
        counts = ClassCounts(names, image_count, 9 * image_count, 40 * num_classes**2)
    return build_loss(text, num_classes, counts)


def batch(loss: ClassificationLoss, num_rois: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits that ask for a gradient, labels with background, and objects."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rois, loss.num_outputs)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(2)
    targets = torch.randint(loss.num_classes + 1, (num_rois,), generator=generator)
    # Objects of one class each: number and class agree modulo K + 1.
    which = torch.randint(2, (num_rois,), generator=generator)
    return logits.requires_grad_(), targets, which * (loss.num_classes + 1) + targets
