"""Class names for the check of statistics."""

from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.data import register_lvis_form
from logn_d2.modeling.build import known_class_names


def test_a_missing_training_set_gives_no_names(tmp_path):
    name = "somewhere_else_train"
    register_lvis_form(name, str(tmp_path / "missing.json"), str(tmp_path))
    try:
        assert known_class_names((name,), 3) is None
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
