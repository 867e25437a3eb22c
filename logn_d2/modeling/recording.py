"""Records the logits of a model's box predictors and ends the forward pass right after them.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..errors import UserError, check_choice
from ..sites import (
    LogitSite,
    PassEnds,
    SiteRecorder,
    evaluation_mode,
    known_site,
    shadowed,
    site_detector,
)
from .box_predictors import find_box_predictors, unwrapped
from .stages import StageOutput

Population = Literal["sampled", "proposals"]


@dataclass
class Recording:
    """The outputs of the box predictors for a batch.

    Attributes:
        stages (list[StageOutput]): S stages, in order.
        features (dict[str, Tensor]): the feature maps passed to the RoI heads.
    """

    stages: list[StageOutput] = field(default_factory=list)
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image as the model's input, without padding."""
        return [proposals.image_size for proposals in self.stages[0].proposals]

    def logits(self, stage: int = 0, image: int = 0) -> Tensor:
        """Raw logits of one stage and image, (Ri, K + 1)."""
        counts = [len(proposals) for proposals in self.stages[stage].proposals]
        return self.stages[stage].logits.split(counts)[image]

    def labels(self, stage: int = 0, image: int = 0) -> Tensor | None:
        """Class of each RoI, (Ri,), K for background; None if the RoIs are not matched."""
        proposals = self.stages[stage].proposals[image]
        return proposals.gt_classes if proposals.has("gt_classes") else None


class LogitRecorder:
    """Runs a model up to the logits of its last box predictor.

    Losses, non-maximum suppression, mask and keypoint branches are not computed. It can replace the
    model
    in `inference_on_dataset`. Each call leaves the model unchanged, even after an error: training
    flags, methods, hooks, buffers and random state.

    Args:
        model (nn.Module): a Detectron2 R-CNN, distributed or not.
        population (str): RoIs to record: "sampled" as in training (the region proposal network's
            training settings, ground truth added, sampled by label), or "proposals" as at test.
        seed (int): seed of the sampling. It and the ids of the images in a call determine the RoIs,
            so with one image per call neither order nor number of processes has an effect.
        deltas (bool): whether the last box predictor's deltas are needed. If False, they are
            skipped
            where possible and have zero columns: with class-specific boxes for 1,203 classes, they
            cost four times as much as the logits.

    Raises:
        ValueError: unknown population, or a model without box predictors.

    Example:
        ::

            record = LogitRecorder(model, "proposals")
            for inputs in loader:
                logits = record(inputs).logits(stage=0, image=0)
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population = "sampled",
        seed: int = 0,
        *,
        deltas: bool = True,
    ) -> None:
        check_choice("The population", population, ("sampled", "proposals"))
        # The inner model: a wrapper's forward may synchronise processes, which may have different
        # numbers of images here.
        self.model = unwrapped(model)
        self.predictors = find_box_predictors(self.model)
        if population == "sampled" and hasattr(
            getattr(self.model, "proposal_generator", None), "num_branch"
        ):
            raise UserError(
                f"The RoIs of a {type(self.model).__name__} with several branches (TridentNet) "
                "can't be sampled as in training. Use the population 'proposals'."
            )
        self.population = population
        self.seed = seed
        self.deltas = deltas

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]]) -> Recording:
        """Record one batch.

        Args:
            batched_inputs (list[dict]): the model's inputs; "sampled" needs their "instances".

        Returns:
            Recording: S stages.

        Raises:
            ValueError: "sampled" without ground truth.
            RuntimeError: the model's pass ended before all box predictors ran.
        """
        sampled = self.population == "sampled"
        if sampled and any("instances" not in each for each in batched_inputs):
            raise UserError(
                "Sampled RoIs need ground truth, and an input has no 'instances'. Map the data set "
                "with ground truth (DatasetMapper with is_train=True), or use the population "
                "'proposals'."
            )
        # A panoptic model computes its semantic loss before the RoI heads run.
        if sampled and hasattr(self.model, "sem_seg_head"):
            if any("sem_seg" not in each for each in batched_inputs):
                raise UserError(
                    f"A {type(self.model).__name__} needs an image's semantic labels to sample "
                    "RoIs as in training, and an input has no 'sem_seg'. Add them to the inputs, "
                    "or use the population 'proposals' (MODEL.LOGN.COLLECT.POPULATION)."
                )
        recording = Recording()
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.model, self._training()))
            stack.enter_context(_seeded(self._call_seed(batched_inputs), self._device()))
            # RoI heads in training mode log to the current storage, which a statistics pass lacks,
            # or which is the training's own.
            stack.enter_context(EventStorage())
            stack.enter_context(_given_features(self.model, recording))
            self._listen(stack, recording)
            try:
                self.model(batched_inputs)
            except PassEnds:
                pass
        # A head that skips a predictor would shift the stages without an error.
        if len(recording.stages) < len(self.predictors):
            raise RuntimeError(
                f"The model has {len(self.predictors)} box predictors, but only "
                f"{len(recording.stages)} ran in this pass."
            )
        return recording

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _call_seed(self, batched_inputs: list[dict[str, Any]]) -> int:
        names = [str(x.get("image_id", x.get("file_name", ""))) for x in batched_inputs]
        # From the ids and not from a counter: the RoIs of an image do not depend on the images
        # before it.
        digest = hashlib.sha256("\n".join([str(self.seed), *names]).encode()).digest()
        # 56 bits, well inside the range of manual_seed.
        return int.from_bytes(digest[:7], "big")

    def _training(self) -> list[nn.Module | None]:
        """Modules whose training mode selects the RoIs.

        Backbone, norms and dropout stay in evaluation mode, so that logits are those of test time.
        """
        if self.population != "sampled":
            return []
        names = ("proposal_generator", "roi_heads")
        # The model itself too, because its own forward decides between training and inference.
        return [self.model, *(getattr(self.model, name, None) for name in names)]

    def _listen(self, stack: ExitStack, recording: Recording) -> None:
        if self.population == "sampled":
            _spare_proposal_losses(stack, getattr(self.model, "proposal_generator", None))
        if not self.deltas:
            _spare_deltas(stack, self.predictors[-1])
        # At test, boxes may be decoded before or after probabilities; the first of the two calls
        # has all outputs.
        methods = (
            ("losses",) if self.population == "sampled" else ("predict_boxes", "predict_probs")
        )
        for predictor in self.predictors:
            for name in methods:
                if hasattr(predictor, name):
                    listener = self._listener(predictor, name, recording)
                    stack.enter_context(shadowed(predictor, name, listener))

    def _listener(self, predictor: nn.Module, name: str, recording: Recording) -> Callable:
        method = getattr(predictor, name)

        def listen(predictions: Any, proposals: Any, *args: Any, **kwargs: Any) -> Any:
            # At test, both methods call this listener; the first call has everything.
            if all(stage.predictor is not predictor for stage in recording.stages):
                recording.stages.append(StageOutput(predictor, predictions, proposals))
            if len(recording.stages) == len(self.predictors):
                # In the order of the model, whatever the order of the calls.
                recording.stages.sort(key=lambda stage: self.predictors.index(stage.predictor))
                raise PassEnds
            # A cascade's next stage needs this stage's boxes, but nothing needs its losses.
            return {} if name == "losses" else method(predictions, proposals, *args, **kwargs)

        return listen


def recorder_for(
    model: nn.Module,
    population: Population = "sampled",
    seed: int = 0,
    site: LogitSite | None = None,
) -> LogitRecorder | SiteRecorder:
    """Build the recorder of a model's logits, at its site or else at its box predictors.

    Args:
        model (nn.Module): a detector, wrapped or not.
        population (str): "sampled" or "proposals".
        seed (int): seed of the sampling of RoIs.
        site (LogitSite): the site of a model unknown to logn_d2.

    Raises:
        ValueError: unknown population, or a model with neither site nor box predictors.
    """
    detector = model if site is not None else site_detector(model)
    if detector is None:
        return LogitRecorder(model, population, seed, deltas=False)
    return SiteRecorder(detector, site or known_site(detector), population)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU and the model's device for the context, and restore their state afterwards."""
    # Forking the state of all GPUs would take time and memory on each of them.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also seed all other devices, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        for each in devices:
            torch.cuda.default_generators[each.index].manual_seed(seed)
        yield


@contextmanager
def _given_features(model: nn.Module, recording: Recording) -> Iterator[None]:
    """Record the feature maps passed to the RoI heads."""
    roi_heads = getattr(model, "roi_heads", None)
    if not isinstance(roi_heads, nn.Module):
        yield
        return

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        # Detectron2 passes them by position; subclasses may not.
        recording.features = kwargs["features"] if "features" in kwargs else args[1]

    handle = roi_heads.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _spare_deltas(stack: ExitStack, predictor: nn.Module) -> None:
    """Skip the layer of box deltas in predictors that only return its output."""
    # Only where the forward is known: another one may compute more with the deltas.
    if getattr(type(predictor), "forward", None) is FastRCNNOutputLayers.forward:
        stack.enter_context(shadowed(predictor.bbox_pred, "forward", lambda x: x[:, :0]))


def _spare_proposal_losses(stack: ExitStack, proposal_generator: nn.Module | None) -> None:
    """Skip matching of anchors and the proposal losses, if nothing else depends on them."""
    # Only where the forward is known: elsewhere, labels or losses may feed something else.
    if getattr(type(proposal_generator), "forward", None) is not RPN.forward:
        return
    stack.enter_context(
        shadowed(proposal_generator, "label_and_sample_anchors", lambda *_, **__: ([], []))
    )
    stack.enter_context(shadowed(proposal_generator, "losses", lambda *_, **__: {}))
