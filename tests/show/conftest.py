"""A small detector, two images and a video for `logn show`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from logn_d2.collection import collect_statistics

from ..command import command
from ..small_detectors import CLASS_NAMES, draw_images, small_config, small_model


@pytest.fixture(scope="session")
def demo() -> ModuleType:
    return command("show")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, weights and statistics of Detectron2's own heads; two images; a video."""
    folder = tmp_path_factory.mktemp("demo")
    cfg = small_config("StandardROIHeads", MODEL__MASK_ON=False)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("a_set_that_is_not_registered",)
    model = small_model(cfg)
    with open(folder / "config.yaml", "w") as file:
        file.write(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    loader = [[{"image": torch.rand(3, 48, 64) * 255, "image_id": i}] for i in range(3)]
    statistics = collect_statistics(model, loader, population="proposals", class_names=CLASS_NAMES)
    statistics.save(folder / "stats.safetensors")
    (folder / "images").mkdir()
    draw_images(folder / "images", 2)
    (folder / "images" / "notes.txt").write_text("not an image")
    writer = cv2.VideoWriter(
        str(folder / "video.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 7.0, (64, 48)
    )
    for frame in np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    return folder
