"""Class counts of the training set inside a loss, stored in its checkpoints.

Shapes: K foreground classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import UserError, check_choice
from ...frequency import ClassCounts, CountsSource, known_counts
from .base import SigmoidLoss

Counted = Literal["image", "instance"]


COUNTED = ("image", "instance")


class CountBuffers(nn.Module):
    """Image and instance counts as buffers; counts in a checkpoint replace the given ones.

    Args:
        num_classes (int): K.
        source (ClassCounts): the counts; a function that returns them, called on first use if no
            checkpoint has provided them; or None.

    Attributes:
        version (int): rises whenever the counts may have changed.

    Raises:
        ValueError: counts of another number of classes.
    """

    image_count: Tensor
    instance_count: Tensor
    num_images: Tensor

    def __init__(self, num_classes: int, source: CountsSource) -> None:
        super().__init__()
        for name in ("image_count", "instance_count"):
            # int64 buffers: `.half()` converts floating buffers, and fp16 ends at 65,504.
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("num_images", torch.zeros((), dtype=torch.int64))
        self._source = source
        self._known = False
        self.version = 0
        if isinstance(source, ClassCounts):
            self._fill(source)

    def of(self, counted: Counted) -> Tensor:
        """(K,) float64 numbers of training "image"s or "instance"s, at least 1.

        Raises:
            ValueError: unknown counts, or another word.
        """
        check_choice("count", counted, COUNTED)
        self._ensure_known()
        count = self.image_count if counted == "image" else self.instance_count
        # A class without training data would have an infinite offset.
        return count.double().clamp(min=1)

    def image_frequency(self, margin: float = 0.0) -> Tensor:
        """(K,) float64 share of the annotated training images that show the class.

        Args:
            margin (float): smallest distance from 0 and from 1, in images.

        Raises:
            ValueError: the counts are not known.
        """
        self._ensure_known()
        # Away from 0 here and from 1 below: at either, the logit is infinite.
        count = self.image_count.double().clamp(min=margin)
        return torch.minimum(count, self.num_images.double() - margin) / self.num_images

    @torch.no_grad()
    def forget(self) -> None:
        """Discard the counts, also those of a checkpoint: the next use counts again.

        Without a source of other counts, nothing changes.
        """
        if self._source is None:
            return
        self._known = False
        self.version += 1
        for buffer in self.buffers():
            buffer.zero_()

    def _ensure_known(self) -> None:
        if self._known:
            return
        if self.num_images == 0:  # else a checkpoint was loaded
            if self._source is None:
                raise UserError(
                    "This loss needs the class counts of the training set: give counts=, or load "
                    "a checkpoint that was trained with this loss."
                )
            self._fill(known_counts(self._source))
        self._known = True

    @torch.no_grad()
    def _fill(self, counts: ClassCounts) -> None:
        if len(counts.image_count) != len(self.image_count):
            raise UserError(
                f"The training set has {len(counts.image_count)} classes, this head "
                f"{len(self.image_count)}. Count the data set that the model is trained on."
            )
        self.image_count.copy_(torch.as_tensor(counts.image_count))
        self.instance_count.copy_(torch.as_tensor(counts.instance_count))
        self.num_images.fill_(counts.num_images)
        self.version += 1

    def _load_from_state_dict(self, *args: Any) -> None:
        self.version += 1
        super()._load_from_state_dict(*args)


class CountedSigmoidLoss(SigmoidLoss):
    """A `SigmoidLoss` whose costs depend on the class counts of the training set.

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set.
        prior (float): initial probability of each class.
        unused_column (bool): see `SigmoidLoss`.
    """

    needs_counts = True

    def __init__(
        self,
        num_classes: int,
        *,
        counts: CountsSource = None,
        prior: float = 0.001,
        unused_column: bool = True,
    ) -> None:
        super().__init__(num_classes, prior=prior, unused_column=unused_column)
        self.counts = CountBuffers(num_classes, counts)
