"""The requirements of an experiment for an existing training."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file

from logn_d2.engine import load_config
from logn_d2.engine.experiments import Row, check_same_training, measure, run_config
from logn_d2.errors import UserError

CONFIG = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """A config, of which the folder holds what a training writes."""
    cfg = load_config(get_config_file(CONFIG))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return cfg


def test_a_config_file_is_the_config_that_was_written(tmp_path: Path, cfg: CfgNode) -> None:
    # Tuples of tuples come back from the file as lists.
    assert isinstance(cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[0], tuple)
    check_same_training(tmp_path, cfg)


def test_a_key_that_is_younger_than_the_file_has_its_default(tmp_path: Path, cfg: CfgNode) -> None:
    written = (tmp_path / "config.yaml").read_text()
    without = written.replace("  REPEAT_THRESHOLD: 0.0\n", "")
    assert without != written
    (tmp_path / "config.yaml").write_text(without)
    check_same_training(tmp_path, cfg)


def test_another_value_is_named(tmp_path: Path, cfg: CfgNode) -> None:
    weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = (*weights[:2], (30.0, 30.0, 15.0, 10.0))
    with pytest.raises(UserError, match=r"BBOX_REG_WEIGHTS is .* 15.0\]\], not .* 10.0\]\]"):
        check_same_training(tmp_path, cfg)


def test_keys_without_effect_on_the_weights_may_differ(tmp_path: Path, cfg: CfgNode) -> None:
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = "elsewhere", "cpu"
    check_same_training(tmp_path, cfg)


def test_a_training_without_a_test_set_has_that_of_its_sweep(tmp_path: Path, cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "model_final.pth").touch()
    found = run_config(tmp_path)
    assert found.DATASETS.TEST == ()
    with pytest.raises(ValueError, match="no results.json that names a data set"):
        measure(found, [Row("logn", "logn")], tmp_path)
    (tmp_path / "results.json").write_text(
        '{"rows": [{"calibration": "uncalibrated", "bbox": {"AP": 1}}],'
        '"provenance": {"data set": "some_val"}}'
    )
    assert run_config(tmp_path).DATASETS.TEST == ("some_val",)
    cfg.DATASETS.TEST = ("own_val",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert run_config(tmp_path).DATASETS.TEST == ("own_val",)
