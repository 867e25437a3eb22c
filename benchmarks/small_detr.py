"""A query-based detector that trains within minutes on one core, and its site.

It follows DETR (Carion et al., ECCV 2020): queries attend to the image and to each other in a
decoder; each predicts one class or "no object", and one box; the loss matches queries and objects
one to one. As in Anchor DETR (Wang et al., AAAI 2022), a query belongs to a point of the image;
here it also starts with the features at that point, which shortens the training.

Shapes: N images, Q queries, K classes, C = K + 1 logit columns ("no object" last), L decoder
layers, D channels. Boxes are (centre, size) in [0, 1] of the padded image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from logn_d2.sites import SITE_REGISTRY, LogitSite, heard

__all__ = ["SmallDetr", "small_detr_site"]

Inputs = Sequence[Mapping[str, Any]]


@META_ARCH_REGISTRY.register()
class SmallDetr(nn.Module):
    """The detector; K is MODEL.ROI_HEADS.NUM_CLASSES, features are those of RPN.IN_FEATURES."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detections_per_image: int,
        points: int = 12,
        width: int = 128,
        layers: int = 2,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone, self.in_features, self.num_classes = backbone, in_features, num_classes
        self.detections_per_image, self.no_object_weight = detections_per_image, no_object_weight
        channels = backbone.output_shape()[in_features[0]].channels
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in in_features)
        self.place = nn.Linear(64, width)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.box_embed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.register_buffer("points", _grid(points, points), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "backbone": build_backbone(cfg),
            "in_features": cfg.MODEL.RPN.IN_FEATURES,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, otherwise detections."""
        images = self._images(inputs)
        logits, boxes = self._predict(images.tensor)
        if self.training:
            targets = [each["instances"].to(self.device) for each in inputs]
            size = images.tensor.shape[-2:]
            matches = self.match(logits[-1], boxes[-1], targets, size)
            return self.losses(logits, boxes, targets, matches, size)
        return self._detections(logits[-1], boxes[-1], images, inputs)

    def match(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Instances], size: torch.Size
    ) -> list[tuple[Tensor, Tensor]]:
        """For each image, queries and their matched objects, one to one."""
        found = []
        for of_image, box, target in zip(logits.detach(), boxes.detach(), targets):
            wanted = _relative(target, size)
            cost = -of_image.softmax(dim=-1)[:, target.gt_classes]
            cost = 2 * cost + 5 * torch.cdist(box, wanted, p=1) - 2 * _overlap(box, wanted)
            rows, columns = linear_sum_assignment(cost.cpu().numpy())
            found.append((torch.as_tensor(rows), torch.as_tensor(columns)))
        return found

    def losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Instances],
        matches: Sequence[tuple[Tensor, Tensor]],
        size: torch.Size,
    ) -> dict[str, Tensor]:
        """Cross-entropy of all queries, and boxes of matched ones, summed over decoder layers."""
        labels = torch.stack(self.labels(targets, matches))
        wanted = torch.cat([_relative(t, size)[c] for t, (_, c) in zip(targets, matches)])
        weight = logits.new_ones(self.num_classes + 1)
        weight[-1] = self.no_object_weight
        losses = {}
        for index, (of_layer, box) in enumerate(zip(logits, boxes)):
            mine = torch.cat([each[rows] for each, (rows, _) in zip(box, matches)])
            apart = (mine - wanted).abs().sum() / max(len(wanted), 1)
            overlap = _overlap(mine, wanted).diagonal()
            losses[f"loss_class_{index}"] = F.cross_entropy(of_layer.mT, labels, weight)
            losses[f"loss_box_{index}"] = 5 * apart + 2 * (1 - overlap).sum() / max(len(wanted), 1)
        return losses

    def labels(
        self, targets: Sequence[Instances], matches: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """For each image (Q,) class indices, K for no object."""
        found = []
        for target, (rows, columns) in zip(targets, matches):
            label = torch.full((len(self.points),), self.num_classes, device=self.device)
            label[rows] = target.gt_classes[columns]
            found.append(label)
        return found

    def _images(self, inputs: Inputs) -> ImageList:
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (L, N, Q, C) and boxes (L, N, Q, 4) of all decoder layers."""
        features = self.backbone(images)
        levels = [p(features[name]) for p, name in zip(self.project, self.in_features)]
        at_points = (2 * self.points - 1).expand(len(images), 1, -1, -1)
        queries = sum(F.grid_sample(x, at_points, align_corners=False) for x in levels)
        queries = queries[:, :, 0].mT + self.place(_waves(self.points))
        tokens = torch.cat([self._tokens(level) for level in levels], dim=1)
        hidden = []
        for layer in self.decoder:
            queries = layer(queries, tokens)
            hidden.append(self.norm(queries))
        states = torch.stack(hidden)
        offsets = self.box_embed(states)
        start = torch.cat([self.points.logit(), torch.full_like(self.points, -1.5)], dim=-1)
        return self.class_embed(states), (offsets + start).sigmoid()

    def _tokens(self, level: Tensor) -> Tensor:
        """Features of a level with their positions, (N, H W, D)."""
        places = _waves(_grid(*level.shape[-2:]).to(level))
        return level.flatten(2).mT + self.place(places)

    def _detections(
        self, logits: Tensor, boxes: Tensor, images: ImageList, inputs: Inputs
    ) -> list[dict[str, Instances]]:
        """The best pairs of query and class; one to one matching needs no suppression."""
        height, width = images.tensor.shape[-2:]
        corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height] * 2)
        found = []
        for scores, box, size, image in zip(
            logits.softmax(dim=-1)[..., :-1], corners, images.image_sizes, inputs
        ):
            count = min(self.detections_per_image, scores.numel())
            best, index = scores.flatten().topk(count)
            result = Instances(size, scores=best, pred_classes=index % self.num_classes)
            result.pred_boxes = Boxes(box[index // self.num_classes])
            shape = image.get("height", size[0]), image.get("width", size[1])
            found.append({"instances": detector_postprocess(result, *shape)})
        return found


@SITE_REGISTRY.register(f"{__name__}.SmallDetr")
def small_detr_site(model: SmallDetr) -> LogitSite:
    """A linear layer over all decoder layers at once; only the last layer's logits count."""
    return LogitSite(
        [model.class_embed],
        num_classes=model.num_classes,
        background="last",
        axis=-1,
        activation="softmax",
        calls="last",
        matched=_matched,
        reused=[model.backbone, *model.project, *model.decoder, model.box_embed],
    )


def _matched(model: SmallDetr, inputs: Inputs) -> list[Tensor]:
    _, _, targets, matches, _ = heard(model, model, "losses", lambda: model(list(inputs)))
    return model.labels(targets, matches)


def _grid(rows: int, columns: int) -> Tensor:
    """(rows * columns, 2) centres of cells, (x, y) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x / columns, y / rows], dim=-1).flatten(0, 1)


def _waves(points: Tensor) -> Tensor:
    """Sinusoidal position encoding of points (Q, 2), (Q, 64)."""
    phases = points[..., None] * 2 * math.pi * 2 ** torch.arange(0, 4, 0.25, device=points.device)
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(1)


def _relative(target: Instances, size: torch.Size) -> Tensor:
    """(M, 4) ground truth boxes."""
    corners = target.gt_boxes.tensor / target.gt_boxes.tensor.new_tensor([*size[::-1]] * 2)
    return box_convert(corners, "xyxy", "cxcywh")


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of all pairs."""
    return generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (first, second)))
