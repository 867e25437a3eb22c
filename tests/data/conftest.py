"""A size of many images for the data tests, and catalogs that forget what a test registers."""

import dataclasses

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.data.glyphs import SIZES


@pytest.fixture(autouse=True)
def catalogs():
    datasets, metadata = dict(DatasetCatalog), dict(MetadataCatalog)
    yield
    for catalog, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        catalog.clear()
        catalog.update(before)


@pytest.fixture(scope="session")
def many_size():
    """A size with enough images that they are drawn by several processes."""
    return dataclasses.replace(SIZES["tiny"], name="many", train_images=230, val_images=20)
