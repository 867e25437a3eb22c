"""Sizes, long tail and federated lists: the plan of a set, before anything is drawn."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logn_d2.glyphs.plan import SPLITS, class_image_counts, image_generator, plan_split
from logn_d2.glyphs.shards import make_shards
from logn_d2.glyphs.sizes import SIZES, get_size, zipf_image_counts
from logn_d2.glyphs.vocabulary import FACES, _compared_characters, glyph_bitmap, select_vocabulary


def annotated_classes(plan):
    return {c for c, annotated in plan.objects if annotated}


def group_sizes(size):
    groups = [size.frequency_of(int(n)) for n in size.train_image_counts()]
    return [groups.count(letter) for letter in "rcf"]


def test_lvis_size_has_the_group_sizes_of_lvis_v1():
    counts = SIZES["lvis"].train_image_counts()
    assert group_sizes(SIZES["lvis"]) == [337, 461, 405]
    assert (counts.max(), counts.min()) == (1977, 1)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tiny", [5, 4, 3]),
        ("demo", [42, 58, 50]),
        ("synonyms", [119, 131, 50]),
        ("lvis_small", [337, 461, 405]),
    ],
)
def test_group_sizes_are_those_of_the_readme(name, expected):
    assert group_sizes(SIZES[name]) == expected


@settings(max_examples=50, deadline=None)
@given(
    num_classes=st.integers(2, 300),
    images=st.integers(50, 2000),
    share=st.floats(0.05, 0.9),
    exponent=st.floats(0.2, 3.0),
    offset=st.floats(0.0, 20.0),
)
def test_zipf_counts_fall_and_add_up(num_classes, images, share, exponent, offset):
    total = int(num_classes + share * num_classes * (images - 1))
    counts = zipf_image_counts(num_classes, total, images, exponent, offset)
    assert (np.diff(counts) <= 0).all()
    assert counts.min() >= 1 and counts.max() <= images
    # Rounding moves each count by at most one half.
    assert abs(counts.sum() - total) <= num_classes


def test_zipf_counts_without_offset_follow_the_power_law():
    counts = zipf_image_counts(100, 20000, 10**6, exponent=1.0)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_plan_meets_the_image_counts_exactly(split):
    size = SIZES["demo"]
    found = np.zeros(size.num_classes, dtype=int)
    for plan in plan_split(size, 3, split):
        found[list(annotated_classes(plan))] += 1
    assert (found == class_image_counts(size, 3, split)).all()


def test_plan_keeps_to_the_classes_per_image():
    size = SIZES["demo"]
    shown = [len(annotated_classes(plan)) for plan in plan_split(size, 0, "train")]
    assert (min(shown), max(shown)) == size.classes_per_image


def test_training_frequency_is_independent_of_class_order_and_changes_with_the_seed():
    size = SIZES["demo"]
    first, second = (class_image_counts(size, seed, "train") for seed in (0, 1))
    assert sorted(first) == sorted(second) and (first != second).any()
    assert abs(np.corrcoef(np.arange(size.num_classes), first)[0, 1]) < 0.25


def test_validation_is_balanced_over_classes():
    counts = class_image_counts(SIZES["demo"], 0, "val")
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_federated_lists_agree_with_the_images(split):
    size = dataclasses.replace(SIZES["demo"], not_exhaustive_rate=0.3, unlabelled_rate=0.8)
    unlisted = 0
    for plan in plan_split(size, 0, split):
        shown, annotated = {c for c, _ in plan.objects}, annotated_classes(plan)
        hidden = [c for c, told in plan.objects if not told]
        assert not shown & set(plan.negatives)
        assert set(plan.not_exhaustive) == set(hidden) & annotated
        unlisted += len(set(hidden) - annotated)
        assert len(plan.negatives) == len(set(plan.negatives)) == size.negatives_per_image
    assert unlisted / len(plan_split(size, 0, split)) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("split", SPLITS)
def test_an_object_has_one_name_and_nothing_is_said_about_the_other(split):
    size = dataclasses.replace(SIZES["synonyms"], not_exhaustive_rate=0.3, unlabelled_rate=0.8)
    for plan in plan_split(size, 0, split):
        named = {c for c, _ in plan.objects}
        characters = [c % size.num_characters for c in named]
        assert len(characters) == len(set(characters))
        assert not {c % size.num_characters for c in plan.negatives} & set(characters)


def test_a_size_with_one_name_a_character_is_planned_as_before():
    size = dataclasses.replace(SIZES["tiny"], num_classes=6, train_images=20)
    plans = plan_split(size, 0, "train")
    assert [sorted(annotated_classes(plan)) for plan in plans[:3]] == [
        [1, 2, 4, 5],
        [1, 4, 5],
        [0, 3, 4, 5],
    ]


def test_names_must_share_the_classes_out_evenly():
    with pytest.raises(ValueError, match="names_per_character=7 .* divide num_classes=150"):
        dataclasses.replace(SIZES["demo"], names_per_character=7)


def test_random_streams_of_images_differ():
    draws = {
        image_generator(seed, split, index).random()
        for seed in (0, 1)
        for split in SPLITS
        for index in range(20)
    }
    assert len(draws) == 80


def test_vocabulary_has_no_two_similar_characters():
    characters = select_vocabulary(150, SIZES["demo"].similarity)
    assert len(set(characters)) == 150
    for looser, stricter in ((1203, SIZES["lvis"].similarity), (12, SIZES["tiny"].similarity)):
        assert len(set(select_vocabulary(looser, stricter))) == looser


def test_vocabulary_unlike_another_has_no_character_that_resembles_one_of_it():
    similarity = SIZES["demo"].similarity
    demo = select_vocabulary(150, similarity)
    others = select_vocabulary(300, similarity, demo)
    characters, cosine = _compared_characters()
    rows, columns = (np.isin(characters, words) for words in (demo, others))
    assert rows.sum() == 150 and columns.sum() == 300
    assert cosine[rows][:, columns].max() <= similarity


def test_all_classes_of_the_pretraining_size_are_equally_frequent_and_not_of_the_demo(tmp_path):
    counts = SIZES["pretrain"].train_image_counts()
    assert set(counts) == {45} and len(counts) == 300
    pretrain, demo = (make_shards(tmp_path, SIZES[name], 0)[0] for name in ("pretrain", "demo"))
    assert len(pretrain.characters) == 300
    assert not set(pretrain.characters) & set(demo.characters)


def test_every_character_has_ink_in_every_face():
    for character in select_vocabulary(150, SIZES["demo"].similarity):
        assert all(glyph_bitmap(character, face, 32).any() for face in range(len(FACES)))


def test_the_error_for_a_strict_similarity_has_the_number_of_characters():
    with pytest.raises(ValueError, match=r"only \d+ characters .* num_classes=2000.*Raise"):
        select_vocabulary(2000, 0.8)


def test_unknown_size_names_the_known_ones():
    with pytest.raises(KeyError, match="tiny, demo, pretrain, synonyms, lvis_small, lvis"):
        get_size("huge")


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="classes_per_image"):
        dataclasses.replace(SIZES["tiny"], classes_per_image=(3, 2))
    with pytest.raises(ValueError, match="no room"):
        dataclasses.replace(SIZES["tiny"], glyph_px=(20.0, 90.0))
    with pytest.raises(ValueError, match="1977 train images, but only 500"):
        plan_split(dataclasses.replace(SIZES["lvis"], train_images=500), 0, "train")
