"""Catalogs that forget what a test registers."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def catalogs():
    datasets, metadata = dict(DatasetCatalog), dict(MetadataCatalog)
    yield
    for catalog, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        catalog.clear()
        catalog.update(before)
