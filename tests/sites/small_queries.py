"""A small query-based detector: DETR's form, with its loss's matching outside of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

CLASSES, QUERIES = 4, 6


class SmallDetr(nn.Module):
    """Two decoder layers over a picture's mean colour and some queries.

    Args:
        no_object (bool): softmax with a "no object" column last, else sigmoid.
    """

    def __init__(self, no_object: bool) -> None:
        super().__init__()
        self.no_object = no_object
        self.queries = nn.Embedding(QUERIES, 16)
        self.encoder = nn.Linear(3, 16)
        self.decoders = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.class_embed = nn.Linear(16, CLASSES + no_object)
        self.box_embed = nn.Linear(16, 4)

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        logits, boxes = self.outputs(inputs)
        scores = logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()
        found = []
        for image, of_image, box in zip(inputs, scores, boxes):
            score, label = of_image.max(dim=-1)
            height, width = image["image"].shape[-2:]
            corners = torch.cat([box[:, :2] / 2, 0.5 + box[:, 2:] / 2], dim=1)
            result = Instances((height, width), scores=score, pred_classes=label)
            result.pred_boxes = Boxes(corners * corners.new_tensor([width, height] * 2))
            found.append({"instances": result})
        return found

    def outputs(self, inputs: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Logits (N, Q, C) and boxes (N, Q, 4) of the last of the decoder layers."""
        image = torch.stack([each["image"].mean(dim=(1, 2)) / 255 for each in inputs])
        state, states = self.encoder(image)[:, None] + self.queries.weight, []
        for layer in self.decoders:
            state = torch.tanh(layer(state))
            states.append(state)
        hidden = torch.stack(states)  # (L, N, Q, D), as DETR has it
        return self.class_embed(hidden)[-1], self.box_embed(hidden)[-1].sigmoid()


def small_detr(no_object: bool) -> SmallDetr:
    torch.manual_seed(0)
    model = SmallDetr(no_object).eval()
    nn.init.normal_(model.class_embed.weight)
    return model


def matched(model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Object i of an image has query i: a stand-in for the Hungarian matcher."""
    model(inputs)
    labels = []
    for image in inputs:
        found = torch.full((QUERIES,), CLASSES)
        classes = image["instances"].gt_classes.clamp(max=CLASSES - 1)
        found[: len(classes)] = classes
        labels.append(found)
    return labels
