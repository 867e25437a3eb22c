"""The error of calibrated logits, against resampled images and slow jackknives."""

import functools
import zlib

import pytest
import torch

from logn_d2.core import (
    LogitMoments,
    LogitStatistics,
    StageStatistics,
    StatisticsError,
    logn,
    sampling_error,
)
from logn_d2.core.moments import NUM_GROUPS

LEVEL = torch.tensor([-2.0, -5.0, -3.5, 3.0], dtype=torch.float64)  # beta is of the second
SPREAD = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
# Written out: the documented range of raw logits, in standard deviations above the mean.
ENDS = (0.0, 3.0)


def draw_images(number, seed=0, sizes_seed=None):
    """RoIs of one image have something in common: a level, and how much they vary.

    Sets with one ``sizes_seed`` have the same numbers of RoIs in their images.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = generator if sizes_seed is None else torch.Generator().manual_seed(sizes_seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = torch.randint(1, 9, (number,), generator=sizes).tolist()
    return [
        LEVEL + SPREAD * (0.7 * normal(1, 4) + normal(n, 4) * (0.5 + normal(1, 4).abs()))
        for n in sizes
    ]


def gather(images, weights=None):
    moments = LogitMoments(images[0].shape[1])
    for index, image in enumerate(images):
        moments.update(image, weight=1 if weights is None else weights[index], image=index)
    return moments


def stage_of(images, weights=None):
    return StageStatistics.from_moments(gather(images, weights))


@functools.cache
def draw_sets(images, sets, weights=None):
    """The statistics of as many data sets of as many images each.

    The columns of moments know nothing of each other: ten sets are columns of one pass.
    """
    found = []
    for first in range(0, sets, 10):
        drawn = [draw_images(images, first + n, sizes_seed=first) for n in range(10)]
        state = gather([torch.cat(same, dim=1) for same in zip(*drawn)], weights).state_dict()
        parts = zip(*(value.split(4, dim=-1) for value in state.values()))
        moments = [LogitMoments.from_state_dict(dict(zip(state, part))) for part in parts]
        found += map(StageStatistics.from_moments, moments)
    return found


def endpoint_logits(stage):
    return torch.stack([stage.mean + d * stage.std for d in ENDS])


def group(image):
    return zlib.crc32(str(image).encode()) % NUM_GROUPS


def test_what_is_left_without_a_group_is_the_pass_over_the_other_images():
    images = draw_images(60)
    weights = torch.rand(60, generator=torch.Generator().manual_seed(1)).add(0.5).tolist()
    shares, means, variances = gather(images, weights).leave_one_out()
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(4).double())
    for left_out in range(NUM_GROUPS):
        kept = [index for index in range(60) if group(index) != left_out]
        alone = gather([images[i] for i in kept], [weights[i] for i in kept])
        torch.testing.assert_close(means[left_out], alone.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(variances[left_out], alone.var, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cuts", [1, 3, 40])
def test_merged_parts_have_the_error_of_the_whole(cuts):
    images = draw_images(40)
    whole, parts = gather(images), [LogitMoments(4) for _ in range(cuts)]
    for index, image in enumerate(images):
        parts[index % cuts].update(image, image=index)
    merged = LogitMoments.merged(reversed(parts))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    one, other = (sampling_error(StageStatistics.from_moments(m)) for m in (whole, merged))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


def test_a_weight_is_as_many_copies():
    """Copies of an image are no new images: they are in its group."""
    images, weights = draw_images(30), [1 + index % 3 for index in range(30)]
    copies = LogitMoments(4)
    for index, image in enumerate(images):
        for _ in range(weights[index]):
            copies.update(image, image=index)
    state = gather(images, weights).state_dict()
    for name, value in copies.state_dict().items():
        if name != "count":
            torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10, msg=name)
    torch.testing.assert_close(
        sampling_error(stage_of(images, weights)),
        sampling_error(StageStatistics.from_moments(copies)),
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize(("times", "share"), [(1, 0), (2, 1.0), (3, 0.2), (6, 0.05)])
def test_reported_error_is_the_scatter_over_data_sets(times, share):
    """Of new images, beta included, also where some of them are repeated."""
    weights = tuple(times if index < share * 80 else 1 for index in range(80))
    stages = draw_sets(80, 50, weights)
    logits = endpoint_logits(stage_of(draw_images(500, seed=1000)))
    found = torch.stack([logn(stage).double()(logits) for stage in stages])
    scatter = found.std(dim=0).amax(dim=0)[:3]
    reported = torch.stack([sampling_error(stage) for stage in stages])
    ratio = scatter / reported.square().mean(dim=0).sqrt()
    # The scatter over 50 data sets has itself an error of 10 %.
    assert ((ratio - 1).abs() < 0.25).all(), ratio


@pytest.mark.parametrize("beta", ["mean", "none"])
def test_any_calibration_has_an_error(beta):
    calibration = functools.partial(logn, beta=beta)
    logits = endpoint_logits(stage_of(draw_images(500, seed=1000)))
    stages = draw_sets(150, 60)
    scatter = torch.stack([calibration(stage).double()(logits) for stage in stages]).std(dim=0)
    errors = torch.stack([sampling_error(stage, calibration) for stage in stages])
    ratio = scatter.amax(dim=0)[:3] / errors.square().mean(dim=0).sqrt()
    assert ((ratio - 1).abs() < 0.3).all(), ratio


@pytest.mark.parametrize("use_mean", [True, False])
def test_error_is_the_jackknife_at_the_mean_and_three_deviations_above(use_mean):
    """Pseudo-values by their definition (Busing et al. 1999)."""
    stage = stage_of(draw_images(100))
    shares, means, variances = stage.moments.leave_one_out()
    h, largest = 1 / shares, torch.zeros(4)
    for deviations in (0, 3):
        logit = stage.mean + deviations * stage.std
        whole = (logit - use_mean * stage.mean) / stage.std
        left = (logit - use_mean * means) / variances.sqrt()
        pseudo = h * whole - (h - 1) * left
        mean = NUM_GROUPS * whole - ((1 - shares) * left).sum(dim=0)
        error = ((pseudo - mean).square() / (h - 1)).mean(dim=0).sqrt()
        largest = torch.maximum(largest, error)
    calibration = functools.partial(logn, beta="none", use_mean=use_mean)
    found = sampling_error(stage, calibration)
    torch.testing.assert_close(found, largest[:3], rtol=1e-4, atol=0)


def test_error_falls_with_the_square_root_of_the_images():
    few, many = (
        torch.stack([sampling_error(stage_of(draw_images(n, seed))) for seed in range(5)]).mean()
        for n in (100, 900)
    )
    assert 2.25 < few / many < 4


def test_correlated_rois_of_an_image_tell_less_than_as_many_images():
    """Ten copies of each RoI make ten times the count, and no better statistics."""
    images = draw_images(50)
    repeated = [image.repeat(10, 1) for image in images]
    one, ten = sampling_error(stage_of(images)), sampling_error(stage_of(repeated))
    torch.testing.assert_close(one, ten, rtol=0.03, atol=0)


def test_class_that_was_seen_in_one_image_has_an_infinite_error():
    moments = LogitMoments(4)
    mask = torch.ones(5, 4, dtype=torch.bool)
    for index, image in enumerate(draw_images(20)):
        own = mask[:1].repeat(len(image), 1)
        own[:, 2] = index == 3
        moments.update(image, own, image=index)
    error = sampling_error(StageStatistics.from_moments(moments))
    assert error[2].isinf() and error[:2].isfinite().all()


def test_constant_logit_has_no_error_and_no_say():
    images = draw_images(30)
    for image in images:
        image[:, 1] = -9.0  # would be beta
    changed = torch.cat([torch.cat(images)[:, :1], torch.cat(images)[:, 2:]], dim=1)
    without = changed.split([len(image) for image in images])
    error = sampling_error(stage_of(images))
    assert error[1] == 0
    torch.testing.assert_close(error[[0, 2]], sampling_error(stage_of(list(without))))


def test_background_first_is_the_same_as_last():
    images = draw_images(30)
    moved = [torch.cat([image[:, 3:], image[:, :3]], dim=1) for image in images]
    first = sampling_error(stage_of(moved), background="first")
    torch.testing.assert_close(first, sampling_error(stage_of(images)))


def test_largest_error_of_all_stages_counts():
    stages = tuple(stage_of(draw_images(n)) for n in (100, 15))
    statistics = LogitStatistics(stages=stages, class_names=("a", "b", "c"))
    assert statistics.sampling_error() == float(sampling_error(stages[1]).max())


def test_moving_averages_have_no_error():
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(StatisticsError, match="exact estimator"):
        sampling_error(StageStatistics(one, one, one.long()))


def test_files_of_early_releases_have_no_error_but_merge():
    new = gather(draw_images(10))
    state = new.state_dict()
    old = {name: state[name] for name in ("count", "mean", "sum_square")}
    old |= {name: torch.ones(4) for name in ("clusters", "residual_square", "size_square")}
    moments = LogitMoments.from_state_dict(old)
    assert torch.equal(moments.var, new.var) and moments.std_error.isnan().all()
    for merged in (moments.merge(gather(draw_images(5, seed=3))), new.merge(moments)):
        assert merged.var.isfinite().all() and merged.std_error.isnan().all()
        with pytest.raises(StatisticsError, match="Collect them again"):
            sampling_error(StageStatistics.from_moments(merged))
