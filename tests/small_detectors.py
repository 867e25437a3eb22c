"""A small detector and a small data set of noise, for passes over a data set.

The scripts that tests start as processes of their own import this file too.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image
from torch import nn

from logn_d2.config import add_logn_config

from .processes import Command
from .small_backbone import SMALL_BACKBONE

NUM_CLASSES = 4
CLASS_NAMES = ["common", "usual", "seldom", "rare"]
TRAIN = "small_detectors_train"
STANDARD, CASCADE = "StandardROIHeads", "CascadeROIHeads"


def draw_images(folder: Path, count: int = 10) -> list[dict]:
    """Writes images of noise; returns their records."""
    rng = np.random.default_rng(0)
    records = image_records(folder, count)
    for record in records:
        noise = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(record["file_name"])
    return records


def image_records(folder: Path, count: int = 10) -> list[dict]:
    """Two objects an image; one image has none, and the last class is in one image.

    A process that shares the images with others asks for the records alone: an image that is
    written anew is half a file to whoever reads it meanwhile.
    """
    records = []
    for index in range(count):
        second = 3 if index == 2 else 1 + index % 2
        objects = [annotation(0, [4.0, 6.0, 34.0, 40.0])]
        objects.append(annotation(second, [20.0, 10.0, 60.0, 30.0]))
        record = {"file_name": str(folder / f"{index}.png"), "image_id": 100 + index}
        size = {"height": 48, "width": 64}
        records.append({**record, **size, "annotations": [] if index == 5 else objects})
    return records


def annotation(category: int, box: list[float], **fields: object) -> dict:
    """An object that fills its box, given as its corners; further fields as they are."""
    x0, y0, x1, y1 = box
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        **fields,
    }


def register(records: list[dict], name: str = TRAIN) -> None:
    """Registers the images, in the place of others that had the name."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).thing_classes = CLASS_NAMES


def small_config(head: str = STANDARD, **options: object) -> CfgNode:
    """Three levels of few channels; options have "__" for the dots of a key."""
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (TRAIN,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 48, 56)
    cfg.INPUT.MIN_SIZE_TEST = 48
    cfg.TEST.DETECTIONS_PER_IMAGE = 30
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = SMALL_BACKBONE
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 60
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 40
    cfg.MODEL.ROI_HEADS.NAME = head
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 24
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.01
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in head
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def small_model(cfg: CfgNode, seed: int = 0) -> nn.Module:
    """The config's model, with weights that make its outputs vary over classes and images."""
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if "cls_score" in name and "bias" not in name:
            nn.init.normal_(parameter, std=0.01)
        elif "bbox_pred" in name and "bias" not in name:
            nn.init.normal_(parameter, std=0.001)
        elif "mask_head" in name and "bias" not in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def start_process(folder: Path, output: Path, *arguments: object) -> Command:
    """Starts `collect_process.py`, which says what the arguments are."""
    script = Path(__file__).with_name("collect_process.py")
    log = output.with_name(f"{output.name}.process{arguments[0]}.txt")
    return Command([script, folder, output, *arguments], log)
