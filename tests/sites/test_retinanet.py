"""RetinaNet through every verb: statistics, attached and folded calibrations."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from logn_d2 import attach, collect, detach, fold
from logn_d2.core import AffineCalibration, LogitMoments, LogitStatistics, StatisticsError
from logn_d2.errors import UserError
from logn_d2.modeling.folding import parts_of_logn_d2
from logn_d2.sites import known_site

from ..modeling.small_models import assert_same, detections
from .small_dense import NUM_CLASSES, images, retinanet

pytestmark = pytest.mark.usefixtures("one_thread")


def calibration(seed: int = 3) -> AffineCalibration:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + torch.rand(NUM_CLASSES, generator=generator)
    shift = torch.randn(NUM_CLASSES, generator=generator)
    return AffineCalibration(scale, shift, background="none", name="drawn")


def batches(count: int = 4, size: int = 64) -> list[list[dict]]:
    return [[image] for image in images(count, size=size)]


def by_hand(model: nn.Module, image: dict) -> tuple[Tensor, Tensor]:
    """Logits (R, K) and labels (R,) of all anchors, from the model's own parts."""
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([image]).tensor)
        features = [features[name] for name in model.head_in_features]
        outputs = model.head(features)[0]
        labels, _ = model.label_anchors(model.anchor_generator(features), [image["instances"]])
    rows = []
    for output in outputs:  # (1, A K, H, W): cell by cell, then anchor by anchor
        anchors = output.shape[1] // NUM_CLASSES
        for y in range(output.shape[2]):
            for x in range(output.shape[3]):
                for a in range(anchors):
                    rows.append(output[0, a * NUM_CLASSES : (a + 1) * NUM_CLASSES, y, x])
    return torch.stack(rows), labels[0]


@pytest.mark.parametrize("population", ["sampled", "foreground", "positives"])
def test_statistics_are_those_of_the_matched_anchors(population):
    model, pairs = retinanet(), []
    found = collect(model, batches(), population=population)
    for (image,) in batches():
        pairs.append(by_hand(model, image))
    logits = torch.cat([each for each, _ in pairs]).double()
    labels = torch.cat([each for _, each in pairs])
    assert (labels == -1).any() and (labels < NUM_CLASSES).any()
    for column in range(NUM_CLASSES):
        counts = {
            "sampled": labels >= 0,
            "foreground": (labels >= 0) & (labels < NUM_CLASSES),
            "positives": labels == column,
        }[population]
        of_class = logits[counts, column]
        assert found.stages[0].count[column] == len(of_class)
        if len(of_class) > 1:
            assert found.stages[0].mean[column] == pytest.approx(float(of_class.mean()), abs=1e-9)
            assert found.stages[0].var[column] == pytest.approx(float(of_class.var()), rel=1e-6)
    described = (found.background, found.activation, found.site, found.population)
    assert described == ("none", "sigmoid", "RetinaNet", population)
    assert found.num_classes == NUM_CLASSES


def test_posteriors_of_negatives_leave_out_the_anchors_of_the_class():
    model = retinanet()
    found = collect(model, batches()).stages[0]
    pairs = [by_hand(model, image) for (image,) in batches()]
    logits = torch.cat([each[labels >= 0] for each, labels in pairs]).double()
    labels = torch.cat([labels[labels >= 0] for _, labels in pairs])
    for column in range(NUM_CLASSES):
        negatives = logits[labels != column, column].sigmoid().mean()
        assert found.mean_posterior("negatives")[column] == pytest.approx(
            float(negatives), abs=1e-9
        )


@pytest.mark.parametrize("size", [64, 16])  # a level of one cell, whose logits share memory
def test_candidates_as_at_test_are_those_that_inference_takes(size):
    model = retinanet()
    found = collect(model, batches(2, size), population="proposals")
    moments, threshold = LogitMoments(NUM_CLASSES), model.test_score_thresh
    for (image,) in batches(2, size):
        logits, _ = by_hand(model, image)
        start = 0
        for cells in ((size // 8) ** 2, (size // 16) ** 2):
            rows = cells * model.anchor_generator.num_cell_anchors[0]
            level = logits[start : start + rows]
            start += rows
            best = level.sigmoid().flatten().sort(descending=True)
            chosen = best.indices[:40][best.values[:40] > threshold] // NUM_CLASSES
            moments.update(level[chosen.unique()], image=image["image_id"])
    assert 0 < found.num_rois == int(moments.count[0])
    torch.testing.assert_close(found.stages[0].mean, moments.mean)
    torch.testing.assert_close(found.stages[0].var, moments.var)


@pytest.mark.parametrize("population", ["sampled", "foreground", "positives", "proposals"])
@pytest.mark.parametrize("has_id", [True, False])
def test_blocks_of_an_images_anchors_change_nothing(population, has_id, monkeypatch):
    model, inputs = retinanet(), batches(3)
    for batch in [] if has_id else inputs:
        batch[0].pop("file_name")  # a group is then told by the image's first anchor
        batch[0].pop("image_id")
    whole = collect(model, inputs, population=population)
    monkeypatch.setattr("logn_d2.core.moments._BLOCK", 7 * NUM_CLASSES)
    monkeypatch.setattr("logn_d2.sites.site._BLOCK", 11 * NUM_CLASSES)
    parts = collect(model, inputs, population=population)
    left, right = (each.stages[0].moments.state_dict() for each in (whole, parts))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-12, atol=1e-12)
    if population in ("sampled", "foreground"):
        for source in ("all", "negatives"):
            means = (each.stages[0].mean_posterior(source) for each in (whole, parts))
            torch.testing.assert_close(*means, rtol=1e-12, atol=1e-12)


def test_shards_of_a_data_set_merge_to_the_whole(tmp_path):
    model, whole = retinanet(), collect(retinanet(), batches(5))
    parts = [collect(model, batches(5)[:2]), collect(model, batches(5)[2:])]
    parts[0].save(tmp_path / "part.safetensors")
    merged = LogitStatistics.load(tmp_path / "part.safetensors").merge(parts[1])
    assert (merged.site, merged.background) == ("RetinaNet", "none")
    torch.testing.assert_close(merged.stages[0].mean, whole.stages[0].mean)
    torch.testing.assert_close(merged.stages[0].var, whole.stages[0].var)


def test_collecting_leaves_the_model_as_it_was_and_does_not_see_a_calibration():
    model = retinanet().train()
    before = copy.deepcopy(model.state_dict())
    plain = collect(model, batches(2))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with attach(model.eval(), calibration()):
        attached = collect(model, batches(2))
    assert torch.equal(plain.stages[0].mean, attached.stages[0].mean)


def test_an_attached_calibration_acts_on_the_logits_of_every_anchor():
    model, drawn = retinanet(), calibration()
    image = images(1)[0]
    raw, _ = by_hand(model, image)
    attach(model, drawn)
    calibrated, _ = by_hand(model, image)
    torch.testing.assert_close(calibrated, raw * drawn.scale + drawn.shift)


def test_detaching_restores_the_outputs_bit_for_bit():
    model, inputs = retinanet(), images()
    before, keys = detections(model, inputs), list(model.state_dict())
    attachment = attach(model, calibration())
    assert list(model.state_dict()) == keys
    assert not torch.equal(detections(model, inputs)[0]["scores"], before[0]["scores"])
    attachment.detach()
    assert_same(detections(model, inputs), before)
    with attach(model, AffineCalibration.identity(NUM_CLASSES, "none")):
        assert_same(detections(model, inputs), before)
    with pytest.raises(UserError, match="nothing to detach"):
        detach(model)


def test_training_sees_raw_logits():
    model = retinanet().train()
    inputs = images()

    def loss() -> Tensor:
        torch.manual_seed(0)  # of dropout
        model.loss_normalizer = 100
        with EventStorage():
            return model(inputs)["loss_cls"]

    before = loss()
    attach(model, calibration())
    assert torch.equal(loss(), before)


def test_copies_and_pickles_carry_their_own_calibration():
    model, inputs = retinanet(), images()
    attach(model, calibration())
    expected = detections(model, inputs)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.head, file)
    detach(model)
    assert_same(detections(twin, inputs), expected)
    model.head = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_same(detections(model, inputs), expected)


def test_folding_gives_the_logits_of_the_attached_calibration():
    model, drawn = retinanet().double(), calibration().double()
    image = images(1)[0]
    image["image"] = image["image"].double()
    model.backbone.double()
    attach(model, drawn)
    expected, _ = by_hand(model, image)
    keys = list(model.state_dict())
    fold(model)
    folded, _ = by_hand(model, image)
    torch.testing.assert_close(folded, expected, rtol=1e-6, atol=1e-6)
    assert list(model.state_dict()) == keys
    with pytest.raises(UserError, match="no calibration to fold"):
        fold(model)


def test_a_statistics_file_goes_from_collect_to_attach(tmp_path):
    model, inputs = retinanet(), images()
    collect(model, batches(), class_names=list("abcde")).save(tmp_path / "s")
    before = detections(model, inputs)
    attach(model, tmp_path / "s", class_names=list("abcde"))
    logits, _ = by_hand(model, inputs[0])
    assert logits.abs().mean() < 3  # standardized
    assert not torch.equal(detections(model, inputs)[0]["scores"], before[0]["scores"])


def test_statistics_of_other_weights_are_refused():
    statistics = collect(retinanet(), batches(2))
    other = retinanet()
    nn.init.normal_(
        other.head.cls_score.weight[NUM_CLASSES + 1 :], std=0.4
    )  # anchors but the first
    with pytest.raises(StatisticsError, match="other weights"):
        attach(other, statistics)
    model = retinanet()
    attach(model, statistics)
    with torch.no_grad():
        model.head.cls_score.bias.mul_(-3)
    with pytest.raises(StatisticsError, match="other weights"):
        detections(model, images())


def test_calibrations_made_from_counts_fit_and_those_from_weights_are_refused():
    model = retinanet()
    attach(model, "temperature(temperature=2)")
    detach(model)
    with pytest.raises(UserError, match="one row of weights for each class"):
        attach(model, "tau_norm(tau=1)")


def test_a_detector_is_found_inside_its_wrapper_and_two_are_refused():
    model, inputs = retinanet(), images()
    attach(nn.ModuleDict({"ema": model}), calibration())
    detach(model)
    pair = nn.ModuleDict({"teacher": model, "student": retinanet(1)})
    with pytest.raises(UserError, match="contains 2 detectors: teacher, student"):
        attach(pair, calibration())
    assert known_site(nn.Linear(2, 2)) is None
    assert len(detections(model, inputs)) == 2


def test_a_class_that_a_lazy_config_makes_is_known_by_its_parents():
    """Such a file runs without a name, so that what `type` makes there has no __module__."""
    model, names = retinanet(), {}
    exec("Mine = type('Mine', (parent,), {})", {"parent": type(model)}, names)
    assert not hasattr(names["Mine"], "__module__")
    model.__class__ = names["Mine"]
    assert known_site(model).layers == [model.head.cls_score]
    assert parts_of_logn_d2(model) == []


def test_images_without_ground_truth_are_named_before_the_pass():
    inputs = images(1)
    del inputs[0]["instances"]
    with pytest.raises(UserError, match="no 'instances'"):
        collect(retinanet(), [inputs])
    assert collect(retinanet(), [inputs], population="proposals").num_images == 1
