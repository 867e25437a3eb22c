"""A site's logits for each image of a batch, with the labels of training.

Shapes: N images, Ri candidates of image i, R of all images, C logit columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.affine import Background
from ..errors import UserError, check_choice
from .running import PassEnds, evaluation_mode
from .site import Inputs, LogitSite


@dataclass(frozen=True, eq=False)
class SiteOutput:
    """Raw logits of N images.

    Attributes:
        logits (Tensor): (R, C).
        lengths (list[int]): Ri of each image.
        labels (list[Tensor]): N tensors (Ri,) of column indices, C for a background without a
            column; None if candidates are not matched.
        classifier (LogitSite): source of the logits.
        site (str): class of the detector.
    """

    logits: Tensor
    lengths: list[int]
    labels: list[Tensor | None]
    classifier: LogitSite
    site: str

    @property
    def background(self) -> Background:
        return self.classifier.background

    @property
    def has_sigmoid_scores(self) -> bool:
        return self.classifier.activation == "sigmoid"

    def fingerprint(self) -> Tensor:
        return self.classifier.fingerprint()


@dataclass
class SiteRecording:
    """The outputs of a detector for a batch, as a single stage."""

    stages: list[SiteOutput]


class SiteRecorder:
    """Replaces a detector in `inference_on_dataset`; each call leaves the detector unchanged.

    Args:
        model (nn.Module): the detector itself.
        site (LogitSite): its site.
        population (str): "sampled" for all candidates that the training's loss counts, with their
            labels; "proposals" for those that may become detections at test.

    Raises:
        UserError: an unknown population, or one that this site does not support.
    """

    def __init__(self, model: nn.Module, site: LogitSite, population: str = "sampled") -> None:
        check_choice("The population", population, ("sampled", "proposals"))
        if population == "sampled" and site.matched is None:
            raise UserError(
                f"The site of this {type(model).__name__} does not define how candidates are "
                f"matched. Give it matched=, or use the population 'proposals' "
                "(MODEL.LOGN.COLLECT.POPULATION)."
            )
        self.model, self.site, self.population = model, site, population

    @torch.no_grad()
    def __call__(self, batched_inputs: Inputs) -> SiteRecording:
        """Record one batch.

        Args:
            batched_inputs (Sequence[Mapping]): inputs of the site's `run`; "sampled" needs their
                ground truth.

        Raises:
            RuntimeError: the layers did not run, or labels and logits differ in number.
        """
        levels: list[Tensor] = []
        labels = None
        with ExitStack() as stack:
            # Evaluation mode everywhere: logits of test time; `matched` switches what it needs.
            stack.enter_context(evaluation_mode(self.model))
            for layer in self.site.layers:
                # Before the hook of an attached calibration.
                hook = layer.register_forward_hook(
                    functools.partial(self._hear, levels), prepend=True
                )
                stack.callback(hook.remove)
            if self.population == "sampled":
                # This runs the model as well, so the hooks hear the logits of the same pass.
                labels = self.site.matched(self.model, batched_inputs)
            else:
                self._run(batched_inputs)
        if not levels:
            raise RuntimeError("The layers of the site were not called in this pass.")
        # By image, because an image is the unit of weights and groups of the statistics.
        pairs = [
            self._image([level[i] for level in levels], None if labels is None else labels[i])
            for i in range(len(batched_inputs))
        ]
        parts = [part for of_image, _ in pairs for part in of_image]
        stage = SiteOutput(
            # A dense detector's logits take gigabytes for LVIS, so they are not copied needlessly.
            parts[0] if len(parts) == 1 else torch.cat(parts),
            [sum(map(len, of_image)) for of_image, _ in pairs],
            [found for _, found in pairs],
            self.site,
            type(self.model).__name__,
        )
        return SiteRecording([stage])

    def _run(self, inputs: Inputs) -> None:
        try:
            self.site.run(self.model, inputs) if self.site.run else self.model(inputs)
        except PassEnds:
            pass

    def _hear(self, levels: list[Tensor], layer: nn.Module, args: tuple, output: Tensor) -> None:
        """Keep a layer's output by candidate; only the last decoder layer counts."""
        (level,) = self.site.levels([output])
        if level.untyped_storage().data_ptr() == output.untyped_storage().data_ptr():
            # RetinaNet applies the sigmoid in place to a level with a single cell.
            level = level.clone()
        if self.site.calls == "last":
            # Earlier decoder layers are used only in training.
            levels.clear()
        levels.append(level)

    def _image(
        self, levels: list[Tensor], labels: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """One image's candidates in the population by level, and their labels."""
        if labels is not None:
            total = sum(map(len, levels))
            if len(labels) != total:
                raise RuntimeError(f"There are {len(labels)} labels for {total} candidates.")
            # The loss ignores candidates with negative labels: neither a class nor background.
            counted = labels >= 0
            return _chosen(levels, counted), labels[counted]
        if self.site.chosen is None:
            return levels, None
        return _chosen(levels, self.site.chosen([self.site.scores(each) for each in levels])), None


def _chosen(levels: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
    """The chosen candidates, without copying levels that are complete."""
    pairs = zip(levels, chosen.split([len(level) for level in levels]))
    return [level if mine.all() else level[mine] for level, mine in pairs]
