"""The examples of docs/classification.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "classification.md"


def test_examples_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {"my_image": 255 * torch.rand(3, 48, 48)})
    assert "torch.Size([4]) torch.Size([4])" in capsys.readouterr().out
