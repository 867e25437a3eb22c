"""Configs of a command line: the user's own modules, and configs of another kind."""

import sys

import pytest
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

from logn_d2.config import config_file
from logn_d2.engine import load_config

MODULE = """
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

@ROI_HEADS_REGISTRY.register()
class HeadsOfThisTest(StandardROIHeads):
    pass
"""
CONFIG = config_file("glyphs_tiny_mask_rcnn_R_18_FPN.yaml")


def test_a_module_of_ones_own_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "module_of_this_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    try:
        load_config(CONFIG, imports=["module_of_this_test"])
        assert ROI_HEADS_REGISTRY.get("HeadsOfThisTest").__name__ == "HeadsOfThisTest"
    finally:
        ROI_HEADS_REGISTRY._obj_map.pop("HeadsOfThisTest", None)
        sys.modules.pop("module_of_this_test", None)
    assert sys.path == before


def test_a_module_that_is_not_there_is_named_and_its_own_mistakes_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no module 'modul_of_this_test' to import"):
        load_config(CONFIG, imports=["modul_of_this_test"])
    (tmp_path / "broken_of_this_test.py").write_text("import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        load_config(CONFIG, imports=["broken_of_this_test"])
