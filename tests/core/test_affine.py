"""AffineCalibration maps the foreground columns and leaves the background unchanged."""

import copy
import json
import math

import pytest
import safetensors.torch
import torch

from logn_d2.core import AffineCalibration

BACKGROUND_COLUMN = {"last": -1, "first": 0, "none": None}
BACKGROUNDS = list(BACKGROUND_COLUMN)


def draw(background, num_classes=6, rois=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.1
    shift = torch.randn(num_classes, generator=generator, dtype=torch.float64) * 5
    columns = num_classes + (background != "none")
    logits = torch.randn(rois, columns, generator=generator) * 10
    return AffineCalibration(scale, shift, background=background), scale, shift, logits


def slow_version(logits, scale, shift, background):
    skipped = 1 if background == "first" else 0
    rows = []
    for row in logits.double().tolist():
        for index in range(len(scale)):
            row[index + skipped] = float(scale[index]) * row[index + skipped] + float(shift[index])
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_the_slow_version(background, dtype):
    calibration, scale, shift, logits = draw(background)
    logits = logits.to(dtype)
    found = calibration(logits)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = slow_version(logits, scale, shift, background)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("background", ["last", "first"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_background_column_is_untouched_bit_for_bit(background, dtype):
    calibration, _, _, logits = draw(background, rois=2000)
    logits = (logits * torch.logspace(-6, 3, 2000)[:, None]).to(dtype)
    column = BACKGROUND_COLUMN[background]
    assert torch.equal(calibration(logits)[:, column].to(dtype), logits[:, column])


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_identity_changes_nothing(background):
    logits = draw(background)[3]
    calibration = AffineCalibration.identity(6, background)
    assert torch.equal(calibration(logits), logits)
    assert calibration.name == "uncalibrated"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_scale_and_shift_are_those_of_the_foreground(background):
    calibration, scale, shift, _ = draw(background)
    assert torch.equal(calibration.scale, scale.float())
    assert torch.equal(calibration.shift, shift.float())
    assert calibration.num_classes == 6


@pytest.mark.parametrize("rois", [0, 1])
def test_few_rois(rois):
    calibration, _, _, logits = draw("last", rois=rois)
    assert calibration(logits).shape == (rois, 7)


def test_logits_are_not_changed_and_a_repeated_call_gives_the_same():
    calibration, _, _, logits = draw("last")
    before = logits.clone()
    assert torch.equal(calibration(logits), calibration(logits))
    assert torch.equal(logits, before)


def test_the_vectors_that_it_was_made_from_are_not_shared():
    scale, shift = torch.ones(3), torch.zeros(3)
    for background in BACKGROUNDS:
        calibration = AffineCalibration(scale, shift, background=background)
        scale.fill_(2.0)
        assert calibration.scale.tolist() == [1.0] * 3
        scale.fill_(1.0)


@pytest.mark.parametrize("columns", [5, 6, 8, 1])
def test_wrong_width_is_an_error(columns):
    calibration, _, _, _ = draw("last")
    with pytest.raises(ValueError, match=f"has 7 columns .*, but these logits have {columns}"):
        calibration(torch.zeros(2, columns))


def test_checkpoint_of_a_calibrated_model_is_that_of_the_model():
    layer = torch.nn.Linear(4, 7)
    model = torch.nn.Sequential(layer, draw("last")[0])
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    model.load_state_dict(torch.nn.Sequential(torch.nn.Linear(4, 7)).state_dict())


def test_copies_and_moves_with_its_module():
    model = torch.nn.Sequential(draw("last")[0])
    twin = copy.deepcopy(model)
    twin[0].column_scale.fill_(9)
    assert model[0].column_scale.max() < 2
    assert twin[0].name == model[0].name and twin[0].background == "last"
    assert model.to("meta")[0].column_shift.device.type == "meta"


def test_works_in_double_precision():
    calibration, scale, shift, logits = draw("last")
    found = calibration.double()(logits.double())
    expected = slow_version(logits, scale.float(), shift.float(), "last")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_pass_through():
    calibration, scale, _, logits = draw("last")
    logits.requires_grad_()
    calibration(logits).sum().backward()
    torch.testing.assert_close(logits.grad[0, :-1], scale.float())
    assert logits.grad[0, -1] == 1
    assert list(calibration.parameters()) == []


def test_can_be_traced_for_export(recwarn):
    calibration, _, _, logits = draw("last")
    traced = torch.jit.trace(calibration, logits)
    assert not [w for w in recwarn if "racer" in w.category.__name__]
    assert torch.equal(traced(logits[:3]), calibration(logits[:3]))


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        ([1.0, 0.0], [0.0, 0.0], r"1 of 2 .* class 1 with scale 0.0"),
        ([-1.0, 1.0], [0.0, 0.0], "class 0 with scale -1.0"),
        ([math.nan, 1.0], [0.0, 0.0], "class 0 with scale nan"),
        ([1.0, math.inf], [0.0, 0.0], "class 1 with scale inf"),
        ([1.0, 1.0], [math.nan, -math.inf], "2 of 2 .* shift nan"),
        ([1.0, 1.0], [0.0], r"\(2,\) and \(1,\)"),
        ([[1.0]], [[0.0]], r"\(1, 1\)"),
        ([1e-50, 1.0], [0.0, 0.0], "float32; the first is class 0 with scale 0.0"),
        ([1.0, 1.0], [0.0, 1e300], "float32; the first is class 1 .* shift inf"),
    ],
)
def test_values_that_would_spoil_every_score_are_errors(scale, shift, message):
    scale, shift = (torch.tensor(each, dtype=torch.float64) for each in (scale, shift))
    with pytest.raises(ValueError, match=message):
        AffineCalibration(scale, shift)


def test_unknown_background_is_an_error():
    with pytest.raises(ValueError, match="'middle', expected 'last', 'first' or 'none'"):
        AffineCalibration(torch.ones(1), torch.zeros(1), background="middle")


def test_printed_form_names_the_calibration():
    assert repr(draw("first")[0]) == (
        "AffineCalibration(name='affine', num_classes=6, background='first')"
    )


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_saved_and_loaded_is_the_same_calibration(tmp_path, background):
    calibration, _, _, logits = draw(background)
    calibration.name = "groups(rare=logn)"
    calibration.save(tmp_path / "new" / "c.safetensors")
    loaded = AffineCalibration.load(tmp_path / "new" / "c.safetensors")
    assert torch.equal(loaded(logits), calibration(logits))
    assert (loaded.name, loaded.background) == (calibration.name, background)
    assert loaded.digest() == calibration.digest()
    assert not loaded.state_dict()


def test_a_file_records_that_a_calibration_is_for_softmax_scores(tmp_path):
    calibration = AffineCalibration(torch.ones(2), torch.ones(2), softmax_only=True)
    calibration.save(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="only for softmax scores"):
        AffineCalibration.load(tmp_path / "c.safetensors").check_activation(sigmoid=True)


def test_digest_depends_on_everything_that_changes_scores():
    calibration, scale, shift, _ = draw("last")
    others = [
        AffineCalibration(scale.flip(0), shift),
        AffineCalibration(scale, shift + 1),
        AffineCalibration(scale, shift, background="first"),
    ]
    assert len({each.digest() for each in (calibration, *others)}) == 4
    assert AffineCalibration(scale, shift, name="other").digest() == calibration.digest()


def test_a_persistent_calibration_survives_a_checkpoint(tmp_path):
    """A head of somebody else's, with a placeholder where the calibration will be."""

    def head(calibration):
        return torch.nn.ModuleDict({"cls": torch.nn.Linear(2, 7), "calibration": calibration})

    calibration, scale, shift, logits = draw("last")
    trained = head(AffineCalibration(scale, shift, persistent=True))
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    found = head(AffineCalibration.identity(6, persistent=True))
    found.load_state_dict(state)
    assert torch.equal(found["calibration"](logits), calibration(logits))
    with pytest.raises(RuntimeError, match="calibration.column_scale"):  # not in silence
        head(AffineCalibration.identity(6)).load_state_dict(state)


def test_files_that_are_no_calibration_are_refused(tmp_path):
    path, one = tmp_path / "c.safetensors", {"scale": torch.ones(2), "shift": torch.ones(2)}
    good = {"format": "logn_d2 calibration", "version": 1, "background": "last", "name": "x"}

    def write(tensors, **changes):
        fields = {k: json.dumps(v) for k, v in {**good, **changes}.items() if v is not None}
        path.write_bytes(safetensors.torch.save(tensors, fields))

    with pytest.raises(FileNotFoundError, match="calibration file"):
        AffineCalibration.load(path)
    for tensors, changes, message in (
        (one, {"format": "logn_d2 statistics"}, "not a calibration file .*LogitStatistics.load"),
        (one, {"version": 2}, "version 2, .* up to 1"),
        (one, {"background": None}, "lacks 'background'"),
        (one, {"background": ["last"]}, "expected 'last'"),
        ({"scale": torch.ones(2)}, {}, "lacks 'shift'"),
        ({**one, "scale": torch.tensor([1.0, torch.nan])}, {}, "can't be used. 1 of 2 classes"),
    ):
        write(tensors, **changes)
        with pytest.raises(ValueError, match=message):
            AffineCalibration.load(path)
    write(one)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="not a complete calibration file"):
        AffineCalibration.load(path)
