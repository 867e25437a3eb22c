"""Box counting and FRACAL, on worked numbers of its authors' code and against a slow version."""

import math

import numpy as np
import pytest
import torch

from logn_d2.core import (
    AffineCalibration,
    CalibrationInputs,
    ClassCounts,
    build_calibration,
    fold_linear,
    fracal,
    fractal_dimensions_of,
    norcal,
)
from logn_d2.core.fractal import MAX_GRID

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
FIRST = [(.1, .1), (.45, .15), (.8, .12), (.15, .5), (.55, .55), (.9, .45), (.2, .9), (.6, .8),
         (.7, .7), (.85, .95)]  # fmt: skip
SECOND = [(0.52, 0.9), (0.55, 0.92), (0.6, 0.88), (0.3, 0.2), (0.35, 0.9)]
THIRD = [(0.2, 0.2), (0.8, 0.8), (0.5, 0.1)]


def counts(**changes):
    fields = {
        "class_names": ("a", "b", "c"),
        "image_count": np.array([1000, 100, 5]),
        "instance_count": np.array([5000, 200, 8]),
        "num_images": 19_000,
        "num_records": 20_000,
        "fractal_dimensions": np.array([1.9, 1.7, 1.0]),
    }
    return ClassCounts(**{**fields, **changes})


def close(found, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def dimensions(*of_class):
    points = [(c, *p) for c, points in enumerate(of_class) for p in points]
    classes, x, y = zip(*points) if points else ((), (), ())
    return fractal_dimensions_of(classes, x, y, len(of_class))


def slow_dimension(points):
    grids, logs = [], []
    for grid in range(1, MAX_GRID + 1):
        if grid**2 > len(points):
            break
        cells = {(math.floor(x * grid), math.floor(y * grid)) for x, y in points}
        inside = [cell for cell in cells if 0 <= min(cell) and max(cell) < grid]
        grids.append(math.log(grid))
        logs.append(math.log(max(len(inside), 1)))
    return max(1.0, np.polyfit(grids, logs, 1)[0]) if len(grids) > 1 else 1.0


def test_worked_dimensions():
    np.testing.assert_allclose(dimensions(FIRST, SECOND, THIRD), [2, 1.5849625, 1], atol=1e-7)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_dimensions_equal_a_slow_count_of_cells(power):
    rng = np.random.default_rng(0)
    sets = [rng.uniform(-0.05, 1.05, (n, 2)).clip(-9, None) for n in (0, 3, 4, 8, 9, 70, 5000)]
    sets = [np.sign(each) * np.abs(each) ** power for each in sets]
    found = dimensions(*sets)
    np.testing.assert_allclose(found, [slow_dimension(s) for s in sets], rtol=1e-9)
    assert found[:2].tolist() == [1, 1]


def test_a_plane_a_line_and_a_point():
    rng = np.random.default_rng(0)
    plane, line = rng.uniform(0, 1, (40_000, 2)), np.stack([np.linspace(0, 0.999, 9000)] * 2, 1)
    found = dimensions(plane, line, np.full((100, 2), 0.3))
    np.testing.assert_allclose(found, [2, 1, 1], atol=0.01)


def test_mirrored_positions_have_the_same_dimensions():
    points = np.random.default_rng(0).uniform(0.001, 0.999, (500, 2))
    for flip in ((-1, 1), (1, -1)):
        mirrored = (points * flip) % 1
        np.testing.assert_allclose(dimensions(points), dimensions(mirrored), atol=1e-9)
    np.testing.assert_allclose(dimensions(points), dimensions(points[:, ::-1]), atol=1e-12)


def test_no_objects_at_all():
    assert dimensions([], []).tolist() == [1, 1]


def test_positions_outside_of_the_image_are_objects_in_no_cell():
    """The fourth object allows the 2 x 2 grid; three cells are occupied."""
    found = dimensions([(0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (1.0, 0.5)])
    np.testing.assert_allclose(found, [math.log2(3)])


def test_worked_calibration():
    calibration = fracal(counts())
    close(calibration.shift, [-0.459799, 0.762652, 3.124939])
    expected = [
        [0.241850, 0.183235, 0.434005, 0.140909],
        [0.014906, 0.083447, 0.119880, 0.781767],
    ]
    close(calibration(LOGITS).softmax(1), expected)
    close(fracal(counts(), count="instance").shift, [-1.743128, -0.122737, 2.336460])


def test_steps_of_the_authors_code_give_the_same():
    """Softmax, division by D^lambda, and renormalisation over all columns."""
    number, dimension = np.array([1000, 100, 5]), np.array([1.9, 1.7, 1.0, 1.0])
    shift = np.append(np.log10(20_000 / (3 * number)), 0)
    scores = (LOGITS.double() + torch.from_numpy(shift)).softmax(1)
    scores = scores / torch.from_numpy(dimension) ** 1.5
    close(fracal(counts(), lam=1.5)(LOGITS).softmax(1), scores / scores.sum(1, keepdim=True))


@pytest.mark.parametrize("options", [{"lam": 0}, {"lam": 2.0}])
def test_without_dimensions_above_1_it_is_norcal_with_an_offset(options):
    gamma = 1 / math.log(10)
    family = norcal([1000, 100, 5], gamma=gamma, offset=gamma * math.log(20_000 / 3))
    found = fracal(counts(fractal_dimensions=np.ones(3)), **options)
    close(found.shift, family.shift)


def test_a_class_without_images_counts_as_one():
    none = fracal(counts(image_count=np.array([1000, 100, 0])))
    assert torch.equal(none.shift, fracal(counts(image_count=np.array([1000, 100, 1]))).shift)


def test_images_with_objects_stand_for_all_where_these_are_not_known():
    known = fracal(counts(num_records=19_000))
    assert torch.equal(fracal(counts(num_records=None)).shift, known.shift)


def test_dimensions_are_only_asked_for_where_they_are_needed():
    def never():
        raise AssertionError("box counting takes a while")

    lazy = counts(fractal_dimensions=never)
    assert torch.equal(fracal(lazy, lam=0).shift, fracal(counts(), lam=0).shift)
    build_calibration("norcal(gamma=0.6)", CalibrationInputs(3, counts=lazy))
    found = counts(fractal_dimensions=lambda: np.array([1.9, 1.7, 1.0]))
    assert torch.equal(fracal(found).shift, fracal(counts()).shift)
    with pytest.raises(ValueError, match=r"needs the fractal dimensions .*class_counts\(DATASET\)"):
        fracal(counts(fractal_dimensions=None))


def test_folded_and_in_groups():
    inputs = CalibrationInputs(3, counts=counts())
    found = build_calibration("groups(rare=fracal, common=fracal(lam=1))", inputs)
    close(found.shift, [0, fracal(counts(), lam=1).shift[1], fracal(counts()).shift[2]])
    weight, bias = fold_linear(torch.eye(4), None, found)
    close(LOGITS @ weight.T + bias, found(LOGITS))
    others = build_calibration("groups(rare=logit_adjustment)", inputs)
    assert found.softmax_only and not others.softmax_only


def test_sigmoid_scores_are_refused():
    calibration = fracal(counts())
    calibration.check_activation(sigmoid=False)
    AffineCalibration.identity(3).check_activation(sigmoid=True)
    with pytest.raises(ValueError, match="'fracal' is .* sigmoid scores.* Choose norcal"):
        calibration.check_activation(sigmoid=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fracal(lam=two)", "lam is 'two', expected a number"),
        ("fracal(count=box)", "count is 'box', expected image or instance"),
        ("fracal(base=2)", "wrong options: .*base"),
    ],
)
def test_wrong_options_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        build_calibration(text, CalibrationInputs(3, counts=counts()))
