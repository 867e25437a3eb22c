"""Command lines of `logn show`, and its answers to wrong ones."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

THRESHOLD = "0.5"  # few detections: drawing is what takes time
# Two sides, with their captions, of an image of 48 x 64 that is enlarged.
PICTURE = (28 + 360, 480 + 8 + 480)


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        *("--config-file", f"{folder}/config.yaml", "--stats", f"{folder}/stats.safetensors"),
        *("--confidence-threshold", THRESHOLD, *more),
        *("--weights", f"{folder}/model.pth"),
    ]


def error_of(capsys: pytest.CaptureFixture, demo: ModuleType, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ending:
        demo.main(arguments)
    assert ending.value.code == 1
    return capsys.readouterr().err
