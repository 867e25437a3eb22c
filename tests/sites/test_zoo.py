"""Models of Detectron2's zoo, with random weights, through every verb that needs no training.

The suite takes a config of each kind; ``LOGN_D2_WHOLE_ZOO=1 pytest tests/sites/test_zoo.py`` takes
all YAML configs that the installed Detectron2 brings along.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from logn_d2 import attach, collect, fold
from logn_d2.errors import UserError

from ..modeling.small_models import assert_same, detections

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIZE = 96
KINDS = [
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml",
]
WITHOUT_CLASSES = [
    "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "Misc/semantic_R_50_FPN_1x.yaml",
]


def whole_zoo() -> list[str]:
    """All configs; those of quick schedules are others, trained shortly."""
    root = Path(model_zoo.__file__).parent / "configs"
    paths = (path.relative_to(root) for path in sorted(root.rglob("*.yaml")))
    names = [str(p) for p in paths if len(p.parts) == 2 and not p.name.startswith("Base")]
    return [name for name in names if not name.startswith("quick")]


def is_without_classes(name: str) -> bool:
    return Path(name).name.startswith(("rpn_", "semantic_"))


if os.environ.get("LOGN_D2_WHOLE_ZOO"):
    WITHOUT_CLASSES = [name for name in whole_zoo() if is_without_classes(name)]
    KINDS = [name for name in whole_zoo() if not is_without_classes(name)]


def build(name: str) -> nn.Module:
    """The config's model, with a backbone of 18 layers and any box above a threshold of 0."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.RES2_OUT_CHANNELS, resnets.NORM = 18, 64, "GN"  # random weights need it
    resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = 1, 64
    if any(resnets.DEFORM_ON_PER_STAGE):
        pytest.skip("deformable convolution needs Detectron2's compiled operators")
    if "DC5" in name:
        resnets.RES5_DILATION = 1  # which shallow networks have
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for path, parameter in model.named_parameters():
        if "cls_score.weight" in path:
            nn.init.normal_(parameter, std=0.02)
    return model


def image() -> dict:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[5.0, 5, 50, 60], [20, 30, 90, 80], [0, 0, 95, 95], [60, 4, 90, 40]])
    proposals = Instances((SIZE, SIZE), proposal_boxes=Boxes(boxes), objectness_logits=boxes[:, 0])
    pixels = torch.randint(256, (3, SIZE, SIZE), generator=generator).float()
    return {"image": pixels, "image_id": 0, "height": SIZE, "width": SIZE, "proposals": proposals}


def best_scores(found: list[dict[str, Tensor]]) -> Tensor:
    return found[0]["scores"].sort(descending=True).values


@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_the_zoo_goes_through_every_verb(name):
    model, inputs = build(name), [image()]
    before = detections(model, inputs)
    statistics = collect(model, [inputs], population="proposals")
    assert statistics.num_rois > 0
    with attach(model, statistics):
        attached = detections(model, inputs)
        assert not torch.equal(best_scores(attached), best_scores(before))
    assert_same(detections(model, inputs), before)
    folded = detections(fold(copy.deepcopy(model), statistics), inputs)
    torch.testing.assert_close(best_scores(folded), best_scores(attached), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_CLASSES)
def test_a_model_without_classes_of_objects_is_refused_in_a_sentence(name):
    model = build(name)
    for verb in (attach, fold):
        with pytest.raises(UserError, match=r"Found no box predictor .* docs/sites.md"):
            verb(model, "temperature(temperature=2)")
    with pytest.raises(UserError, match="Found no box predictor"):
        collect(model, [[image()]], population="proposals")
