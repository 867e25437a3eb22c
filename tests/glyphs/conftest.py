"""A size of many images, and catalogs that forget what a test registers."""

import dataclasses

import pytest

from logn_d2.glyphs import SIZES

from ..data.conftest import catalogs

__all__ = ["catalogs"]


@pytest.fixture(scope="session")
def many_size():
    """A size with enough images that they are drawn by several processes."""
    return dataclasses.replace(SIZES["tiny"], name="many", train_images=230, val_images=20)
