"""Memory-augmented feature sampling of LOCE (Feng, Zhong, Huang, ICCV 2021).

Features of earlier objects are kept for each class, and a few of them join every batch of the box
head, more often for classes with low scores (https://github.com/fcjian/LOCE).

Shapes: N images, R RoIs, B objects, M remembered RoIs, K foreground classes; pooled features
(R, D, H, W).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .build import logn_node
from .recording import shadowed
from .roi_heads import LogNROIHeads

# Remembered RoIs of each object: its box with every combination of signs for its coordinates.
_ROIS_OF_OBJECT = 16
# Each coordinate of a jittered box moves by up to this part of the box's width or height.
_JITTER = 1 / 6
# Remembered boxes are stored relative to their object, whose frame has this size: regression
# targets depend on nothing else.
_FRAME = 100.0


@dataclass(frozen=True)
class MemorySample:
    """Remembered RoIs.

    Attributes:
        features (Tensor): (M, D, H, W) pooled features, without gradient.
        labels (Tensor): (M,) int64 in [0, K).
        boxes (Tensor): (M, 4) x0, y0, x1, y1 in the frame of their objects.
    """

    features: Tensor
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def as_proposals(self) -> Instances:
        """One image's labelled proposals, for the losses of a box predictor."""
        proposals = Instances((int(_FRAME), int(_FRAME)))
        objects = self.boxes.new_tensor([0.0, 0.0, _FRAME, _FRAME]).repeat(len(self), 1)
        proposals.proposal_boxes, proposals.gt_boxes = Boxes(self.boxes), Boxes(objects)
        proposals.gt_classes = self.labels
        return proposals


class FeatureMemory:
    """The last RoIs of each class, on the CPU; each process has its own memory, and no checkpoint.

    Args:
        num_classes (int): K.
        capacity (int): RoIs per class; older ones are dropped. In float32, LVIS v1 with 80 RoIs of
            256 x 7 x 7 fills 4.8 GB.
        generator (torch.Generator): source of the draws and of the jitter of boxes; None for
            PyTorch's default.
    """

    def __init__(
        self, num_classes: int, capacity: int = 80, generator: torch.Generator | None = None
    ) -> None:
        self._rois: list[deque] = [deque(maxlen=capacity) for _ in range(num_classes)]
        self.capacity = capacity
        self.generator = generator

    def __len__(self) -> int:
        return sum(map(len, self._rois))

    @property
    def objects_per_class(self) -> int:
        """Number of objects that fill the memory of their class."""
        return self.capacity // _ROIS_OF_OBJECT

    def add(self, sample: MemorySample) -> None:
        """Remember RoIs, at most the first ``capacity`` of each class."""
        # On the CPU: on a GPU the memory of LVIS would take most of a card.
        features, boxes = sample.features.detach().cpu(), sample.boxes.detach().cpu()
        labels = sample.labels.cpu()
        for label in labels.unique().tolist():
            for index in (labels == label).nonzero()[: self.capacity, 0].tolist():
                # Clones: a view would keep the whole batch in memory.
                self._rois[label].append((features[index].clone(), boxes[index].clone()))

    def draw(self, mean_score: Tensor, classes: int = 8, samples: int = 4) -> MemorySample | None:
        """Draw classes in inverse proportion to their score, and RoIs of each, with replacement.

        Args:
            mean_score (Tensor): (K,) mean score of each class on its objects, in [0, 1].
            classes (int): number of draws of a class; classes without remembered RoIs are left out.
            samples (int): RoIs for each of them.

        Returns:
            MemorySample: on the CPU, up to classes * samples RoIs; None if there are none.
        """
        # The constant keeps a class with score 0 from an infinite weight.
        weight = 1 / (mean_score.detach().cpu().double() + 1e-7)
        drawn = torch.multinomial(weight, classes, replacement=True, generator=self.generator)
        rois, labels = [], []
        for label in drawn.tolist():
            known = self._rois[label]
            # The draw of a class without remembered RoIs is not repeated.
            if known:
                picks = torch.randint(len(known), (samples,), generator=self.generator)
                rois += [known[pick] for pick in picks.tolist()]
                labels += [label] * samples
        if not rois:
            return None
        features, boxes = (torch.stack(each) for each in zip(*rois))
        return MemorySample(features, torch.tensor(labels), boxes)


def jitter_boxes(boxes: Tensor, amounts: Tensor, image_size: tuple[int, int]) -> Tensor:
    """16 boxes around each one: every combination of signs, the same amounts for all.

    Args:
        boxes (Tensor): (B, 4) x0, y0, x1, y1 in pixels.
        amounts (Tensor): (16, 4) in [0, 1], shift of each coordinate relative to a sixth of the
            box.
        image_size (tuple[int, int]): height and width, to which boxes are clipped.

    Returns:
        Tensor: (B, 16, 4).
    """
    # 2^4 combinations of signs are the 16 RoIs of an object.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).to(boxes)
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes[:, None] + signs * amounts.to(boxes) * _JITTER * size[:, None]
    height, width = image_size
    return moved.clamp(min=0).minimum(moved.new_tensor([width, height, width, height]))


@ROI_HEADS_REGISTRY.register()
class LogNMemoryROIHeads(LogNROIHeads):
    """LogNROIHeads whose box head also trains on remembered features, with weight 1.

    Classes are drawn by the mean scores of the loss "loce", and uniformly with other losses.
    Gradients of remembered features reach only the box head and predictor. At test, and in a
    statistics pass, these are LogNROIHeads.

    The memory fills during training; in a second stage it is full from the start (see
    `logn_d2.engine.hooks.FillMemoryHook`).

    Args:
        memory (FeatureMemory): the memory of features.
        memory_classes (int): classes drawn for each batch.
        memory_samples (int): RoIs for each of them.
        **kwargs: of StandardROIHeads.
    """

    @configurable
    def __init__(
        self,
        *,
        memory: FeatureMemory,
        memory_classes: int = 8,
        memory_samples: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.memory = memory
        self.memory_classes = memory_classes
        self.memory_samples = memory_samples
        self._objects: list[Instances] = []

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = logn_node(cfg).MEMORY
        return {
            **super().from_config(cfg, input_shape),
            "memory": FeatureMemory(cfg.MODEL.ROI_HEADS.NUM_CLASSES, node.CAPACITY),
            "memory_classes": node.CLASSES,
            "memory_samples": node.SAMPLES,
        }

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Like the parent's method; the objects are noted for the memory."""
        # `_forward_box` gets no targets, so they are kept from the step before it.
        self._objects = targets
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        objects, self._objects = self._objects, []
        # A statistics pass is in training mode too, but without gradients.
        if not (self.training and torch.is_grad_enabled()):
            return super()._forward_box(features, proposals)
        self._remember([features[name] for name in self.box_in_features], objects)
        drawn = self.memory.draw(self._mean_score(), self.memory_classes, self.memory_samples)
        if drawn is None:
            return super()._forward_box(features, proposals)
        pooler, device = self.box_pooler, features[self.box_in_features[0]].device
        drawn = MemorySample(*(each.to(device) for each in vars(drawn).values()))

        def pool(maps: list[Tensor], boxes: list[Boxes]) -> Tensor:
            # The last "image" has the remembered RoIs, whose features are pooled already.
            pooled = pooler(maps, boxes[:-1])
            return torch.cat([pooled, drawn.features.to(pooled)])

        with shadowed(self, "box_pooler", pool):
            return super()._forward_box(features, [*proposals, drawn.as_proposals()])

    @torch.no_grad()
    def _remember(self, maps: list[Tensor], objects: list[Instances]) -> None:
        boxes, labels, relative = [], [], []
        for each in objects:
            # An empty box has no size to divide by below.
            kept = each.gt_boxes.nonempty()
            around, classes = each.gt_boxes.tensor[kept], each.gt_classes[kept]
            amounts = torch.rand(_ROIS_OF_OBJECT, 4, generator=self.memory.generator)
            jittered = jitter_boxes(around, amounts, each.image_size)
            size = (around[:, 2:] - around[:, :2]).repeat(1, 2)
            corner = around[:, :2].repeat(1, 2)
            # In the frame of the object: targets of the regression depend on the two boxes'
            # relation alone, so size and place of the image are not needed.
            relative.append(((jittered - corner[:, None]) / size[:, None] * _FRAME).flatten(0, 1))
            labels.append(classes.repeat_interleave(_ROIS_OF_OBJECT))
            boxes.append(Boxes(jittered.flatten(0, 1)))
        if sum(map(len, labels)):
            features = self.box_pooler(maps, boxes)
            self.memory.add(MemorySample(features, torch.cat(labels), torch.cat(relative)))

    def _mean_score(self) -> Tensor:
        """Mean scores of the loss, or equal scores without them, (K,)."""
        scores = getattr(getattr(self.box_predictor, "loss", None), "mean_score", None)
        return torch.ones(self.num_classes) if scores is None else scores[: self.num_classes]
