"""Attaching calibrates any detector, detaching leaves no trace, and models don't mix."""

import copy
import pickle
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import torchvision
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from logn_d2.core import (
    AffineCalibration,
    ClassCounts,
    LogitStatistics,
    StatisticsError,
    norcal,
    stage_calibrations,
    tau_norm,
)
from logn_d2.modeling import (
    LogitRecorder,
    attach,
    calibration_of,
    detach,
    find_box_predictors,
    fold,
    predictor_fingerprint,
)
from logn_d2.modeling.attach import find_sites

from .small_models import (
    CLASS_NAMES,
    NUM_CLASSES,
    PARENTS,
    assert_same,
    detections,
    images,
    small_model,
    statistics_of,
)

HEADS = {parent: head for head, parent in PARENTS.items()}
NO_MASKS = {"MODEL__MASK_ON": False}


def model_of(head: str, seed: int = 0) -> nn.Module:
    return small_model(head, seed=seed, **NO_MASKS)


def torchvision_model(seed: int = 0) -> nn.Module:
    """A Faster R-CNN of torchvision, background first."""
    torch.manual_seed(seed)
    detection = torchvision.models.detection
    backbone = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8))
    backbone.out_channels = 8
    anchors = detection.rpn.AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    options = dict(min_size=64, max_size=64, box_score_thresh=0.0, rpn_post_nms_top_n_test=30)
    pool = torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2)
    model = detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        box_head=detection.faster_rcnn.TwoMLPHead(8 * 9, 16),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, NUM_CLASSES + 1),
        **options,
    ).eval()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=2)
    return model


def torchvision_detections(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    with torch.no_grad():
        return model([each["image"] / 255 for each in images()])


def some_calibration(background: str = "last") -> AffineCalibration:
    generator = torch.Generator().manual_seed(0)
    scale = 0.5 + torch.rand(NUM_CLASSES, generator=generator)
    shift = torch.randn(NUM_CLASSES, generator=generator)
    return AffineCalibration(scale, shift, background=background)


@pytest.mark.parametrize("head", HEADS)
def test_attaching_equals_our_heads_with_the_same_statistics(head, tmp_path):
    path = str(tmp_path / "s.safetensors")
    model = model_of(head)
    uncalibrated = detections(model, images())
    statistics_of(model).save(path)
    ours = small_model(HEADS[head], MODEL__LOGN__STATISTICS=path, **NO_MASKS)
    attach(model, path)
    found = detections(model, images())
    assert_same(found, detections(ours, images()))
    assert not torch.equal(found[0]["scores"], uncalibrated[0]["scores"])


@pytest.mark.parametrize("head", [*HEADS, *PARENTS])
def test_detaching_restores_the_model(head):
    model = model_of(head)
    before = detections(model, images())
    attributes = [dict(module.__dict__) for module in model.modules()]
    children = [dict(module._modules) for module in model.modules()]
    attach(model, statistics_of(model))
    detach(model)
    assert_same(detections(model, images()), before)
    assert [dict(module.__dict__) for module in model.modules()] == attributes
    assert [dict(module._modules) for module in model.modules()] == children


@pytest.mark.parametrize("head", [*HEADS, *PARENTS])
def test_checkpoints_do_not_change(head):
    model = model_of(head)
    before = model.state_dict()
    attach(model, statistics_of(model))
    after = model.state_dict()
    assert list(before) == list(after)
    model.load_state_dict(before, strict=True)
    assert list(dict(model.named_parameters())) == [
        name for name, _ in model_of(head).named_parameters()
    ]


@pytest.mark.parametrize("head", ["StandardROIHeads", "LogNROIHeads"])
def test_a_with_block_detaches_also_after_an_error(head):
    model = model_of(head)
    before = detections(model, images())
    with suppress(ZeroDivisionError), attach(model, statistics_of(model)):
        assert calibration_of(model.roi_heads.box_predictor).name == "logn"
        raise ZeroDivisionError
    assert_same(detections(model, images()), before)


def test_a_handle_removes_its_own_calibrations_only():
    model = model_of("StandardROIHeads")
    first = attach(model, some_calibration())
    detach(model)
    second = attach(model, some_calibration())
    first.detach()
    first.detach()
    assert calibration_of(model.roi_heads.box_predictor) is second.calibrations[0]


@pytest.mark.parametrize("head", ["StandardROIHeads", "LogNROIHeads"])
def test_models_in_one_process_do_not_mix(head):
    one, other = model_of(head), model_of(head)
    before = detections(other, images())
    attach(one, statistics_of(one))
    assert_same(detections(other, images()), before)
    attach(other, some_calibration())
    detach(one)
    assert_same(detections(one, images()), before)
    assert not torch.equal(detections(other, images())[0]["scores"], before[0]["scores"])


def test_the_callers_calibration_stays_the_callers():
    calibration = some_calibration()
    models = [model_of("StandardROIHeads"), model_of("LogNROIHeads")]
    for model in models:
        attach(model, calibration)
        model.to("meta")
    assert calibration.column_scale.device.type == "cpu"


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("head", ["CascadeROIHeads", "LogNCascadeROIHeads", "StandardROIHeads"])
def test_a_copy_has_a_calibration_of_its_own(head, twin_of):
    model = model_of(head)
    uncalibrated = detections(model, images())
    attach(model, statistics_of(model), strict=False)  # the twin gets other weights below
    calibrated = detections(model, images())
    twin = twin_of(model)
    detach(model)
    assert_same(detections(twin, images()), calibrated)
    assert_same(detections(model, images()), uncalibrated)
    # The copy's own classifier is used, and its own calibration.
    for predictor in find_box_predictors(twin):
        nn.init.zeros_(predictor.cls_score.weight)
        calibration_of(predictor).column_shift.zero_()
    probabilities = detections(twin, images())[0]["scores"]
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / 6))
    detach(twin)


@pytest.mark.parametrize("head", ["StandardROIHeads", "LogNROIHeads"])
@pytest.mark.parametrize("attach_first", [True, False])
def test_the_calibration_is_where_the_model_is(head, attach_first):
    model = model_of(head)
    steps = [lambda: attach(model, some_calibration()), lambda: model.to("meta")]
    for step in steps if attach_first else reversed(steps):
        step()
    calibration = calibration_of(model.roi_heads.box_predictor)
    assert {b.device.type for b in calibration.buffers()} == {"meta"}


def test_half_precision_logits_are_calibrated_in_float32():
    predictor = model_of("StandardROIHeads").roi_heads.box_predictor.half()
    calibration = some_calibration()
    attach(predictor, calibration)
    logits = torch.randn(4, NUM_CLASSES + 1).half()
    (probs,) = predictor.predict_probs((logits, None), [range(4)])
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, calibration(logits.float()).softmax(dim=1))


def test_a_users_sigmoid_head_gets_the_same_map():
    class Sigmoid(fast_rcnn.FastRCNNOutputLayers):
        def predict_probs(self, predictions, proposals):
            return predictions[0].sigmoid().split([len(p) for p in proposals])

    predictor = model_of("StandardROIHeads").roi_heads.box_predictor
    predictor.__class__ = Sigmoid
    calibration, logits = some_calibration(), torch.randn(4, NUM_CLASSES + 1)
    attach(predictor, calibration)
    (probs,) = predictor.predict_probs((logits, None), [range(4)])
    assert torch.equal(probs, calibration(logits).sigmoid())


def test_a_method_that_was_covered_before_stays_so():
    predictor = model_of("StandardROIHeads").roi_heads.box_predictor
    own = predictor.predict_probs = lambda predictions, proposals: predictions[0] + 1
    calibration, logits = some_calibration(), torch.randn(4, NUM_CLASSES + 1)
    with attach(predictor, calibration):
        found = predictor.predict_probs((logits, None), [])
        assert torch.equal(found, calibration(logits) + 1)
    assert predictor.predict_probs is own


@pytest.mark.parametrize("population", ["sampled", "proposals"])
@pytest.mark.parametrize("head", ["CascadeROIHeads", "LogNCascadeROIHeads"])
def test_recorded_logits_stay_raw(head, population):
    model = model_of(head)
    expected = LogitRecorder(model, population)(images(1))
    attach(model, statistics_of(model))
    found = LogitRecorder(model, population)(images(1))
    for one, other in zip(expected.stages, found.stages):
        assert torch.equal(one.logits, other.logits)


def test_losses_stay_as_they_are():
    losses = []
    for calibrated in (False, True):
        model = model_of("StandardROIHeads").train()
        if calibrated:
            attach(model, some_calibration())
        torch.manual_seed(0)
        with EventStorage():
            losses.append(model(images()))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_each_stage_has_its_own_statistics():
    model = model_of("CascadeROIHeads")
    statistics = statistics_of(model)
    handle = attach(model, statistics, calibration="logn(beta=none)")
    expected = stage_calibrations(
        "logn(beta=none)", num_classes=NUM_CLASSES, num_stages=3, statistics=statistics
    )
    assert len({float(each.shift[0]) for each in expected}) == 3
    for found, wanted in zip(handle.calibrations, expected):
        assert torch.equal(found.column_shift, wanted.column_shift)
        assert torch.equal(found.column_scale, wanted.column_scale)


def test_class_counts_suffice_for_calibrations_without_statistics():
    model = model_of("CascadeROIHeads")
    counts = ClassCounts(CLASS_NAMES, [9, 8, 7, 6, 5], [9, 9, 9, 9, 9], 10)
    handle = attach(model, None, calibration="norcal(gamma=0.5)", counts=counts)
    expected = norcal([9, 8, 7, 6, 5], gamma=0.5)
    assert all(torch.equal(each.shift, expected.shift) for each in handle.calibrations)


@pytest.mark.parametrize("head", ["StandardROIHeads", "LogNROIHeads"])
def test_the_error_for_attaching_twice_names_detach(head):
    model = model_of(head)
    attach(model, some_calibration())
    with pytest.raises(ValueError, match="already has the calibration 'affine'.*detach"):
        attach(model, some_calibration())
    detach(model)
    with pytest.raises(ValueError, match="nothing to detach"):
        detach(model)


def test_a_model_without_predictors_is_refused():
    for function in (lambda m: attach(m, some_calibration()), detach):
        with pytest.raises(ValueError, match="no box predictor"):
            function(nn.Linear(2, 2))


MISFITS = {
    "classes": (
        lambda s: statistics_of(small_model(MODEL__ROI_HEADS__NUM_CLASSES=4)),
        "head has 5 classes.* have 4",
    ),
    "stages": (lambda s: replace(s, stages=s.stages * 2), "1 box predictors.*have 2"),
    "background": (lambda s: replace(s, background="first"), "column 'first', this head 'last'"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_statistics_of_another_model_are_refused_and_leave_it_alone(name):
    model = model_of("StandardROIHeads")
    spoil, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        attach(model, spoil(statistics_of(model)), strict=False)
    assert calibration_of(model.roi_heads.box_predictor) is None


def test_other_weights_are_refused_unless_told_otherwise():
    model = model_of("CascadeROIHeads")
    statistics = statistics_of(model)
    nn.init.normal_(model.roi_heads.box_predictor[2].cls_score.weight)
    with pytest.raises(StatisticsError, match="stage 2"):
        attach(model, statistics)
    attach(model, statistics, strict=False)


def test_other_class_names_are_refused():
    model = model_of("StandardROIHeads")
    with pytest.raises(StatisticsError, match="class 4 is 'X'"):
        attach(model, statistics_of(model), class_names=list("abcdX"))
    attach(model, statistics_of(model), class_names=list("abcde"))


def test_calibrations_that_do_not_fit_are_refused():
    model = model_of("CascadeROIHeads")
    with pytest.raises(ValueError, match="3 box predictors.*2 calibrations"):
        attach(model, [some_calibration()] * 2)
    with pytest.raises(ValueError, match="for 9 classes"):
        attach(model, [AffineCalibration.identity(9)] * 3)
    with pytest.raises(ValueError, match="column first"):
        attach(model, [some_calibration("first")] * 3)
    with pytest.raises(ValueError, match="Several calibrations were given"):
        attach(model, [some_calibration()] * 3, calibration="logn")
    with pytest.raises(ValueError, match="Can't attach a dict"):
        attach(model, {})
    with pytest.raises(FileNotFoundError, match="logn collect"):
        attach(model, "/no/such/file")
    assert all(calibration_of(predictor) is None for predictor in find_box_predictors(model))


def test_a_distributed_model_is_calibrated_inside(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = model_of("StandardROIHeads")
        wrapped = DistributedDataParallel(model)
        statistics = statistics_of(model)
        before = detections(wrapped, images())
        with attach(wrapped, statistics):
            found = detections(wrapped, images())
            assert not torch.equal(found[0]["scores"], before[0]["scores"])
            assert len(LogitRecorder(wrapped)(images(1)).stages) == 1
        assert_same(detections(wrapped, images()), before)
    finally:
        torch.distributed.destroy_process_group()


def test_torchvision_detectors_are_calibrated_before_their_softmax():
    model, calibration = torchvision_model(), some_calibration("first")
    before = torchvision_detections(model)
    seen = []
    hook = model.roi_heads.box_predictor.register_forward_hook(lambda m, i, o: seen.append(o[0]))
    with attach(model, calibration):
        found = torchvision_detections(copy.deepcopy(model))
        assert list(model.state_dict()) == list(torchvision_model().state_dict())
    hook.remove()
    probs = calibration(seen[0]).softmax(dim=1)[:, 1:]
    for scores in (each["scores"] for each in found):
        assert torch.isclose(scores[:, None], probs.flatten()).any(dim=1).all()
    assert not torch.equal(found[0]["scores"], before[0]["scores"])
    assert_same(torchvision_detections(model), before)


def test_statistics_of_a_torchvision_detector_are_checked():
    model = torchvision_model()
    (site,) = find_sites(model)
    stage = statistics_of(model_of("StandardROIHeads")).stages[0]
    stage = replace(stage, fingerprint=predictor_fingerprint(site.classifier))
    statistics = LogitStatistics((stage,), CLASS_NAMES, background="first")
    with attach(model, statistics) as handle:
        assert handle.calibrations[0].background == "first"
    with pytest.raises(StatisticsError, match="other weights"):
        attach(torchvision_model(seed=1), statistics)


@pytest.mark.parametrize("head", ["StandardROIHeads", "LogNROIHeads", "LogNCascadeROIHeads"])
def test_tau_norm_takes_the_weights_of_each_predictor(head):
    model = small_model(head)
    expected = [
        tau_norm(p.cls_score.weight, p.cls_score.bias, tau=0.7) for p in find_box_predictors(model)
    ]
    attachment = attach(model, None, calibration="tau_norm(tau=0.7)")
    for found, each in zip(attachment.calibrations, expected, strict=True):
        assert torch.equal(found.scale, each.scale) and torch.equal(found.shift, each.shift)


def test_tau_norm_changes_nothing_about_a_cosine_classifier():
    model = small_model(MODEL__LOGN__CLASSIFIER="cosine")
    before = detections(model, images())
    attach(model, None, calibration="tau_norm")
    for one, other in zip(before, detections(model, images()), strict=True):
        torch.testing.assert_close(one["scores"], other["scores"])


@pytest.mark.parametrize("head", ["CascadeROIHeads", "LogNCascadeROIHeads"])
def test_an_attached_calibration_notices_that_the_weights_change(head):
    model = model_of(head)
    statistics = statistics_of(model)
    attach(model, statistics)
    detections(model, images(1))
    own = copy.deepcopy(model.state_dict())
    changes = (
        lambda: model.load_state_dict(model_of(head, seed=7).state_dict()),
        lambda: nn.init.normal_(find_box_predictors(model)[1].cls_score.weight),
    )
    for change in changes:
        change()
        with pytest.raises(StatisticsError, match="other weights"):
            detections(model, images(1))
        model.load_state_dict(own)
        detections(model, images(1))


@pytest.mark.parametrize("head", ["StandardROIHeads", "LogNROIHeads"])
def test_a_calibration_made_from_weights_follows_them(head):
    model, other = model_of(head), model_of(head, seed=7)
    for predictor in find_box_predictors(other):
        torch.nn.init.normal_(predictor.cls_score.bias)
    (attached,) = attach(model, None, calibration="tau_norm").calibrations
    (expected,) = attach(other, None, calibration="tau_norm").calibrations
    model.load_state_dict(other.state_dict())
    assert_same(detections(model, images()), detections(other, images()))
    assert torch.equal(attached.column_scale, expected.column_scale)
    assert torch.equal(attached.column_shift, expected.column_shift) and expected.shift.all()


class Holder(nn.Module):
    """What training frameworks put around a detector."""

    def __init__(self, **models):
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)

    def forward(self, inputs):
        return self.model(inputs)


WRAPPERS = {
    "framework": lambda m: Holder(model=m),
    "average": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "average in a framework": lambda m: Holder(model=torch.optim.swa_utils.AveragedModel(m)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_models_are_recorded_as_they_are_attached_to(name):
    model = model_of("StandardROIHeads")
    wrapped = WRAPPERS[name](model)
    (expected,) = LogitRecorder(model)(images(1)).stages
    (found,) = LogitRecorder(wrapped)(images(1)).stages
    assert torch.equal(found.logits, expected.logits)
    with attach(wrapped, statistics_of(model)) as attachment:
        assert len(attachment.calibrations) == 1


def test_a_teacher_with_a_student_is_refused_by_name():
    both = Holder(teacher=model_of("StandardROIHeads"), student=model_of("StandardROIHeads"))
    for function in (lambda m: attach(m, some_calibration()), LogitRecorder):
        with pytest.raises(ValueError, match="2 detectors: teacher, student.*model.teacher"):
            function(both)


def test_what_sampled_rois_can_not_be_drawn_from_is_refused_before_a_pass():
    model = model_of("StandardROIHeads")
    with pytest.raises(ValueError, match="torchvision's.*docs/your_project"):
        LogitRecorder(torchvision_model())
    model.sem_seg_head = nn.Identity()
    with pytest.raises(ValueError, match="no 'sem_seg'.*proposals"):
        LogitRecorder(model)(images(1))
    model.proposal_generator.num_branch = 3
    with pytest.raises(ValueError, match="TridentNet.*proposals"):
        LogitRecorder(model)
    LogitRecorder(model, "proposals")(images(1))


def test_attach_and_fold_take_the_same_things(tmp_path):
    path = tmp_path / "s.safetensors"
    statistics = statistics_of(model_of("CascadeROIHeads"))
    statistics.save(path)
    (norcal_counts,) = [ClassCounts(CLASS_NAMES, [9, 8, 7, 6, 5], [9] * 5, 10)]
    made = stage_calibrations("logn", num_classes=NUM_CLASSES, num_stages=3, statistics=statistics)
    groups = [
        [((str(path),), {}), ((path,), {}), ((statistics,), {}), ((made,), {}),
         (("logn",), {"statistics": statistics}), ((), {"statistics": path})],
        [(("norcal(gamma=0.6)",), {"counts": norcal_counts})],
        [(("logn(beta=mean)",), {"statistics": str(path)})],
    ]  # fmt: skip
    for calls in groups:
        found = []
        for arguments, options in calls:
            attached, folded = model_of("CascadeROIHeads"), model_of("CascadeROIHeads")
            attach(attached, *arguments, **options)
            fold(folded, *arguments, **options)
            found.append(detections(attached, images(1)))
            assert_same(found[-1], found[0])
            scores = [detections(m, images(1))[0]["scores"] for m in (attached, folded)]
            torch.testing.assert_close(*scores)


def test_what_was_meant_is_asked_for():
    model = model_of("StandardROIHeads")
    statistics = statistics_of(model)
    for arguments, options, message in (
        ((), {}, "No calibration was given"),
        (("logn",), {"calibration": "norcal"}, "Several calibrations"),
        ((statistics,), {"statistics": statistics}, "Several calibrations"),
        (("norcl(gamma=1)",), {}, "norcal"),
    ):
        with pytest.raises((ValueError, KeyError), match=message):
            attach(model, *arguments, **options)
    assert calibration_of(model.roi_heads.box_predictor) is None


def test_a_calibration_is_replaced_on_demand_and_logged_in_one_line(caplog):
    model = model_of("StandardROIHeads")
    attach(model, some_calibration())
    with caplog.at_level("INFO", logger="logn_d2"):
        attachment = attach(model, statistics_of(model), replace=True)
    assert "Attached logn: 5 classes, 1 stages, 0 classes uncalibrated" in caplog.text
    assert len(repr(attachment)) < 100 and "logn" in repr(attachment)
