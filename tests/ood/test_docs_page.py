"""The examples of docs/ood.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "ood.md"


def test_examples_run(capsys):
    rng = np.random.default_rng(0)
    names = {
        "my_id_logits": 3 * rng.normal(size=(50, 4)),
        "my_ood_logits": rng.normal(size=(30, 4)),
        "my_val_logits": rng.normal(size=(40, 4)),
        "my_val_labels": rng.integers(0, 4, 40),
        "my_id_labels": rng.integers(0, 4, 50),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    # The example of Detectron2's loop needs a classifier, and has a test of its own.
    blocks = [block for block in blocks if "detectron2" not in block]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), dict(names))
    printed = capsys.readouterr().out
    assert "| msp, normalized |" in printed
    assert 0 <= float(printed.splitlines()[-1]) <= 1
