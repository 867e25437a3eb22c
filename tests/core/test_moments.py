"""LogitMoments against slow and obvious float64 versions."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logn_d2.core import LogitMoments, NonFiniteLogitsError
from logn_d2.core import moments as moments_module


def draw_batches(sizes, num_columns=5, seed=0, dtype=torch.float64):
    """Batches with an image effect: RoIs of one image look alike."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    level = torch.linspace(-9, 3, num_columns, dtype=torch.float64)
    return [(level + 2 * normal(num_columns) + normal(n, num_columns)).to(dtype) for n in sizes]


def gather(batches, num_columns=None, masks=None):
    moments = LogitMoments(num_columns or batches[0].shape[1])
    for index, batch in enumerate(batches):
        moments.update(batch, None if masks is None else masks[index])
    return moments


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Ids of images that are in a group each.
OWN_GROUPS = [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("sizes", [(7, 7, 7), (1, 2, 4, 8, 16, 64), (0, 5, 0, 1, 0), (2,)])
def test_mean_and_variance_are_those_of_all_rois_together(sizes):
    batches = draw_batches(sizes)
    moments, together = gather(batches), torch.cat(batches)
    close(moments.mean, together.mean(0))
    close(moments.var, together.var(0))
    assert moments.count.tolist() == [sum(sizes)] * 5


def test_worked_example():
    batches = [
        torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]]),
        torch.tensor([[1.0, -1, -3, 2], [0, -2, -4, 5], [-2, -3, -5, 6]]),
    ]
    moments = gather(batches)
    close(moments.mean, torch.tensor([0.1, -1.1, -3.0, 3.4], dtype=torch.float64))
    close(moments.var, torch.tensor([2.3, 2.05, 2.5, 4.3], dtype=torch.float64))


def test_variance_between_images_counts():
    moments = gather([torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]])])
    assert moments.var.item() == pytest.approx(104 / 3)  # within each image it is 2


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4), max_size=6), min_size=1, max_size=8).filter(any),
    st.randoms(use_true_random=False),
)
def test_any_split_in_any_order_gives_the_same(values, rng):
    batches = [torch.tensor(batch, dtype=torch.float64).reshape(-1, 1) for batch in values]
    together = torch.cat(batches)
    scale = max(1.0, float(together.abs().max()))
    shuffled = rng.sample(batches, len(batches))
    for moments in (gather(batches), gather(shuffled), gather([together])):
        assert abs(moments.mean - together.mean(0)).item() <= 1e-12 * scale
        if len(together) > 1:
            assert abs(moments.var - together.var(0)).item() <= 1e-11 * scale**2
    forward, backward = gather(batches), gather(shuffled)
    if forward.std_error.isfinite().all():
        square = forward.std_error**2 - backward.std_error**2
        assert abs(square).item() <= 1e-11 * scale**2


def test_order_of_images_does_not_matter_to_1e_12():
    batches = draw_batches([random.Random(1).randint(0, 30) for _ in range(300)])
    forward, backward = gather(batches), gather(batches[::-1])
    for name in ("weight", "mean", "var", "std_error"):
        found, expected = getattr(backward, name), getattr(forward, name)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, msg=name)
    assert torch.equal(forward.count, backward.count)


@pytest.mark.parametrize("cuts", [(0, 3, 10), (1, 1, 10), (5, 5, 5), (10, 10, 10)])
def test_merged_shards_equal_one_pass(cuts):
    batches = draw_batches([3, 1, 0, 8, 5, 2, 2, 40, 1, 6])
    bounds = [0, *cuts, len(batches)]
    shards = [gather(batches[a:b], num_columns=5) for a, b in zip(bounds, bounds[1:])]
    states = [shard.state_dict() for shard in shards]
    merged, single = LogitMoments.merged(shards), gather(batches)
    for name, expected in single.state_dict().items():
        found = getattr(merged, name)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * scale, msg=name)
    for shard, state in zip(shards, states):  # the parts are as they were
        assert all(torch.equal(getattr(shard, name), state[name]) for name in state)


def test_merging_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        LogitMoments.merged([])
    with pytest.raises(ValueError, match="4 logit columns .* 3"):
        LogitMoments(3).merge(LogitMoments(4))


def test_merging_an_empty_object_changes_nothing():
    moments = gather(draw_batches([3, 4]))
    before = moments.state_dict()
    moments.merge(LogitMoments(5))
    assert all(torch.equal(before[name], value) for name, value in moments.state_dict().items())


def test_standard_error_of_equal_images_is_the_textbook_formula():
    batches = draw_batches([4] * 7)
    moments = LogitMoments(5)
    for image, batch in zip(OWN_GROUPS, batches, strict=True):
        moments.update(batch, image=image)
    means = torch.stack([batch.mean(dim=0) for batch in batches])
    assert (moments.group_weight[:, 0] > 0).sum() == 7
    close(moments.std_error, means.std(dim=0) / 7**0.5)


def test_standard_error_agrees_with_a_bootstrap_over_images():
    rng = random.Random(0)
    batches = draw_batches([rng.randint(1, 20) for _ in range(400)], num_columns=6)
    sums = torch.stack([batch.sum(0) for batch in batches])
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    draws = torch.randint(len(batches), (4000, len(batches)), generator=torch.manual_seed(0))
    means = sums[draws].sum(1) / sizes[draws].sum(1, keepdim=True)
    moments = gather(batches)
    # It has a standard deviation of 16 % itself.
    torch.testing.assert_close(moments.std_error, means.std(0), rtol=0.5, atol=0)
    naive = (moments.var / moments.count).sqrt()
    assert (moments.std_error > 2 * naive).all()  # images of alike RoIs say less than their RoIs


def test_standard_error_is_unknown_below_two_images():
    assert LogitMoments(2).std_error.tolist() == [math.inf] * 2
    assert gather(draw_batches([9])).std_error.tolist() == [math.inf] * 5
    assert gather(draw_batches([9, 0])).std_error.tolist() == [math.inf] * 5
    moments = LogitMoments(5)
    for image in OWN_GROUPS[:2]:
        moments.update(draw_batches([3])[0], image=image)
    assert moments.std_error.isfinite().all()


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_an_image_counts_for_something(weight):
    moments = gather(draw_batches([3]))
    before = moments.state_dict()
    with pytest.raises(ValueError, match="expected a number above 0"):
        moments.update(draw_batches([3])[0], weight=weight)
    assert all(torch.equal(before[name], v) for name, v in moments.state_dict().items())


def test_weighted_moments_are_those_of_the_weighted_rois():
    batches, weights = draw_batches([3, 1, 8, 5]), [1.5, 0.25, 2.0, 7.0]
    moments = LogitMoments(5)
    for batch, weight in zip(batches, weights, strict=True):
        moments.update(batch, weight=weight)
    repeated = [torch.full((len(b),), w) for b, w in zip(batches, weights, strict=True)]
    of_roi, together = torch.cat(repeated).double()[:, None], torch.cat(batches)
    mean = (of_roi * together).sum(0) / of_roi.sum()
    close(moments.mean, mean)
    close(moments.var, (of_roi * (together - mean) ** 2).sum(0) / (of_roi.sum() - 1))
    close(moments.weight, of_roi.sum().repeat(5))
    assert moments.count.tolist() == [17] * 5


def test_images_stay_in_their_groups_in_every_release():
    """Files of two releases could not be merged otherwise."""
    moments = LogitMoments(1)
    for image in (0, 1, 139, "a.jpg", ("b", 2)):
        moments.update(torch.ones(1, 1), image=image)
    assert moments.group_weight[:, 0].nonzero().flatten().tolist() == [2, 3, 5, 6, 9]


def test_thousands_of_classes():
    batches = draw_batches([64, 1, 100], num_columns=4001, dtype=torch.float32)
    moments, together = gather(batches), torch.cat(batches).double()
    close(moments.mean, together.mean(0))
    close(moments.var, together.var(0))
    assert {value.shape[-1] for value in moments.state_dict().values()} == {4001}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_logits_are_summed_in_float64(dtype):
    batches = draw_batches([2000, 3000], dtype=dtype)  # float16 sums would overflow or stop growing
    moments, together = gather(batches), torch.cat(batches).double()
    assert moments.mean.dtype == moments.var.dtype == torch.float64
    close(moments.mean, together.mean(0))
    close(moments.var, together.var(0))


def test_large_offsets_do_not_cancel():
    values = torch.tensor([[4.0], [7.0], [13.0], [16.0]], dtype=torch.float64)
    moments = gather([values[:1] + 1e9, values[1:] + 1e9])
    assert (
        moments.var.item() == 30.0
    )  # the sum of squares minus the squared sum gives nonsense here


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_logits_are_not_changed_and_not_kept(dtype):
    (batch,) = draw_batches([6], dtype=dtype)
    mask = torch.eye(6, 5, dtype=torch.bool)
    before, mask_before = batch.clone(), mask.clone()
    moments = gather([batch])
    mean = moments.mean.clone()
    moments.update(batch, mask)
    assert torch.equal(batch, before) and torch.equal(mask, mask_before)
    single = gather([batch[:1]])
    batch.zero_()
    assert single.mean.abs().sum() > 0
    assert torch.equal(mean, gather([before]).mean)


def test_logits_that_need_a_gradient_are_fine():
    moments = gather([torch.ones(2, 3, requires_grad=True)])
    assert not moments.mean.requires_grad


def test_a_state_taken_earlier_stays_as_it_was():
    moments = gather(draw_batches([5]))
    state, mean = moments.state_dict(), moments.mean
    copies = {name: value.clone() for name, value in state.items()}
    moments.update(draw_batches([5], seed=1)[0])
    assert all(torch.equal(state[name], copies[name]) for name in state)
    assert torch.equal(mean, copies["mean"])


def test_a_state_is_a_copy_in_both_directions():
    moments = gather(draw_batches([5, 7]))
    state = moments.state_dict()
    copy = LogitMoments.from_state_dict(state)
    for name in state:
        state[name].zero_()
    assert all(torch.equal(moments.state_dict()[k], v) for k, v in copy.state_dict().items())
    assert copy.count[0] == 12


def test_state_round_trip_continues_bit_for_bit():
    first, second = draw_batches([5, 9])
    moments = gather([first])
    copy = LogitMoments.from_state_dict(moments.state_dict())
    for each in (moments, copy):
        each.update(second)
    assert all(torch.equal(copy.state_dict()[k], v) for k, v in moments.state_dict().items())
    assert torch.equal(moments.to("cpu").mean, moments.mean)


def test_mask_counts_each_column_for_itself():
    batches = draw_batches([6, 1, 0, 9, 4])
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(batch.shape, generator=generator) < 0.5 for batch in batches]
    masks[0][:, 3] = False  # an image without this class
    moments = gather(batches, masks=masks)
    for column in range(5):
        chosen = [
            batch[mask[:, column], column : column + 1] for batch, mask in zip(batches, masks)
        ]
        together = torch.cat(chosen)
        assert moments.count[column] == len(together)
        close(moments.mean[column], together.mean())
        close(moments.var[column], together.var())


def test_mask_of_everything_is_no_mask():
    batches = draw_batches([6, 3])
    masked = gather(batches, masks=[torch.ones_like(b, dtype=torch.bool) for b in batches])
    close(masked.mean, gather(batches).mean)
    close(masked.var, gather(batches).var)


def test_positive_only_worked_example():
    logits = [[2, 0.5, -1, 1], [1, 1.5, 0, 0.5], [3, 0, -2, 0.2], [-0.5, 0, -2, 3]]
    mask = torch.nn.functional.one_hot(torch.tensor([1, 1, 0, 3]), 4).bool()
    moments = gather([torch.tensor(logits)], masks=[mask])
    assert moments.count.tolist() == [1, 2, 0, 1]
    assert moments.mean.tolist() == [3.0, 1.0, 0.0, 3.0]
    assert moments.var.tolist() == [0.0, 0.5, 0.0, 0.0]


def test_column_that_is_never_seen_has_zero_count_and_variance():
    (batch,) = draw_batches([4])
    mask = torch.ones_like(batch, dtype=torch.bool)
    mask[:, 2] = False
    moments = gather([batch], masks=[mask])
    assert (moments.count[2], moments.mean[2], moments.var[2]) == (0, 0, 0)
    assert moments.std_error[2] == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("masked", [False, True])
def test_non_finite_logits_are_an_error_and_leave_the_state_intact(value, masked):
    first, second = draw_batches([4, 6])
    moments = gather([first])
    before = moments.state_dict()
    second[3, 1] = value
    mask = torch.ones_like(second, dtype=torch.bool) if masked else None
    with pytest.raises(NonFiniteLogitsError, match=r"1 of 5 columns \(1\)"):
        moments.update(second, mask)
    assert all(torch.equal(before[name], v) for name, v in moments.state_dict().items())


def test_non_finite_logits_behind_the_mask_do_not_matter():
    first, second = draw_batches([4, 6])
    mask = torch.ones_like(second, dtype=torch.bool)
    mask[3, 1] = False
    clean, dirty = gather([first]), gather([first])
    clean.update(second, mask)
    second[3, 1] = math.nan
    dirty.update(second, mask)
    assert all(torch.equal(clean.state_dict()[k], v) for k, v in dirty.state_dict().items())


def test_the_error_of_many_bad_columns_stays_short():
    logits = torch.full((2, 1204), math.nan)
    with pytest.raises(NonFiniteLogitsError) as error:
        LogitMoments(1204).update(logits)
    assert "1204 of 1204 columns (0, 1, 2, 3, 4, ...)" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 5)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"\(R, 5\), found"):
        LogitMoments(5).update(torch.zeros(shape))


def test_a_mask_of_another_shape_is_an_error():
    # A mask over RoIs only would otherwise be spread over the columns.
    with pytest.raises(ValueError, match=r"\(5, 5\), found \(5,\)"):
        LogitMoments(5).update(torch.zeros(5, 5), torch.ones(5, dtype=torch.bool))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_as_on_the_cpu():
    batches = draw_batches([3, 1, 0, 8])
    moments = LogitMoments(5, device="cuda")
    for batch in batches:
        moments.update(batch.cuda())
    close(moments.to("cpu").var, gather(batches).var)
    close(gather(batches).merge(moments).mean, gather(batches).mean)


def test_an_image_of_many_anchors_is_taken_in_blocks(monkeypatch):
    (logits,) = draw_batches([1000])
    whole, mask = gather([logits]), logits > logits.mean()
    masked = gather([logits], masks=[mask])
    monkeypatch.setattr("logn_d2.core.moments._BLOCK", 37 * 5)
    parts = list(moments_module.blocks(logits, mask, None))
    assert [len(part) for part, _, _ in parts] == [37] * 27 + [1]
    assert all(nothing is None for _, _, nothing in parts)
    assert torch.cat([part for _, part, _ in parts]).equal(mask)
    for expected, masks in ((whole, None), (masked, mask)):
        found = LogitMoments(5)
        for rows, of_rows, _ in moments_module.blocks(logits, masks, None):
            found.update(rows, of_rows, image=logits[0].numpy().tobytes())
        for name, value in expected.state_dict().items():
            close(found.state_dict()[name], value)


def test_no_rows_are_one_empty_block():
    ((rows,),) = moments_module.blocks(torch.zeros(0, 3))
    assert rows.shape == (0, 3)


def test_a_weight_is_not_rounded_to_single_precision():
    (logits,) = draw_batches([3])
    moments = LogitMoments(5)
    moments.update(logits, weight=1 / 3)
    assert moments.weight.tolist() == [1.0] * 5
