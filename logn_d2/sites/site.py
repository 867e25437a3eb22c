"""The location of a detector's class logits, and the candidates that count.

Shapes: K foreground classes, C logit columns, R candidates of an image (anchors, points, queries).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.affine import foreground_columns
from ..errors import UserError, check_choice
from .layers import ClassLayers

# Scores in a block of `topk`, 16 MB in float32.
_BLOCK = 2**22

Inputs = Sequence[Mapping[str, Any]]
Runner = Callable[[nn.Module, Inputs], Any]
Matcher = Callable[[nn.Module, Inputs], Sequence[Tensor]]


@dataclass(frozen=True)
class TopScores:
    """Candidates of a dense detector: scores above a threshold, up to a maximum number.

    Attributes:
        threshold (float): minimum score, exclusive, in [0, 1].
        count (int): maximum number of pairs of candidate and class.
        each (str): the maximum applies to each feature "level" or each "class".
    """

    threshold: float
    count: int
    each: Literal["level", "class"] = "level"

    def __call__(self, levels: Sequence[Tensor]) -> Tensor:
        """Mark the candidates with a class that may become a detection, (R,) bool.

        Args:
            levels (Sequence[Tensor]): (R of the level, K) foreground scores of each feature level.
        """
        if self.each == "level":
            return torch.cat([self._of_level(each) for each in levels])
        scores = torch.cat(list(levels))
        best = torch.zeros_like(scores, dtype=torch.bool)
        # Over all levels, as SSD does for each class.
        order = scores.topk(min(self.count, len(scores)), dim=0).indices
        # A candidate counts once, however many of its classes are chosen.
        return (best.scatter_(0, order, True) & (scores > self.threshold)).any(dim=1)

    def _of_level(self, scores: Tensor) -> Tensor:
        flat, found = scores.flatten(), []
        # By blocks: topk would copy all of a hundred million scores, each with its position.
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            found.append(start + block.topk(min(self.count, len(block))).indices)
        # A feature map of size 0 has no blocks.
        pairs = torch.cat(found) if found else flat.new_zeros(0).long()
        # The best of all are among the best of each block.
        pairs = pairs[flat[pairs].topk(min(self.count, len(pairs))).indices]
        chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        # The threshold after the maximum gives the same candidates as before it, and compares a few
        # scores only.
        chosen[pairs[flat[pairs] > self.threshold] // scores.shape[1]] = True
        return chosen


@dataclass(frozen=True, eq=False)
class LogitSite(ClassLayers):
    """A classification site: layers whose outputs are logits, and the use of these logits.

    Attributes:
        calls (str): "all" outputs of a pass are candidates (feature levels), or only the "last"
            (decoder layers, of which earlier ones are used only in training).
        run (Callable): runs the model on mapped images; None for ``model(inputs)``.
        matched (Callable): runs the model once, as in training, and returns each image's labels
            (R,): the column of a candidate's class, that of the background (K if it has no column),
            or a negative number for candidates that the loss ignores. None if unknown; statistics
            then cover the candidates of test time.
        chosen (Callable): maps the scores of each level, (R of the level, K), to (R,) bool: the
            candidates of test time. None for all.
        reused (Sequence[nn.Module]): modules whose outputs no calibration changes, which a sweep
            runs once for all calibrations. The fewer, the slower; the result is the same.
        results (str): key of the model's output for an image: "instances" for detections, or
            "sem_seg", which sweeps and evaluations refuse.

    Example:
        >>> layer = nn.Linear(8, 4)  # three classes, "no object" last
        >>> site = LogitSite([layer], num_classes=3, background="last", axis=-1)
        >>> site.num_columns
        4
    """

    calls: Literal["all", "last"] = "all"
    run: Runner | None = None
    matched: Matcher | None = None
    chosen: Callable[[Sequence[Tensor]], Tensor] | None = None
    reused: Sequence[nn.Module] = ()
    results: Literal["instances", "sem_seg"] = "instances"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("calls", self.calls, ("all", "last"))
        check_choice("results", self.results, ("instances", "sem_seg"))

    def levels(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Logits (N, R, C) of each feature level, or of only the last decoder layer.

        Args:
            outputs (Sequence[Tensor]): outputs of the layers, in the order of their calls.
        """
        if self.calls == "all":
            return [self.candidates(each) for each in outputs]
        last = outputs[-1]
        # DETR stacks the decoder layers, (L, N, Q, C), in one call.
        stacked = self.axis == -1 and last.dim() == 4
        return [self.candidates(last[-1] if stacked else last)]

    def check_detections(self, owner: nn.Module) -> None:
        """Raise a UserError if the scores are not those of detections.

        Args:
            owner (nn.Module): the model, for the message.
        """
        if self.results != "instances":
            raise UserError(
                f"A {type(owner).__name__} gives {self.results!r}, but sweeps and evaluations take "
                "detections. Call collect, attach and fold in Python, and "
                "logn_d2.sites.outputs_under for the outputs under several calibrations."
            )

    def scores(self, logits: Tensor) -> Tensor:
        """Foreground scores (..., K) of logits (..., C)."""
        # The background takes part in a softmax, so it is cut off afterwards.
        scores = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(dim=-1)
        return scores[..., foreground_columns(self.background)]
