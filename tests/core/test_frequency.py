"""Class counts and the groups of LVIS and ImageNet-LT."""

import numpy as np
import pytest

from logn_d2.core import ClassCounts, frequency_groups, shot_groups


def test_lvis_groups_at_their_borders():
    groups = frequency_groups(np.array([0, 1, 10, 11, 100, 101, 1977]))
    assert groups.tolist() == ["r", "r", "r", "c", "c", "f", "f"]


def test_groups_of_another_vocabulary():
    groups = frequency_groups([1, 2, 3, 4], rare_max=1, common_max=3)
    assert groups.tolist() == ["r", "c", "c", "f"]


def test_imagenet_lt_groups_at_their_borders():
    assert shot_groups([0, 19, 20, 100, 101]).tolist() == ["few", "few", "medium", "medium", "many"]


def test_no_classes():
    assert frequency_groups(np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("field", ["image_count", "instance_count"])
def test_counts_must_be_one_a_class(field):
    counts = {"image_count": np.ones(2), "instance_count": np.ones(2), field: np.ones(3)}
    with pytest.raises(ValueError, match=rf"{field} has shape \(3,\), expected \(2,\)"):
        ClassCounts(("a", "b"), num_images=9, **counts)
