"""The error of calibrated logits, against resampled images and slow sums over them."""

import pytest
import torch

from logn_d2.core import (
    LogitMoments,
    LogitStatistics,
    StageStatistics,
    StatisticsError,
    logn,
    logn_std_error,
)
from logn_d2.core.calibration_error import DEVIATIONS

LEVEL = torch.tensor([-2.0, -5.0, -3.5, 3.0], dtype=torch.float64)  # beta is of the second
SPREAD = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)


def draw_images(number, seed=0):
    """RoIs of one image have something in common: a level, and how much they vary."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = torch.randint(1, 9, (number,), generator=generator).tolist()
    return [
        LEVEL + SPREAD * (0.7 * normal(1, 4) + normal(n, 4) * (0.5 + normal(1, 4).abs()))
        for n in sizes
    ]


def gather(images):
    moments = LogitMoments(images[0].shape[1])
    for image in images:
        moments.update(image)
    return moments


def stage_of(images):
    return StageStatistics.from_moments(gather(images))


def endpoint_logits(stage):
    return torch.stack([stage.mean + d * stage.std for d in DEVIATIONS])


def test_linear_error_is_the_sum_over_images():
    images, moments = draw_images(40), gather(draw_images(40))
    logits, total = torch.cat(images), sum(map(len, images))
    mean = logits.mean(dim=0)
    var = (logits - mean).square().mean(dim=0)
    a, b = torch.tensor([1.0, -2.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, -4.0, 0.0])
    square = 0.0
    for image in images:
        effect = a * (image - mean).sum(dim=0) + b * ((image - mean) ** 2 - var).sum(dim=0)
        square = square + (effect / total) ** 2
    expected = (square * 40 / 39).sqrt()
    torch.testing.assert_close(moments.linear_std_error(a, b), expected, rtol=1e-10, atol=0)
    zero = torch.zeros(4)
    torch.testing.assert_close(moments.linear_std_error(zero + 1, zero), moments.std_error)


@pytest.mark.parametrize("cuts", [1, 3, 40])
def test_merged_parts_have_the_error_of_the_whole(cuts):
    images = draw_images(40)
    parts = [gather(images[start::cuts]) for start in range(cuts)]
    whole, merged = gather(images), LogitMoments.merged(reversed(parts))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    one, other = (logn_std_error(StageStatistics.from_moments(m)) for m in (whole, merged))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def resampled():
    return [stage_of(draw_images(60, seed=seed)) for seed in range(100, 250)]


@pytest.mark.parametrize("background", ["last", "none"])
def test_error_bounds_the_scatter_over_data_sets_and_is_not_far_from_it(resampled, background):
    """Without beta, and in the class that beta is of, nothing is estimated from above."""
    reference = stage_of(draw_images(1000, seed=1))
    logits = endpoint_logits(reference)
    found = torch.stack([logn(stage, background=background)(logits) for stage in resampled])
    classes = 3 if background == "last" else 4
    scatter = found.std(dim=0).amax(dim=0)[:classes]
    errors = [logn_std_error(stage, background=background) for stage in resampled]
    error = torch.stack(errors).square().mean(dim=0).sqrt()
    assert (error > 0.85 * scatter).all()
    exact = [1] if background == "last" else range(4)
    for column in exact:
        assert error[column] < 1.15 * scatter[column]


def test_logits_between_the_ends_have_no_larger_error():
    """The bound holds in between: the variance is a convex parabola in z."""
    images = draw_images(60)
    stage = stage_of(images)
    largest = logn_std_error(stage, background="none")
    for d in torch.linspace(*DEVIATIONS, 7):
        between = stage.moments.linear_std_error(-1 / stage.std, -d / (2 * stage.var))
        assert (between <= largest * (1 + 1e-12)).all()


def test_error_falls_with_the_square_root_of_the_images():
    few, many = (logn_std_error(stage_of(draw_images(n))).max() for n in (100, 1600))
    assert 3 < few / many < 5.3


def test_correlated_rois_of_an_image_tell_less_than_as_many_images():
    """Ten copies of each RoI make ten times the count, and no better statistics."""
    images = draw_images(50)
    repeated = [image.repeat(10, 1) for image in images]
    one, ten = logn_std_error(stage_of(images)), logn_std_error(stage_of(repeated))
    torch.testing.assert_close(one, ten, rtol=0.02, atol=0)


def test_class_that_was_seen_in_one_image_has_an_infinite_error():
    moments = LogitMoments(4)
    mask = torch.ones(5, 4, dtype=torch.bool)
    for index, image in enumerate(draw_images(20)):
        own = mask[:1].repeat(len(image), 1)
        own[:, 2] = index == 3
        moments.update(image, own)
    error = logn_std_error(StageStatistics.from_moments(moments))
    assert error[2].isinf() and error[:2].isfinite().all()


def test_constant_logit_has_no_error_and_no_say():
    images = draw_images(30)
    for image in images:
        image[:, 1] = -9.0  # would be beta
    changed = torch.cat([torch.cat(images)[:, :1], torch.cat(images)[:, 2:]], dim=1)
    without = changed.split([len(image) for image in images])
    error = logn_std_error(stage_of(images))
    assert error[1] == 0
    torch.testing.assert_close(error[[0, 2]], logn_std_error(stage_of(list(without))))


def test_background_first_is_the_same_as_last():
    images = draw_images(30)
    moved = [torch.cat([image[:, 3:], image[:, :3]], dim=1) for image in images]
    first = logn_std_error(stage_of(moved), background="first")
    torch.testing.assert_close(first, logn_std_error(stage_of(images)))


def test_largest_error_of_all_stages_counts():
    stages = tuple(stage_of(draw_images(n)) for n in (100, 10))
    statistics = LogitStatistics(stages=stages, class_names=("a", "b", "c"))
    assert statistics.calibration_error() == float(logn_std_error(stages[1]).max())


def test_moving_averages_have_no_error():
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(StatisticsError, match="exact estimator"):
        logn_std_error(StageStatistics(one, one, one.long()))


def test_files_from_before_have_no_error_but_merge(tmp_path):
    state = gather(draw_images(10)).state_dict()
    old = {name: value for name, value in state.items() if not name.startswith("spread_")}
    moments = LogitMoments.from_state_dict(old)
    torch.testing.assert_close(moments.std_error, gather(draw_images(10)).std_error)
    moments.merge(gather(draw_images(5, seed=3)))
    assert moments.std_error.isfinite().all()
    with pytest.raises(StatisticsError, match="Collect them again"):
        logn_std_error(StageStatistics.from_moments(moments))
