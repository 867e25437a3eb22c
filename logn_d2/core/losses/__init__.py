"""Training losses for long-tailed classes, each with its classifier's outputs and its scores.

They are plain modules of logits and labels: ``loss(logits, targets)`` and ``loss.scores(logits)``.
Choose one by name with `build_loss`.
"""

from .bags import BalancedGroupSoftmax
from .balanced_softmax import BalancedSigmoid, BalancedSoftmax
from .base import ClassificationLoss, SigmoidLoss, SoftmaxLoss
from .cross_entropy import CrossEntropy
from .ecm import EffectiveClassMargins
from .eql import EqualizationLoss
from .eql_v2 import EqualizationLossV2
from .federated import FederatedLoss
from .focal import FocalLoss
from .inverse_logn import InverseLogN
from .loce import EquilibriumLoss
from .logit_norm import LogitNorm
from .registry import LOSS_REGISTRY, build_loss, parse_loss
from .seesaw import SeesawLoss
from .sigmoid_cross_entropy import SigmoidCrossEntropy
from .without_background import LossWithoutBackground, build_loss_without_background

__all__ = [
    "LOSS_REGISTRY",
    "BalancedGroupSoftmax",
    "BalancedSigmoid",
    "BalancedSoftmax",
    "ClassificationLoss",
    "CrossEntropy",
    "EffectiveClassMargins",
    "EqualizationLoss",
    "EqualizationLossV2",
    "EquilibriumLoss",
    "FederatedLoss",
    "FocalLoss",
    "InverseLogN",
    "LogitNorm",
    "LossWithoutBackground",
    "SeesawLoss",
    "SigmoidCrossEntropy",
    "SigmoidLoss",
    "SoftmaxLoss",
    "build_loss",
    "build_loss_without_background",
    "parse_loss",
]
