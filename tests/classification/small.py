"""A classifier of few weights, its config, and images that it can learn."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from logn_d2.classification import ImageData, array_records
from logn_d2.config import add_logn_config
from logn_d2.core import LogitMoments, LogitStatistics, StageStatistics
from logn_d2.modeling import find_box_predictors, predictor_fingerprint

K, SIZE = 4, 6
NAMES = tuple("abcd")
COUNTS = (30, 12, 6, 3)


def small_config(**options: object) -> CfgNode:
    """An MLP on gray images of 6 x 6 pixels; options have "__" for the dots."""
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_mlp_backbone"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0], [50.0]
    cfg.MODEL.LOGN.IMAGE.SIZE, cfg.MODEL.LOGN.IMAGE.RESIZE = SIZE, 0
    cfg.MODEL.LOGN.IMAGE.HIDDEN, cfg.MODEL.LOGN.IMAGE.AUGMENT = [16, 8], "none"
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "L", "none"
    cfg.merge_from_list([v for k, x in options.items() for v in (k.replace("__", "."), x)])
    return cfg


def small_model(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(small_config(**options))


def images(number: int = 5, seed: int = 0, channels: int = 1) -> list[dict]:
    """Inputs of the model, labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 255 * torch.rand(number, channels, SIZE, SIZE, generator=generator)
    return [
        {"image": each, "label": index % K, "image_id": index, "file_name": f"{index}.png"}
        for index, each in enumerate(pixels)
    ]


def statistics_of(model: torch.nn.Module, inputs: list[dict]) -> LogitStatistics:
    """What a pass over these images gathers."""
    logits = raw_logits(model, inputs)
    moments = LogitMoments(K)
    moments.update(logits)
    fingerprint = predictor_fingerprint(find_box_predictors(model)[0])
    stage = StageStatistics.from_moments(moments, fingerprint)
    return LogitStatistics((stage,), NAMES, background="none")


@torch.no_grad()
def raw_logits(model: torch.nn.Module, inputs: list[dict]) -> torch.Tensor:
    return torch.stack([each["logits"] for each in model.eval()(inputs)])


def scores_of(model: torch.nn.Module, inputs: list[dict]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([each["scores"] for each in model.eval()(inputs)])


def array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def small_set(counts, seed):
    """Four classes of noisy patterns; the patterns are the same in every set."""
    patterns = np.random.default_rng(99).integers(0, 256, (K, SIZE, SIZE))
    labels = np.repeat(np.arange(K), counts)
    noise = np.random.default_rng(seed).normal(0, 60, (len(labels), SIZE, SIZE))
    pixels = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
    return ImageData(array_records("small", pixels, labels), NAMES, limits=(4, 12))
