"""The tiny drawn data set, registered, and its config."""

import pytest
from detectron2.config import get_cfg

from logn_d2 import add_logn_config
from logn_d2.glyphs import register_glyphs

from ..small_backbone import GLYPHS_CONFIG


@pytest.fixture
def tiny_folder(tiny_root):
    register_glyphs(tiny_root)
    return tiny_root / "lt_glyphs" / "tiny"


@pytest.fixture
def cfg(tiny_folder, tmp_path):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(str(GLYPHS_CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg
