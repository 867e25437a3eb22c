"""The statistics pass counts every RoI once, survives being killed, and leaves no trace."""

from __future__ import annotations

import copy
import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm
from torch import Tensor, nn

from logn_d2.collection import LogitStatisticsCollector, collect_from_config, collect_statistics
from logn_d2.core import (
    AffineCalibration,
    LogitStatistics,
    NonFiniteLogitsError,
    StageStatistics,
    StatisticsError,
    logn,
)
from logn_d2.data.loader import build_statistics_loader
from logn_d2.errors import UserError
from logn_d2.modeling.attach import attach
from logn_d2.modeling.box_predictors import find_box_predictors, predictor_fingerprint
from logn_d2.modeling.recording import Recording

from ..processes import Command
from ..small_detectors import (
    CASCADE,
    CLASS_NAMES,
    NUM_CLASSES,
    STANDARD,
    TRAIN,
    small_config,
    small_model,
    start_process,
)

pytestmark = pytest.mark.usefixtures("data_set")


def few(count: int = 4, **options: object) -> CfgNode:
    return small_config(MODEL__LOGN__COLLECT__MAX_IMAGES=count, **options)


@contextmanager
def every_output(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """What hooks see: for each predictor, the logits of each call."""
    predictors = find_box_predictors(model)
    seen: list[list[Tensor]] = [[] for _ in predictors]

    def listener(stage: list[Tensor]) -> Callable:
        return lambda module, args, output: stage.append(output[0].double())

    pairs = zip(predictors, seen)
    handles = [predictor.register_forward_hook(listener(stage)) for predictor, stage in pairs]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def every_label(model: nn.Module) -> Iterator[list[Tensor]]:
    """The classes that RoIs are matched to, for each image."""
    seen: list[Tensor] = []
    method = model.roi_heads.label_and_sample_proposals

    def label(*args: object) -> list:
        proposals = method(*args)
        seen.extend(each.gt_classes for each in proposals)
        return proposals

    model.roi_heads.label_and_sample_proposals = label
    try:
        yield seen
    finally:
        del model.roi_heads.label_and_sample_proposals


@contextmanager
def every_stage_label(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """The classes that RoIs are matched to, of each box predictor and image."""
    seen: list[list[Tensor]] = [[] for _ in find_box_predictors(model)]
    process = LogitStatisticsCollector.process

    def note(self: LogitStatisticsCollector, inputs: list, outputs: Recording) -> None:
        for stage, labels in zip(outputs.stages, seen, strict=True):
            labels.extend(each.gt_classes for each in stage.proposals)
        process(self, inputs, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogitStatisticsCollector, "process", note)
        yield seen


def assert_equal(left: LogitStatistics, right: LogitStatistics, tolerance: float = 0.0) -> None:
    assert (left.num_images, left.num_rois) == (right.num_images, right.num_rois)
    assert left.class_names == right.class_names
    assert len(left.stages) == len(right.stages)
    for one, other in zip(left.stages, right.stages):
        assert torch.equal(one.count, other.count)
        for name in ("mean", "var"):
            torch.testing.assert_close(
                getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance
            )
        if one.moments is not None:
            torch.testing.assert_close(
                one.moments.std_error, other.moments.std_error, rtol=max(tolerance, 1e-9), atol=0
            )
        assert (one.posteriors is None) == (other.posteriors is None)
        if one.posteriors is not None:
            mine, theirs = one.posteriors.state_dict(), other.posteriors.state_dict()
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                torch.testing.assert_close(
                    value, theirs[name], rtol=max(tolerance, 1e-9), atol=max(tolerance, 1e-12)
                )


# What is counted


@pytest.mark.parametrize("head", [STANDARD, CASCADE])
@pytest.mark.parametrize("population", ["sampled", "proposals"])
def test_moments_equal_those_of_all_logits_together(
    models: dict[str, nn.Module], head: str, population: str
) -> None:
    cfg = few(5, MODEL__LOGN__COLLECT__POPULATION=population)
    with every_output(models[head]) as seen:
        statistics = collect_statistics(
            models[head], build_statistics_loader(cfg), population=population
        )
    assert statistics.num_images == 5
    assert statistics.num_rois == sum(map(len, seen[0]))
    assert len(statistics.stages) == len(seen) == (3 if head == CASCADE else 1)
    for stage, outputs in zip(statistics.stages, seen):
        logits = torch.cat(outputs)
        assert stage.count.tolist() == [len(logits)] * (NUM_CLASSES + 1)
        torch.testing.assert_close(stage.mean, logits.mean(dim=0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(stage.var, logits.var(dim=0), rtol=1e-10, atol=1e-10)


def test_all_views_of_an_image_are_in_one_group(model: nn.Module, data_set: list[dict]) -> None:
    """So that repeated images do not count as new ones in the standard error."""
    loader = build_statistics_loader(small_config(), dataset=data_set[:2] * 3)
    moments = collect_statistics(model, loader).stages[0].moments
    assert sorted(moments.group_weight[:, 0].tolist())[-3:] == [0, 3 * 24, 3 * 24]


def test_repeated_images_are_passed_once_and_weighted(model: nn.Module) -> None:
    cfg = small_config(DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    loader = build_statistics_loader(cfg)
    with every_output(model) as seen:
        stage = collect_statistics(model, loader).stages[0]
    weights = [image.get("statistics_weight", 1.0) for (image,) in loader]
    assert len(seen[0]) == 10 and max(weights) > 3
    of_roi = torch.cat([torch.full((len(z), 1), w) for z, w in zip(seen[0], weights)]).double()
    logits = torch.cat(seen[0])
    mean = (of_roi * logits).sum(dim=0) / of_roi.sum()
    torch.testing.assert_close(stage.mean, mean)
    var = (of_roi * (logits - mean) ** 2).sum(dim=0) / (of_roi.sum() - 1)
    torch.testing.assert_close(stage.var, var)
    assert stage.count.tolist() == [len(logits)] * (NUM_CLASSES + 1)


@pytest.mark.parametrize("head", [STANDARD, CASCADE])
def test_posteriors_and_labels_are_those_of_all_rois_together(
    models: dict[str, nn.Module], head: str
) -> None:
    cfg = small_config(head, DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    loader = build_statistics_loader(cfg)
    model = models[head]
    with every_output(model) as seen, every_stage_label(model) as labels:
        statistics = collect_statistics(model, loader)
    weights = [image.get("statistics_weight", 1.0) for (image,) in loader]
    assert max(weights) > 3 and statistics.activation == "softmax"
    for stage, outputs, of_stage in zip(statistics.stages, seen, labels, strict=True):
        logits, classes = torch.cat(outputs), torch.cat(of_stage)
        of_roi = torch.cat([torch.full((len(z), 1), w) for z, w in zip(outputs, weights)]).double()
        scores, own = logits.softmax(dim=1), classes[:, None] == torch.arange(NUM_CLASSES + 1)
        mean = (of_roi * scores).sum(dim=0) / of_roi.sum()
        exact = {"rtol": 1e-10, "atol": 0.0}  # posteriors of rare classes are tiny
        torch.testing.assert_close(stage.mean_posterior(), mean, **exact)
        rest = of_roi * ~own
        mean = (rest * scores).sum(dim=0) / rest.sum(dim=0)
        torch.testing.assert_close(stage.mean_posterior("negatives"), mean, **exact)
        mean = (rest * logits).sum(dim=0) / rest.sum(dim=0)
        torch.testing.assert_close(stage.negatives().mean, mean)
        assert torch.equal(stage.posteriors.label_count, own.sum(dim=0))
        torch.testing.assert_close(stage.label_weight(), (of_roi * own).sum(dim=0))


@pytest.mark.parametrize("loss", ["sigmoid_cross_entropy", "cross_entropy"])
def test_posteriors_equal_the_scores_of_the_head(loss: str) -> None:
    cfg = few(3, MODEL__ROI_HEADS__NAME="LogNROIHeads", MODEL__LOGN__LOSS=loss)
    model = small_model(cfg)
    with every_output(model) as seen:
        statistics = collect_statistics(model, build_statistics_loader(cfg))
    logits = torch.cat(seen[0])
    is_sigmoid = loss.startswith("sigmoid")
    scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=1)
    torch.testing.assert_close(statistics.stages[0].mean_posterior(), scores.mean(dim=0))
    assert statistics.activation == ("sigmoid" if is_sigmoid else "softmax")


def test_posteriors_of_other_populations_and_estimators(model: nn.Module) -> None:
    def stage(**options: str) -> StageStatistics:
        return collect_statistics(model, build_statistics_loader(few(4)), **options).stages[0]

    assert stage(population="positives").posteriors is None
    assert stage(estimator="ema").posteriors is None
    assert not stage(population="proposals").posteriors.labelled
    foreground = stage(population="foreground").posteriors
    assert foreground.label_count[-1] == 0
    assert foreground.label_count.sum() == foreground.roi_count.sum() > 0


def test_only_a_pass_over_all_images_is_complete(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for cfg, complete in ((small_config(), True), (few(100), True), (few(3), False)):
        assert collect_from_config(cfg, model, path).complete is complete
    early = small_config(MODEL__LOGN__COLLECT__STOP_AT=1e9, MODEL__LOGN__COLLECT__STOP_PERIOD=3)
    assert collect_from_config(early, model, path).complete is False
    assert collect_statistics(model, build_statistics_loader(few(3))).complete is None


def test_foreground_is_the_matched_rois(model: nn.Module) -> None:
    with every_output(model) as seen, every_label(model) as labels:
        loader = build_statistics_loader(small_config())
        statistics = collect_statistics(model, loader, population="foreground")
    matched = torch.cat(labels) < NUM_CLASSES
    logits = torch.cat(seen[0])[matched]
    assert 0 < len(logits) < len(matched)
    assert statistics.num_rois == len(logits)
    assert set(statistics.stages[0].count.tolist()) == {len(logits)}
    torch.testing.assert_close(statistics.stages[0].mean, logits.mean(dim=0))
    torch.testing.assert_close(statistics.stages[0].var, logits.var(dim=0))


def test_positives_count_for_their_own_class_only(model: nn.Module) -> None:
    with every_output(model) as seen, every_label(model) as labels:
        loader = build_statistics_loader(small_config())
        stage = collect_statistics(model, loader, population="positives").stages[0]
    for column in range(NUM_CLASSES + 1):
        of_class = torch.cat(seen[0])[torch.cat(labels) == column, column]
        assert len(of_class) == stage.count[column] > 0
        torch.testing.assert_close(stage.mean[column], of_class.mean())
        var = of_class.var() if len(of_class) > 1 else torch.zeros(()).double()
        torch.testing.assert_close(stage.var[column], var)


def test_a_class_that_is_never_seen_is_left_uncalibrated(
    model: nn.Module, data_set: list[dict], caplog: pytest.LogCaptureFixture
) -> None:
    without_rare = [r for r in data_set if r["image_id"] != 102]
    loader = build_statistics_loader(small_config(), dataset=without_rare)
    with caplog.at_level(logging.WARNING):
        stage = collect_statistics(model, loader, population="positives").stages[0]
    assert stage.count[3] == 0 and not stage.usable[3]
    assert "1 of 4 classes have no usable statistics" in caplog.text
    assert logn(stage).scale[3] == 1


def test_sampled_rois_hold_the_ground_truth_and_proposals_do_not(model: nn.Module) -> None:
    """Sampling takes 24 RoIs of an image, a test-time pass up to 40."""
    sampled = collect_statistics(model, build_statistics_loader(few(3)))
    proposals = collect_statistics(model, build_statistics_loader(few(3)), population="proposals")
    assert sampled.num_rois == 3 * 24
    assert proposals.num_rois > sampled.num_rois


def test_repeated_images_get_new_rois(model: nn.Module, data_set: list[dict]) -> None:
    loader = build_statistics_loader(small_config(), dataset=[data_set[0]] * 2)
    with every_output(model) as seen:
        collect_statistics(model, loader)
    first, second = seen[0]
    assert not torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


def test_batches_of_any_size_give_the_same_statistics(model: nn.Module) -> None:
    images = [image for batch in build_statistics_loader(few(6)) for image in batch]
    expected = collect_statistics(model, [[image] for image in images])
    pairs = collect_statistics(model, [images[:2], images[2:5], images[5:]], population="proposals")
    single = collect_statistics(model, [[image] for image in images], population="proposals")
    # A batch is padded to its largest image: all are of one size here.
    assert_equal(pairs, single, tolerance=1e-5)
    assert_equal(expected, collect_statistics(model, [[image] for image in images]))


@pytest.mark.parametrize("head", ["LogNROIHeads", STANDARD, CASCADE])
@pytest.mark.parametrize("population", ["sampled", "proposals"])
def test_a_calibration_of_the_model_does_not_enter_its_statistics(
    head: str, population: str
) -> None:
    cfg = few(2, MODEL__ROI_HEADS__NAME=head, MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True)
    model = small_model(cfg)
    raw = collect_statistics(model, build_statistics_loader(cfg), population=population)
    calibration = AffineCalibration(
        torch.full((NUM_CLASSES,), 3.0), torch.full((NUM_CLASSES,), -2.0)
    )
    with attach(model, [calibration] * len(raw.stages)):
        again = collect_statistics(model, build_statistics_loader(cfg), population=population)
    assert_equal(raw, again)


def test_models_that_share_convolutions_with_the_mask_head_work() -> None:
    cfg = few(
        2,
        MODEL__ROI_HEADS__NAME="Res5ROIHeads",
        MODEL__BACKBONE__NAME="build_resnet_backbone",
        MODEL__RESNETS__OUT_FEATURES=["res4"],
        MODEL__RESNETS__DEPTH=50,
        MODEL__RESNETS__RES2_OUT_CHANNELS=16,
        MODEL__RESNETS__STEM_OUT_CHANNELS=16,
        MODEL__RESNETS__WIDTH_PER_GROUP=4,
        MODEL__RPN__IN_FEATURES=["res4"],
        MODEL__ROI_HEADS__IN_FEATURES=["res4"],
        MODEL__ANCHOR_GENERATOR__SIZES=[[16, 32]],
    )
    model = small_model(cfg)
    with every_output(model) as seen:
        statistics = collect_statistics(model, build_statistics_loader(cfg))
    torch.testing.assert_close(statistics.stages[0].mean, torch.cat(seen[0]).mean(dim=0))


# Moving averages


@pytest.mark.parametrize("estimator", ["ema", "ema_debiased"])
def test_moving_averages_equal_batch_norm(model: nn.Module, estimator: str) -> None:
    momentum = 0.3
    with every_output(model) as seen:
        statistics = collect_statistics(
            model, build_statistics_loader(few(4)), estimator=estimator, momentum=momentum
        )
    norm = nn.BatchNorm1d(NUM_CLASSES + 1, momentum=momentum, affine=False).double()
    for of_image in seen[0]:
        norm(of_image)
    mean, var, left = norm.running_mean, norm.running_var, (1 - momentum) ** 4
    if estimator == "ema_debiased":
        mean, var = mean / (1 - left), (var - left) / (1 - left)
    torch.testing.assert_close(statistics.stages[0].mean, mean)
    torch.testing.assert_close(statistics.stages[0].var, var)
    assert statistics.momentum == momentum
    assert statistics.stages[0].moments is None


def test_moving_averages_of_several_processes_are_those_of_the_first(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = collect_statistics(model, build_statistics_loader(few(2)), estimator="ema")
    gather = comm.all_gather

    def with_another(own: object) -> list:
        other = copy.deepcopy(own)
        if isinstance(other, LogitStatistics):
            other.stages[0].mean.add_(1)
        return gather(own) + [other]

    monkeypatch.setattr(comm, "all_gather", with_another)
    with caplog.at_level(logging.WARNING):
        both = collect_statistics(model, build_statistics_loader(few(2)), estimator="ema")
    assert_equal(alone, both)
    assert "process 0 alone" in caplog.text


# Several processes, interruptions


def finish(process: Command) -> int:
    code = process.wait()
    assert code in (0, -signal.SIGKILL), process.output
    return code


def test_two_processes_collect_the_statistics_of_one(
    models: dict[str, nn.Module], image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "two.safetensors"
    processes = [start_process(image_folder, output, rank, 2, 0) for rank in range(2)]
    one = collect_from_config(small_config(CASCADE), models[CASCADE], tmp_path / "one.safetensors")
    assert [finish(process) for process in processes] == [0, 0]
    for path in (output, Path(f"{output}.rank0"), Path(f"{output}.rank1")):
        assert_equal(LogitStatistics.load(path), one, tolerance=1e-9)
    assert not list(tmp_path.glob("*partial*"))


def test_a_killed_process_resumes_with_the_same_numbers(
    models: dict[str, nn.Module],
    image_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "killed.safetensors"
    process = start_process(image_folder, output, 0, 1, 7)
    cfg = small_config(CASCADE, MODEL__LOGN__COLLECT__CHECKPOINT_PERIOD=2)
    whole = collect_from_config(cfg, models[CASCADE], tmp_path / "whole.safetensors")
    assert finish(process) == -signal.SIGKILL
    assert not output.exists()
    with caplog.at_level(logging.INFO), every_output(models[CASCADE]) as seen:
        resumed = collect_from_config(cfg, models[CASCADE], output, resume=True)
    assert len(seen[0]) == 10 - 6  # images 0 to 5 were on disk, the seventh was not
    assert "after 6 batches" in caplog.text
    assert_equal(resumed, whole, tolerance=1e-12)
    assert_equal(LogitStatistics.load(output), whole, tolerance=1e-12)
    assert not list(tmp_path.glob("*partial*"))


class Interruption(Exception):
    pass


@contextmanager
def interrupted_after(images: int) -> Iterator[None]:
    process = LogitStatisticsCollector.process

    def process_and_stop(self: LogitStatisticsCollector, *args: object) -> None:
        process(self, *args)
        if self.num_images == images:
            raise Interruption

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(LogitStatisticsCollector, "process", process_and_stop)
        yield


@pytest.mark.parametrize(
    "options",
    [
        {"population": "positives"},
        {"estimator": "ema", "momentum": 0.2},
        {"estimator": "ema_debiased", "momentum": 0.2},
    ],
)
def test_any_loader_and_estimator_resumes(
    model: nn.Module, tmp_path: Path, options: dict[str, object]
) -> None:
    images = list(build_statistics_loader(small_config()))
    # Two images a batch, and so a partial file each four.
    loader = [first + second for first, second in zip(images[::2], images[1::2])]
    options = {"checkpoint": tmp_path / "x.safetensors", "checkpoint_period": 3, **options}
    whole = collect_statistics(model, loader, **options)
    with interrupted_after(6):
        collect_statistics(model, loader, **options)
    with every_output(model) as seen:
        resumed = collect_statistics(model, loader, resume=True, **options)
    assert len(seen[0]) == 3
    assert_equal(resumed, whole)
    assert not list(tmp_path.iterdir())


def interrupt(cfg: CfgNode, model: nn.Module, output: Path) -> None:
    cfg = cfg.clone()
    cfg.MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD = 1
    with interrupted_after(2):
        collect_from_config(cfg, model, output)
    assert list(output.parent.glob("*partial*"))


def test_resuming_with_other_settings_or_weights_starts_from_the_beginning(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, cfg = tmp_path / "x.safetensors", few(3)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.backbone.parameters())[0, 0, 0, 0] += 1e-3
    others = [(few(4), model), (few(3, INPUT__MIN_SIZE_TEST=40), model), (cfg, changed)]
    others.append((few(3, MODEL__LOGN__COLLECT__POPULATION="foreground"), model))
    for other_cfg, other_model in others:
        interrupt(cfg, model, output)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            resumed = collect_from_config(other_cfg, other_model, output, resume=True)
        assert "starts from the beginning" in caplog.text
        clean = collect_from_config(other_cfg, other_model, output)
        assert_equal(resumed, clean)
        assert not list(tmp_path.glob("*partial*"))


def test_another_seed_of_the_rois_starts_from_the_beginning(
    model: nn.Module, tmp_path: Path
) -> None:
    images = list(build_statistics_loader(few(3)))
    options = {"checkpoint": tmp_path / "x.safetensors", "checkpoint_period": 1}
    with interrupted_after(2):
        collect_statistics(model, images, seed=1, **options)
    with every_output(model) as seen:
        collect_statistics(model, images, seed=2, resume=True, **options)
    assert len(seen[0]) == 3


def test_checkpoint_period_and_place_of_weights_do_not_prevent_resuming(
    model: nn.Module, tmp_path: Path
) -> None:
    output, cfg = tmp_path / "x.safetensors", few(4)
    interrupt(cfg, model, output)
    cfg.MODEL.WEIGHTS = "elsewhere/model_final.pth"
    cfg.MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD = 7
    with every_output(model) as seen:
        collect_from_config(cfg, model, output, resume=True)
    assert len(seen[0]) == 2


def test_without_asking_nothing_is_resumed(model: nn.Module, tmp_path: Path) -> None:
    output, cfg = tmp_path / "x.safetensors", few(4)
    interrupt(cfg, model, output)
    with every_output(model) as seen:
        collect_from_config(cfg, model, output)
    assert len(seen[0]) == 4


def test_a_damaged_partial_file_is_named(model: nn.Module, tmp_path: Path) -> None:
    output, cfg = tmp_path / "x.safetensors", few(3)
    interrupt(cfg, model, output)
    (partial,) = tmp_path.glob("*partial*")
    partial.write_bytes(partial.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{partial.name}' is not a complete file .*--resume"):
        collect_from_config(cfg, model, output, resume=True)
    partial.unlink()
    resumed = collect_from_config(cfg, model, output, resume=True)
    assert_equal(resumed, collect_from_config(cfg, model, output))


def test_a_partial_file_of_an_earlier_version_is_resumed(model: nn.Module, tmp_path: Path) -> None:
    output, cfg = tmp_path / "x.safetensors", few(4)
    interrupt(cfg, model, output)
    (partial,) = tmp_path.glob("*partial*")
    partial.rename(partial.with_name(partial.name.split("of1-")[0] + "of1.safetensors"))
    with every_output(model) as seen:
        collect_from_config(cfg, model, output, resume=True)
    assert 0 < len(seen[0]) < 4


def test_a_full_disk_costs_no_pass(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, cfg = tmp_path / "x.safetensors", few(2, MODEL__LOGN__COLLECT__CHECKPOINT_PERIOD=1)
    save = LogitStatistics.save

    def save_or_fail(self: LogitStatistics, path: Path) -> None:
        if path == output:
            raise OSError("No space left on device")
        save(self, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(LogitStatistics, "save", save_or_fail)
        collect_from_config(cfg, model, output)
    with every_output(model) as seen:
        collect_from_config(cfg, model, output, resume=True)
    assert not seen[0] and output.exists()


# No trace


def state_of(model: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "hooks": [len(getattr(m, hook)) for m in model.modules() for hook in hooks],
        "gradients": [p.grad is None for p in model.parameters()],
        "trained": [p.requires_grad for p in model.parameters()],
        "weights": {name: t.clone() for name, t in model.state_dict().items()},
    }


def assert_same_state(left: dict[str, object], right: dict[str, object]) -> None:
    weights, others = left.pop("weights"), right.pop("weights")
    assert left == right
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def seed_all() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("population", ["sampled", "proposals"])
def test_model_and_random_state_are_as_before(
    models: dict[str, nn.Module], population: str, fails: bool
) -> None:
    model = models[CASCADE]
    model.train()
    model.backbone.eval()
    model.roi_heads.mask_head.eval()
    before = state_of(model)
    seed_all()
    expected = draws()
    seed_all()
    loader = build_statistics_loader(few(3, MODEL__LOGN__COLLECT__AUGMENT=True))
    if fails:
        with interrupted_after(2):
            collect_statistics(model, loader, population=population)
    else:
        collect_statistics(model, loader, population=population)
    assert draws() == expected
    assert_same_state(state_of(model), before)
    model.eval()


def test_masks_are_not_computed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("The mask head ran.")

    monkeypatch.setattr(type(model.roi_heads.mask_head), "forward", fail)
    for population in ("sampled", "proposals"):
        collect_statistics(model, build_statistics_loader(few(1)), population=population)


# Mistakes


def test_images_with_nan_logits_are_named(data_set: list[dict]) -> None:
    model = small_model(small_config())
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] = torch.nan
    loader = build_statistics_loader(few(2))
    first = loader.dataset[0]["file_name"]
    with pytest.raises(NonFiniteLogitsError, match=f"'{first}', box predictor 0: NaN"):
        collect_statistics(model, loader)


def test_an_empty_loader_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="There was no image"):
        collect_statistics(model, [])


def test_class_names_must_be_the_models(model: nn.Module) -> None:
    loader = build_statistics_loader(few(1))
    with every_output(model) as seen:
        with pytest.raises(ValueError, match="has 4 classes, but 2 class names were given"):
            collect_statistics(model, loader, class_names=["a", "b"])
        with pytest.raises(ValueError, match="the text 'boltnuts'"):
            collect_statistics(model, loader, class_names="boltnuts")
    assert not seen[0]  # nothing was computed


def test_loaders_that_are_no_finite_batches_are_refused_before_the_pass(model: nn.Module) -> None:
    images = [image for batch in build_statistics_loader(few(2)) for image in batch]
    endless = build_detection_train_loader(
        small_config(), sampler=None, total_batch_size=1, num_workers=0
    )
    with every_output(model) as seen:
        for loader in (endless, iter([images])):
            with pytest.raises(ValueError, match="needs a loader that ends"):
                collect_statistics(model, loader)
        with pytest.raises(ValueError, match=r"Write \[\[image\] for image in images\]"):
            collect_statistics(model, images)
    assert not seen[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": "all"}, "expected 'sampled', "),
        ({"estimator": "mean"}, "expected 'exact', "),
        ({"estimator": "ema", "population": "positives"}, "ESTIMATOR to exact"),
    ],
)
def test_impossible_settings_are_errors(
    model: nn.Module, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect_statistics(model, build_statistics_loader(few(1)), **options)


def test_sampled_rois_need_ground_truth(model: nn.Module) -> None:
    cfg = small_config()
    loader = build_detection_test_loader(cfg, TRAIN, mapper=DatasetMapper(cfg, is_train=False))
    with pytest.raises(ValueError, match="ground truth"):
        collect_statistics(model, loader)
    assert collect_statistics(model, loader, population="proposals").num_images == 10


# The file


def test_the_file_records_its_origin(
    models: dict[str, nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "folder" / "x.safetensors"
    cfg = few(2, MODEL__LOGN__COLLECT__AUGMENT=True)
    cfg.MODEL.WEIGHTS = "model_final.pth"
    model = models[CASCADE]
    with caplog.at_level(logging.INFO):
        returned = collect_from_config(cfg, model, output)
    statistics = LogitStatistics.load(output)
    assert_equal(statistics, returned)
    assert statistics.class_names == tuple(CLASS_NAMES)
    assert statistics.datasets == (TRAIN,)
    assert (statistics.population, statistics.estimator) == ("sampled", "exact")
    assert statistics.augmented and statistics.momentum is None
    assert statistics.provenance["weights"] == "model_final.pth"
    assert statistics.provenance["torch"] == torch.__version__
    fingerprints = [predictor_fingerprint(each) for each in find_box_predictors(model)]
    statistics.check(num_classes=NUM_CLASSES, num_stages=3, fingerprints=fingerprints)
    assert "images/s on 1 processes" in caplog.text


def test_the_file_records_the_repetition_of_images(model: nn.Module, tmp_path: Path) -> None:
    """Passes with other thresholds are of other populations: they must not merge."""
    found = []
    for threshold in (0.5, 0.6):
        cfg = few(1, DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
        cfg.DATALOADER.REPEAT_THRESHOLD = threshold
        found.append(collect_from_config(cfg, model, tmp_path / "x.safetensors"))
    assert [each.sampler for each in found] == [
        "RepeatFactorTrainingSampler(0.5)", "RepeatFactorTrainingSampler(0.6)",
    ]  # fmt: skip
    with pytest.raises(StatisticsError, match="different sampler"):
        found[0].merge(found[1])
    unknown = few(1, DATALOADER__SAMPLER_TRAIN="MySampler")
    assert collect_from_config(unknown, model, tmp_path / "y").sampler == "TrainingSampler"


def test_the_file_records_mixed_precision_and_the_seed(model: nn.Module) -> None:
    loader = build_statistics_loader(few(1))
    plain = collect_statistics(model, loader, seed=5)
    assert (plain.autocast, plain.provenance["seed"]) == ("", 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = collect_statistics(model, loader)
    assert mixed.autocast == "bfloat16"
    with pytest.raises(StatisticsError, match="different autocast"):
        plain.merge(mixed)


def test_numbers_stand_for_class_names_that_are_not_given(model: nn.Module) -> None:
    statistics = collect_statistics(model, build_statistics_loader(few(1)))
    assert statistics.class_names == ("0", "1", "2", "3")


def test_repeated_passes_give_the_same_numbers(model: nn.Module, tmp_path: Path) -> None:
    cfg = few(2, MODEL__LOGN__COLLECT__AUGMENT=True)
    first, second = (collect_from_config(cfg, model, tmp_path / name) for name in "ab")
    assert_equal(first, second)


def test_a_text_is_no_list_of_class_names() -> None:
    with pytest.raises(ValueError, match="class_names is the text 'boltnuts'"):
        collect_statistics(small_model(small_config()), [], class_names="boltnuts")
