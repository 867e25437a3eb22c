"""Mean posteriors, negatives and label counts, against slow sums over all RoIs together."""

import functools

import pytest
import torch

from logn_d2.core import LogitMoments, PosteriorMoments, StageStatistics, StatisticsError, logn
from logn_d2.core.moments import NUM_GROUPS, image_group
from logn_d2.core.sampling_error import sampling_error

FIXTURE = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
LABELS = torch.tensor([0, 3])


def draw_images(number, seed=0, columns=4, labelled=True):
    """Logits and labels of some images; the last class is rare, one image has no RoI."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(number):
        size = 0 if index == 1 else int(torch.randint(1, 9, (1,), generator=generator))
        logits = torch.randn(size, columns, generator=generator, dtype=torch.float64) * 2 - 1
        chances = torch.tensor([3.0, 2.0, 0.3, 6.0])[:columns].repeat(size, 1)
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0] if size else LABELS[:0]
        images.append((logits, labels if labelled else None))
    return images


def gather(images, weights=None):
    moments, posteriors = LogitMoments(4), PosteriorMoments(4)
    for index, (logits, labels) in enumerate(images):
        options = {"weight": weights[index] if weights else 1.0, "image": index}
        moments.update(logits, **options)
        posteriors.update(logits, logits.softmax(dim=1), labels, **options)
    return StageStatistics.from_moments(moments, posteriors=posteriors)


def together(images, weights=None):
    """All RoIs: logits (R, C), labels (R,) and weights (R,)."""
    sizes = torch.tensor([len(logits) for logits, _ in images])
    weights = torch.tensor(weights or [1.0] * len(images)).double()
    logits, labels = (torch.cat(each) for each in zip(*images))
    return logits, labels, weights.repeat_interleave(sizes)


def close(found, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_worked_example():
    """Two RoIs, one of class 0 and one of background."""
    stage = gather([(FIXTURE, LABELS)])
    close(stage.mean_posterior(), [0.318624, 0.090901, 0.018272, 0.572203], 1e-5)
    # Column 0 has the second RoI for its negatives, the background the first.
    expected = [0.027788, 0.090901, 0.018272, 0.224208]
    close(stage.mean_posterior("negatives"), expected, 1e-5)
    assert stage.posteriors.label_count.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("weights", [None, [1, 2.5, 3, 0.5, 1, 4] * 5])
def test_equals_sums_over_all_rois_together(weights):
    images = draw_images(30)
    logits, labels, weight = together(images, weights)
    stage, scores = gather(images, weights), logits.softmax(dim=1)
    weight = weight[:, None].expand_as(scores)
    close(stage.mean_posterior(), (weight * scores).sum(0) / weight.sum(0))
    for column in range(4):
        own, others = labels == column, labels != column
        w, z = weight[others, column], logits[others, column]
        close(stage.label_weight()[column], weight[own, column].sum())
        assert stage.posteriors.label_count[column] == own.sum()
        found = stage.mean_posterior("negatives")[column]
        close(found, (w * scores[others, column]).sum() / w.sum())
        negatives, mean = stage.negatives(), (w * z).sum() / w.sum()
        close(negatives.mean[column], mean)
        close(negatives.var[column], (w * (z - mean) ** 2).sum() / (w.sum() - 1))
        assert negatives.count[column] == others.sum()


def test_posterior_of_a_class_learnt_by_heart_keeps_its_digits_over_negatives():
    logits = torch.tensor([[30.0, 0.0]] * 1000 + [[-30.0, 0.0]]).double()
    labels = torch.tensor([0] * 1000 + [1])
    stage = gather([(torch.cat([logits, logits[:, :1] * 0, logits[:, :1] * 0], dim=1), labels)])
    found, expected = stage.mean_posterior("negatives")[0], logits.new_tensor(-30.0).exp() / 3
    assert abs(found / expected - 1) < 1e-9


@pytest.mark.parametrize("cuts", [1, 3, 40])
def test_merged_parts_equal_a_single_pass(cuts):
    images = draw_images(40)
    whole, parts = gather(images), []
    for part in range(cuts):
        moments = PosteriorMoments(4)
        for index, (logits, labels) in list(enumerate(images))[part::cuts]:
            moments.update(logits, logits.softmax(dim=1), labels, image=index)
        parts.append(moments)
    merged = functools.reduce(PosteriorMoments.merge, reversed(parts), PosteriorMoments(4))
    for name, value in whole.posteriors.state_dict().items():
        torch.testing.assert_close(
            getattr(merged, name), value, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: name + m
        )


def test_groups_are_those_of_the_moments():
    images = draw_images(60)
    stage = gather(images)
    close(stage.posteriors.roi_weight, stage.moments.group_weight[:, 0])
    unnamed, posteriors = LogitMoments(4), PosteriorMoments(4)
    for logits, labels in images:
        unnamed.update(logits)
        posteriors.update(logits, logits.softmax(dim=1), labels)
    close(posteriors.roi_weight, unnamed.group_weight[:, 0])


def test_what_is_left_without_a_group_is_the_pass_over_the_other_images():
    images, weights = draw_images(60), [1.0 + index % 3 for index in range(60)]
    replicates = list(gather(images, weights).leave_one_out())
    assert len(replicates) == NUM_GROUPS
    for group, left in enumerate(replicates):
        moments, posteriors = LogitMoments(4), PosteriorMoments(4)
        for index, (logits, labels) in enumerate(images):
            if len(logits) and image_group(index, logits) != group:
                options = {"weight": weights[index], "image": index}
                moments.update(logits, **options)
                posteriors.update(logits, logits.softmax(dim=1), labels, **options)
        alone = StageStatistics.from_moments(moments, posteriors=posteriors)
        for source in ("all", "negatives"):
            close(left.mean_posterior(source), alone.mean_posterior(source))
        close(left.negatives().mean, alone.negatives().mean)
        close(left.negatives().var, alone.negatives().var)


def test_reported_error_over_negatives_is_the_scatter_over_data_sets():
    def calibration(stage, background):
        return logn(stage.negatives(), background=background, beta="mean")

    stages = [gather(draw_images(80, seed)) for seed in range(50)]
    logits = torch.stack([stages[0].mean, stages[0].mean + 3 * stages[0].std])
    found = torch.stack([calibration(stage, "last").double()(logits) for stage in stages])
    errors = torch.stack([sampling_error(stage, calibration) for stage in stages])
    ratio = found.std(dim=0).amax(dim=0)[:3] / errors.square().mean(dim=0).sqrt()
    assert ((ratio - 1).abs() < 0.3).all(), ratio


def test_column_without_negatives_has_nothing_to_say():
    stage = gather([(FIXTURE, torch.tensor([2, 2]))])
    assert stage.mean_posterior("negatives")[2] == 0
    negatives = stage.negatives()
    assert negatives.count.tolist() == [2, 2, 0, 2] and not negatives.usable[2]


def test_labels_that_are_no_column_are_of_no_class():
    stage = gather([(FIXTURE, torch.tensor([-1, 9]))])
    assert stage.posteriors.label_count.sum() == 0
    close(stage.mean_posterior("negatives"), stage.mean_posterior())
    close(stage.negatives().mean, stage.mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_type(dtype):
    images = [(logits.to(dtype), labels) for logits, labels in draw_images(9)]
    expected = gather([(logits.double(), labels) for logits, labels in images])
    found = gather(images)
    close(found.mean_posterior(), expected.mean_posterior(), 2e-2)
    close(found.negatives().mean, expected.negatives().mean, 1e-9)


def test_inputs_are_not_changed():
    logits, labels = FIXTURE.double(), LABELS.clone()
    scores = logits.softmax(dim=1)
    before = logits.clone(), scores.clone()
    PosteriorMoments(4).update(logits, scores, labels)
    assert torch.equal(logits, before[0]) and torch.equal(scores, before[1])
    assert torch.equal(labels, LABELS)


def test_statistics_do_not_change_with_their_moments():
    posteriors = PosteriorMoments(4)
    posteriors.update(FIXTURE, FIXTURE.softmax(1), LABELS)
    moments = LogitMoments(4)
    moments.update(FIXTURE)
    stage = StageStatistics.from_moments(moments, posteriors=posteriors)
    before = stage.posteriors.state_dict()
    posteriors.update(FIXTURE, FIXTURE.softmax(1), LABELS)
    stage.merge(stage)
    assert all(torch.equal(v, before[k]) for k, v in stage.posteriors.state_dict().items())


def test_without_labels_there_is_the_mean_over_all_alone():
    images = draw_images(10)
    unknown = gather([(logits, None) for logits, _ in images])
    close(unknown.mean_posterior(), gather(images).mean_posterior())
    for ask in (lambda: unknown.mean_posterior("negatives"), unknown.negatives):
        with pytest.raises(StatisticsError, match=r"lack. Collect them again: logn collect"):
            ask()
    # One image without labels is enough, and it stays so.
    mixed = gather([*images, (images[0][0], None), images[2]])
    merged = gather(images).merge(unknown)
    for stage in (mixed, merged):
        assert not stage.posteriors.labelled and len(stage.posteriors.state_dict()) == 3
    close(merged.mean_posterior(), unknown.mean_posterior())


def test_without_posteriors_the_way_to_get_them_is_named():
    stage = gather(draw_images(5))
    moments_only = StageStatistics.from_moments(stage.moments)
    for lacking in (moments_only, moments_only.merge(stage), stage.merge(moments_only)):
        with pytest.raises(StatisticsError, match=r"older logn_d2, .* Collect them again: logn c"):
            lacking.mean_posterior()
        close(lacking.mean, stage.mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FIXTURE[:, :3], FIXTURE[:, :3], LABELS), r"one shape \(R, 4\), found \(2, 3\)"),
        ((FIXTURE, FIXTURE[:1], LABELS), r"found \(2, 4\) and \(1, 4\)"),
        ((FIXTURE, FIXTURE, LABELS[:1]), r"Expected 2 labels, found \(1,\)"),
    ],
)
def test_tensors_that_do_not_fit_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        PosteriorMoments(4).update(*arguments)
    with pytest.raises(ValueError, match="Posteriors of 3 columns can't be merged into those of 4"):
        PosteriorMoments(4).merge(PosteriorMoments(3))
    with pytest.raises(StatisticsError, match="posteriors of 3 columns beside logits of 4"):
        StageStatistics.from_moments(gather([]).moments, posteriors=PosteriorMoments(3))


@pytest.mark.parametrize("value", [-1.0, torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["posterior_sum", "own_weight"])
def test_sums_that_no_pass_can_give_are_refused(name, value):
    state = gather(draw_images(5)).posteriors.state_dict()
    state[name][0, 0] = value
    with pytest.raises(ValueError, match=f"{name} has a value that is negative or not finite"):
        PosteriorMoments.from_state_dict(state)
