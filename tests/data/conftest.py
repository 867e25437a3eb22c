"""What the data tests share: one drawn tiny set, and catalogs that forget what a test registers."""

import dataclasses

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.data.glyphs import SIZES, draw_glyphs


@pytest.fixture(autouse=True)
def catalogs():
    datasets, metadata = dict(DatasetCatalog), dict(MetadataCatalog)
    yield
    for catalog, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        catalog.clear()
        catalog.update(before)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A datasets root that holds LT-Glyphs tiny. Read only: tests that change files copy it."""
    root = tmp_path_factory.mktemp("datasets")
    draw_glyphs(root, "tiny", num_workers=1)
    return root


@pytest.fixture(scope="session")
def many_size():
    """A size with enough images that they are drawn by several processes."""
    return dataclasses.replace(SIZES["tiny"], name="many", train_images=230, val_images=20)
