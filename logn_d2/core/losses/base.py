"""The interface of classification losses, and the two families that most of them belong to.

Shapes: R RoIs, K foreground classes, C classifier outputs. Logits are in nats, labels in [0, K]
with K for background, probabilities in [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UserError
from ..specs import check_bool, check_number

# A logit whose softmax and sigmoid are exactly 0, and no infinity: sums with it are still numbers.
IMPOSSIBLE = -1e4


class ClassificationLoss(nn.Module, ABC):
    """A training loss of R x C logits, and the scores that go with it at test.

    A subclass defines the number of its classifier's outputs, the cost of each RoI and the scores.
    State learned from the data is in buffers, which checkpoints contain; it changes only in
    training mode and is the same on every process.

    Args:
        num_classes (int): K.

    Attributes:
        needs_counts (bool): whether the constructor takes the `ClassCounts` of the training set as
            ``counts``.
        needs_objects (bool): whether `forward` uses ``objects``.
        absent (tuple[float, ...]): values of the columns after the K classes that rule out
            background, for `LossWithoutBackground`; None if there are none.
        background_is_class (bool): whether background is one more class to this loss, so that K
            classes without background are K - 1 with it.
        initial_bias (float): initial value of the classifier's biases.

    Example:
        >>> class Halved(SoftmaxLoss):
        ...     def training_logits(self, logits):
        ...         return logits / 2
        >>> loss = Halved(num_classes=3)
        >>> loss(torch.zeros(0, loss.num_outputs), torch.zeros(0, dtype=torch.int64)).item()
        0.0
    """

    needs_counts = False
    needs_objects = False
    absent: tuple[float, ...] | None = None
    background_is_class = False
    initial_bias = 0.0
    # Set by the loss around it, which then answers for both.
    _inside_another = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Checked here once for all losses, since no subclass works with less.
        check_number("num_classes", num_classes, "[1, inf)", whole=True)
        self.num_classes = num_classes

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """C, the number of outputs that the classifier has."""

    def forward(self, logits: Tensor, targets: Tensor, objects: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch, in at least float32 even under autocast.

        Args:
            logits (Tensor): (R, C) of any floating type; R may be 0.
            targets (Tensor): (R,) int64 labels.
            objects (Tensor): (R,) int64, the object of the batch that each RoI is matched to;
                ignored at background RoIs. Only losses with ``needs_objects`` use it.

        Returns:
            Tensor: a scalar; 0, with a gradient of zeros, where there are no RoIs.

        Raises:
            ValueError: logits of another shape.
        """
        self._check_shape(logits)
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss(wide(logits), targets, objects)

    def scores(self, logits: Tensor) -> Tensor:
        """Class probabilities as the method defines them, in at least float32.

        Args:
            logits (Tensor): (R, C) of any floating type.

        Returns:
            Tensor: (R, K + 1), background last. Rows need not sum to 1.
        """
        with torch.autocast(logits.device.type, enabled=False):
            return self.probabilities(wide(logits))

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """The scores of logits in at least float32, (R, K + 1)."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        """The loss of logits in at least float32; see `forward`."""

    @property
    def calibratable(self) -> bool:
        """Whether the foreground logits (background last) can be calibrated."""
        return self._inside_another or not self._calibration_obstacle()

    def check_calibratable(self) -> None:
        """Raise an error if the logits can't be calibrated.

        Raises:
            ValueError: with the reason.
        """
        if not self.calibratable:
            raise UserError(
                f"Logits of a classifier trained with {type(self).__name__} can't be calibrated: "
                f"{self._calibration_obstacle()}. Do without calibration: set "
                "MODEL.LOGN.COLLECT.ENABLED to False and leave MODEL.LOGN.STATISTICS and "
                "MODEL.LOGN.CALIBRATION empty."
            )

    def _calibration_obstacle(self) -> str:
        return "its scores are not defined for calibrated logits"

    def _check_shape(self, logits: Tensor) -> None:
        if logits.dim() != 2 or logits.shape[1] != self.num_outputs:
            raise UserError(
                f"{type(self).__name__} for {self.num_classes} classes expects logits of shape "
                f"(R, {self.num_outputs}), found {tuple(logits.shape)}. Give the classifier "
                "num_outputs outputs."
            )


class RoIWiseLoss(ClassificationLoss):
    """The loss is the mean of one cost per RoI."""

    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        # A sum, not a mean: that of no RoIs is 0 and keeps the graph, which processes without RoIs
        # need for their share of the all-reduce.
        return self.roi_losses(logits, targets).sum() / max(len(logits), 1)

    @abstractmethod
    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cost of each RoI, (R,), or any values whose sum divided by R is the loss."""


class SoftmaxLoss(RoIWiseLoss):
    """K + 1 outputs, background last; scores are their softmax, as in Detectron2.

    Example:
        >>> SoftmaxLoss(num_classes=1).scores(torch.zeros(1, 2)).tolist()
        [[0.5, 0.5]]
    """

    @property
    def num_outputs(self) -> int:
        """K + 1."""
        return self.num_classes + 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K + 1) softmax of the logits."""
        return F.softmax(logits, dim=-1)

    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(R,) cross-entropy of `training_logits`."""
        return F.cross_entropy(self.training_logits(logits), targets, reduction="none")

    def training_logits(self, logits: Tensor) -> Tensor:
        """Logits of the cross-entropy, (R, K + 1); most softmax methods differ only here."""
        return logits

    def _calibration_obstacle(self) -> str:
        return ""


class SigmoidLoss(RoIWiseLoss):
    """One detector for each class; background is where none responds.

    Args:
        num_classes (int): K.
        prior (float): initial probability of each class, set by the classifier's bias.
        unused_column (bool): keep an unused background output, as Detectron2's sigmoid heads do, so
            that weights, statistics and calibrations have the same shape as a softmax head's. False
            for K outputs, as in the methods' own repositories.

    Example:
        >>> class Plain(SigmoidLoss):
        ...     def entries(self, logits, positives, targets):
        ...         return torch.where(positives, -F.logsigmoid(logits), -F.logsigmoid(-logits))
        >>> loss = Plain(num_classes=1, prior=0.01, unused_column=False)
        >>> loss.num_outputs, loss.scores(torch.zeros(1, 1)).tolist()
        (1, [[0.5, 0.0]])
    """

    absent = (0.0,)  # the unused column takes no part in the loss

    def __init__(self, num_classes: int, *, prior: float, unused_column: bool = True) -> None:
        super().__init__(num_classes)
        check_bool("unused_column", unused_column)
        self.unused_column = unused_column
        self.initial_bias = log_odds(prior)

    @property
    def num_outputs(self) -> int:
        """K + 1, or K without the unused column."""
        return self.num_classes + self.unused_column

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K + 1) sigmoid of the logits; without the unused column 0 for background."""
        scores = logits.sigmoid()
        if self.unused_column:  # as Detectron2, which drops its score as well
            return scores
        return torch.cat([scores, torch.zeros_like(scores[:, :1])], dim=1)

    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(R,) sum over the classes of `entries`."""
        positives = one_hot(targets, self.num_classes)
        # The slice gives the unused column a gradient of 0.
        return self.entries(logits[:, : self.num_classes], positives, targets).sum(dim=1)

    @abstractmethod
    def entries(self, logits: Tensor, positives: Tensor, targets: Tensor) -> Tensor:
        """Cost of each RoI for each class.

        Args:
            logits (Tensor): (R, K) of the foreground classes.
            positives (Tensor): (R, K) 1 at an RoI's class, 0 elsewhere.
            targets (Tensor): (R,) labels.

        Returns:
            Tensor: (R, K).
        """

    def _calibration_obstacle(self) -> str:
        return "" if self.unused_column else "calibrations need K + 1 columns (unused_column=True)"


def is_foreground(targets: Tensor, num_classes: int) -> Tensor:
    """(R,) bool, whether the label, in [0, K], is one of the K classes."""
    return targets < num_classes


def log_odds(prior: float) -> float:
    """The logit whose sigmoid is ``prior``.

    Raises:
        ValueError: no probability between 0 and 1.
    """
    check_number("prior", prior, "(0, 1)")
    return math.log(prior / (1 - prior))


def one_hot(targets: Tensor, num_columns: int) -> Tensor:
    """(R, num_columns) bool: true at the label; nowhere if the label is no column."""
    # A comparison and not F.one_hot, which refuses labels beyond the columns: background of a
    # sigmoid head.
    return targets[:, None] == torch.arange(num_columns, device=targets.device)


def wide(logits: Tensor) -> Tensor:
    """At least float32."""
    # float64 stays as it is, for gradient checks.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
