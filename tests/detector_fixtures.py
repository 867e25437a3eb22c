"""Fixtures for passes of a small detector over a small data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from .small_detectors import CASCADE, STANDARD, draw_images, register, small_config, small_model


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images of `data_set` are."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def data_set(one_thread: None, image_folder: Path, request: pytest.FixtureRequest) -> list[dict]:
    """The records of a registered data set of as many images as the module's NUM_IMAGES says."""
    records = draw_images(image_folder, getattr(request.module, "NUM_IMAGES", 10))
    register(records)
    return records


@pytest.fixture(scope="module")
def models(data_set: list[dict]) -> dict[str, nn.Module]:
    """Two detectors for it by the names of their heads; tests leave them as they were."""
    return {head: small_model(small_config(head)) for head in (STANDARD, CASCADE)}


@pytest.fixture
def model(models: dict[str, nn.Module]) -> nn.Module:
    """The one that is no cascade."""
    return models[STANDARD]
