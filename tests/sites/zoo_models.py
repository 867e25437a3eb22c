"""Models of Detectron2's zoo and of its projects, with random weights and shrunk backbones.

A config of each kind by default; ``LOGN_D2_WHOLE_ZOO=1`` takes all configs that the installed
Detectron2 brings along, and ``LOGN_D2_PROJECTS=detectron2/projects`` adds those of the projects of
a checkout.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from torch import nn

__all__ = ["NAMES", "SIZE", "build", "image", "is_refused"]

SIZE = 96
_KINDS = [
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "COCO-Detection/fcos_R_50_FPN_1x.py",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml",
    "Misc/semantic_R_50_FPN_1x.yaml",
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml, federated",
]
_NOT_MODELS = ("Base", "torchvision_imagenet", "mmdet", "retinanet-eval")
# Shrunk, models of other depths are the same, and so are other schedules and confidence losses.
_SAME = re.compile(r"_(R_\d+|X_\d+_32x8d|\d+x|\d+ep|[bhlst](_in21k)?(?=_\d)|[34]gf_dds|WC\dM?)")
_PROJECTS = os.environ.get("LOGN_D2_PROJECTS", "")
_PANOPTIC = "detectron2.projects.panoptic_deeplab:add_panoptic_deeplab_config"
# What adds a project's keys to a config.
_CONFIG_FUNCTIONS = {
    "DeepLab": ["detectron2.projects.deeplab:add_deeplab_config"],
    "DensePose": ["densepose:add_densepose_config"],
    "Panoptic-DeepLab": [_PANOPTIC],
    "PointRend": ["detectron2.projects.point_rend:add_pointrend_config"],
    "PointSup": [
        "detectron2.projects.point_rend:add_pointrend_config",
        "point_sup:add_point_sup_config",
    ],
    "TensorMask": ["tensormask:add_tensormask_config"],
    "TridentNet": ["tridentnet:add_tridentnet_config"],
}


def _zoo() -> Path:
    return Path(model_zoo.__file__).parent / "configs"


def _names() -> list[str]:
    """What is built: paths below the zoo's configs, or below the projects' folder."""
    found = list(_KINDS)
    if os.environ.get("LOGN_D2_WHOLE_ZOO"):
        found = [*_below(_zoo(), depth=2), _KINDS[-1]]
    if _PROJECTS:
        found += [f"projects/{name}" for name in _below(Path(_PROJECTS))]
    return found


def _below(root: Path, depth: int = 0) -> list[str]:
    """The configs of different models, without those that others are made of."""
    paths = [p.relative_to(root) for kind in ("*.yaml", "*.py") for p in sorted(root.rglob(kind))]
    found: dict[str, str] = {}
    for path in paths:
        name = path.as_posix()
        is_config = len(path.parts) == 2 if depth else "configs" in path.parts
        is_shared = name.startswith("common/") or "/common/" in name or "quick" in name
        if is_config and not is_shared and not path.name.startswith(_NOT_MODELS):
            found.setdefault(_SAME.sub("", name), name)
    return list(found.values())


NAMES = _names()


def is_refused(name: str) -> bool:
    """Whether it proposes regions without classifying them, or has two classifiers of pixels."""
    return Path(name).name.startswith(("rpn_", "pointrend_semantic"))


def build(name: str) -> nn.Module:
    """A config's model on the CPU; the test is skipped where Detectron2 can't build it."""
    path = Path(_PROJECTS) / name[9:] if name.startswith("projects/") else _zoo() / name
    path = Path(str(path).removesuffix(", federated"))
    if not path.is_file():
        pytest.skip(f"Detectron2 has no {name}")
    torch.manual_seed(0)
    model = _from_lazy(path) if path.suffix == ".py" else _from_yaml(path, name)
    _normalise(model)
    for key, parameter in model.named_parameters():
        if "cls_score.weight" in key:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _from_yaml(path: Path, name: str) -> nn.Module:
    cfg = get_cfg()
    project = name.split("/")[1]
    if name.startswith("projects/"):
        for function in _CONFIG_FUNCTIONS[project]:
            _project_function(project, function)(cfg)
    with _skipping(KeyError):
        cfg.merge_from_file(str(path))
    _shrink(cfg, name)
    if name.endswith("federated"):
        if "USE_FED_LOSS" not in cfg.MODEL.ROI_BOX_HEAD:
            pytest.skip("this Detectron2 has no federated loss")
        cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    with _skipping(NotImplementedError, ImportError):
        return build_model(cfg)


def _project_function(project: str, name: str) -> Callable:
    package, _, function = name.partition(":")
    sys.path.insert(0, str(Path(_PROJECTS) / project))
    try:
        with _skipping(ImportError, NotImplementedError):
            return getattr(importlib.import_module(package), function)
    finally:
        del sys.path[0]


def _shrink(cfg: CfgNode, name: str) -> None:
    """18 layers and few channels where the model can have them; any box above a threshold of 0."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    resnets = cfg.MODEL.RESNETS
    if any(resnets.DEFORM_ON_PER_STAGE):
        pytest.skip("deformable convolution needs Detectron2's compiled operators")
    if cfg.MODEL.BACKBONE.NAME in ("build_resnet_backbone", "build_resnet_fpn_backbone",
                                   "build_retinanet_resnet_fpn_backbone"):  # fmt: skip
        resnets.DEPTH, resnets.RES2_OUT_CHANNELS = 18, 64
        resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = 1, 64
        if "DC5" in name:
            resnets.RES5_DILATION = 1  # which shallow networks have
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [32] * 8
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.INPUT.CROP.SIZE = [SIZE, SIZE]  # what DeepLab pools over


def _from_lazy(path: Path) -> nn.Module:
    with _skipping(ImportError, NotImplementedError, AttributeError):
        node = LazyConfig.load(str(path)).model
        _shrink_lazily(node)
        return instantiate(node)


def _shrink_lazily(node: Any) -> None:
    """Transformers of few blocks for small images; the rest is as in the config."""
    net = node.backbone.get("net", node.backbone.get("bottom_up"))
    if net is not None and "window_block_indexes" in net:  # ViT
        net.img_size, net.embed_dim, net.depth, net.num_heads = 128, 96, 2, 4
        net.window_block_indexes = [0]
    elif net is not None and "last_block_indexes" in net:  # MViT
        net.embed_dim, net.depth, net.num_heads = 32, 4, 1
        net.last_block_indexes = (0, 1, 2, 3)
        net.pop("pretrain_img_size", None)
    elif net is not None and "depths" in net:  # Swin
        net.embed_dim, net.depths, net.num_heads = 32, [1, 1, 1, 1], [1, 2, 4, 8]
    if "square_pad" in node.backbone:
        node.backbone.square_pad = 128
    if "proposal_generator" in node and "post_nms_topk" in node.proposal_generator:
        node.proposal_generator.post_nms_topk = [100, 30]
    heads = node.get("roi_heads", {})
    for part in (node, heads.get("box_predictor"), *heads.get("box_predictors", [])):
        if part is not None and (part is not node or "roi_heads" not in node):
            part.test_score_thresh = 0.0
        if part is not None and "test_topk_per_image" in part:
            part.test_topk_per_image = 20


def _normalise(model: nn.Module) -> None:
    """Norms that random weights need: those of the zoo pass on what statistics they were given."""
    for parent in list(model.modules()):
        for key, module in parent.named_children():
            if isinstance(module, (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)):
                channels = module.num_features
                parent._modules[key] = nn.GroupNorm(_groups(channels), channels)


def _groups(channels: int) -> int:
    return next(count for count in (32, 16, 8, 4, 3, 2, 1) if channels % count == 0)


@contextlib.contextmanager
def _skipping(*errors: type[Exception]) -> Any:
    """Skip the test where this Detectron2 lacks what the model needs."""
    try:
        yield
    except errors as error:
        pytest.skip(f"this Detectron2 can't build it: {str(error)[:120]}")


def image(index: int = 0) -> dict[str, Any]:
    """A model's input with proposals and every kind of ground truth."""
    generator = torch.Generator().manual_seed(index)
    boxes = torch.tensor([[5.0, 5, 50, 60], [20, 30, 90, 80], [0, 0, 95, 95], [60, 4, 90, 40]])
    proposals = Instances((SIZE, SIZE), proposal_boxes=Boxes(boxes), objectness_logits=boxes[:, 0])
    objects = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes[:3] + 1))
    objects.gt_classes = torch.zeros(3, dtype=torch.long)
    objects.gt_masks = BitMasks(torch.ones(3, SIZE, SIZE, dtype=torch.bool))
    objects.gt_keypoints = Keypoints(torch.full((3, 17, 3), 40.0))
    return {
        "image": torch.randint(256, (3, SIZE, SIZE), generator=generator).float(),
        "image_id": index,
        "height": SIZE,
        "width": SIZE,
        "proposals": proposals,
        "instances": objects,
        "sem_seg": torch.zeros(SIZE, SIZE, dtype=torch.long),
    }
