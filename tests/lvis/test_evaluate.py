"""LVIS AP against lvis-api and pycocotools, and each of its rules by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logn_d2.analysis.calibration_quality import calibration_quality
from logn_d2.analysis.errors import error_analysis
from logn_d2.analysis.outcomes import label_detections
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.evaluate import LvisResult, evaluate_lvis
from logn_d2.lvis.fixed_ap import evaluate_fixed_ap
from logn_d2.lvis.ground_truth import LvisGroundTruth

from .lvis_reference import (
    in_order,
    one_image,
    random_detections,
    random_lvis,
    run_lvis_api,
    write_json,
)


def _assert_same(result: LvisResult, reference: dict[str, Any]) -> None:
    """Every number of lvis-api to 1e-9: of each class, threshold and area, and the means."""
    precision = np.moveaxis(reference["precision"].mean(axis=1), -1, 0)
    recall = np.moveaxis(reference["recall"], -1, 0)
    np.testing.assert_allclose(np.nan_to_num(result.precision, nan=-1), precision, atol=1e-9)
    np.testing.assert_allclose(np.nan_to_num(result.recall, nan=-1), recall, atol=1e-9)
    for name, value in reference["metrics"].items():
        assert np.nan_to_num(result.metrics[name], nan=-1) == pytest.approx(value, abs=1e-9), name


def _compare(
    tmp_path: Path, dataset: dict[str, Any], results: list[dict[str, Any]], **options: Any
) -> LvisResult:
    """Evaluate boxes (and masks if there are any) by both, and return the last result."""
    json_file = write_json(tmp_path / "truth.json", dataset)
    truth = LvisGroundTruth.from_json(json_file)
    detections = Detections.from_json_list(results, truth.category_ids)
    max_dets = options.get("max_dets", 300)
    for iou_type in ("bbox", "segm") if "segmentation" in results[0] else ("bbox",):
        result = evaluate_lvis(truth, detections, iou_type, **options)
        _assert_same(result, run_lvis_api(json_file, results, iou_type, max_dets))
    return result


def _detections(*entries: tuple[int, float, list[float]], image_id: int = 7) -> Detections:
    category, score, box = zip(*entries, strict=True)
    return Detections([image_id] * len(entries), category, score, box)


def _ap(truth: LvisGroundTruth, detections: Detections, **options: Any) -> float:
    return evaluate_lvis(truth, detections, **options).metrics["AP"]


HIT, MISS = [0, 0, 40, 40], [45, 45, 40, 40]


# Against lvis-api and pycocotools


@pytest.mark.parametrize("score_digits", [1, 6])
@pytest.mark.parametrize("seed", range(10))
def test_equals_lvis_api(tmp_path: Path, seed: int, score_digits: int) -> None:
    rng = np.random.default_rng([seed, score_digits])
    dataset = random_lvis(rng)
    _compare(tmp_path, dataset, random_detections(rng, dataset, score_digits=score_digits))


@pytest.mark.parametrize("seed", range(4))
def test_equals_lvis_api_beyond_the_limit_of_detections(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    dataset = random_lvis(rng, num_images=6)
    results = random_detections(rng, dataset, per_image=60, score_digits=1)
    limited = _compare(tmp_path, dataset, results, max_dets=15)
    unlimited = _compare(tmp_path, dataset, results, max_dets=-1)
    assert not np.array_equal(limited.precision, unlimited.precision, equal_nan=True)


def test_equals_lvis_api_with_more_than_300_detections_an_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    dataset = random_lvis(rng, num_images=3, with_masks=False)
    results = random_detections(rng, dataset, per_image=900, score_digits=2, with_masks=False)
    assert max(np.unique([r["image_id"] for r in results], return_counts=True)[1]) > 300
    _compare(tmp_path, dataset, results)


def test_equals_lvis_api_with_one_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    dataset = random_lvis(rng, num_classes=2)
    dataset["categories"] = dataset["categories"][:1]
    known = dataset["categories"][0]["id"]
    results = random_detections(rng, dataset)
    _compare(tmp_path, dataset, [r for r in results if r["category_id"] == known])


def test_equals_lvis_api_on_a_crowd_of_one_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    dataset = random_lvis(rng, num_images=2, num_classes=2, max_objects=60)
    _compare(tmp_path, dataset, random_detections(rng, dataset, per_image=250))


def test_equals_lvis_api_when_pairs_are_looked_at_in_small_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logn_d2.lvis.matching._CHUNK", 3)
    rng = np.random.default_rng(8)
    dataset = random_lvis(rng)
    _compare(tmp_path, dataset, random_detections(rng, dataset))


@pytest.mark.parametrize("seed", range(4))
def test_equals_hotcoco(tmp_path: Path, seed: int) -> None:
    """The federated rule by a third program, which shares no code with lvis-api."""
    from hotcoco import COCO, COCOeval

    rng = np.random.default_rng([seed, 3])
    dataset = random_lvis(rng, with_masks=False)
    for annotation in dataset["annotations"]:  # without area, lvis-api leaves it out
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    results = random_detections(rng, dataset, score_digits=6, with_masks=False)
    json_file = write_json(tmp_path / "truth.json", dataset)
    truth = LvisGroundTruth.from_json(json_file)
    ours = evaluate_lvis(truth, Detections.from_json_list(results, truth.category_ids))

    objects = COCO(str(json_file))
    columns = [[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in results]
    evaluation = COCOeval(objects, objects.load_res(np.array(columns)), "bbox", lvis_style=True)
    evaluation.run()
    # (T, R, K, A, 1) and (T, K, A, 1)
    found = {name: np.asarray(evaluation.eval[name])[..., 0] for name in ("precision", "recall")}
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    found["metrics"] = {name: evaluation.get_results()[name] for name in names}
    _assert_same(ours, found)


def test_the_lvis_engine_is_lvis_api(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    dataset = random_lvis(rng)
    results = random_detections(rng, dataset)
    before = copy.deepcopy(results)
    _compare(tmp_path, dataset, results, engine="lvis", max_dets=20)
    assert results == before
    assert "float" not in vars(np)


def test_float32_boxes_equal_lvis_api_on_the_json_made_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    dataset = random_lvis(rng, with_masks=False)
    json_file = write_json(tmp_path / "truth.json", dataset)
    truth = LvisGroundTruth.from_json(json_file)
    results = random_detections(rng, dataset, with_masks=False)
    detections = Detections.from_json_list(results, truth.category_ids)
    box = (detections.box + rng.random(detections.box.shape)).astype(np.float32)
    detections = Detections(detections.image_id, detections.category, detections.score, box)
    reference = run_lvis_api(json_file, detections.to_json_list(truth.category_ids), "bbox")
    _assert_same(evaluate_lvis(truth, detections), reference)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_form_with_crowd_regions_equals_pycocotools(
    tmp_path: Path, iou_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(11)
    dataset = random_lvis(rng)
    results = random_detections(rng, dataset)
    # COCO's own evaluation does not drop what has no area.
    dataset["annotations"] = [a for a in dataset["annotations"] if a["area"] > 0]
    results = [r for r in in_order(results) if r["bbox"][2] * r["bbox"][3] > 0]
    for image in dataset["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = int(rng.random() < 0.2)
    truth = LvisGroundTruth.from_json(write_json(tmp_path / "coco.json", dataset))
    detections = Detections.from_json_list(results, truth.category_ids)
    for result in results:
        result.pop("bbox" if iou_type == "segm" else "segmentation")
    coco = COCO(str(tmp_path / "coco.json"))
    evaluation = COCOeval(coco, coco.loadRes(results), iou_type)
    evaluation.params.maxDets = [300]
    evaluation.evaluate()
    evaluation.accumulate()
    capsys.readouterr()
    ours = evaluate_lvis(truth, detections, iou_type)
    precision = np.moveaxis(evaluation.eval["precision"][..., 0].mean(axis=1), -1, 0)
    np.testing.assert_allclose(np.nan_to_num(ours.precision, nan=-1), precision, atol=1e-9)
    assert np.isnan([ours.metrics[f"AP{group}"] for group in "rcf"]).all() == (truth.groups is None)


# Each rule by itself


def test_the_limit_counts_classes_that_nobody_asked_for() -> None:
    truth = LvisGroundTruth.from_dict(one_image())
    strays = [(2, 0.9 - 1e-3 * i, MISS) for i in range(2)]
    detections = _detections(*strays, (0, 0.1, HIT))
    assert _ap(truth, detections, max_dets=3) == pytest.approx(1)
    assert _ap(truth, detections, max_dets=2) == 0


def test_a_class_of_which_nothing_is_known_does_no_harm() -> None:
    dataset = one_image()
    dataset["images"].append({**dataset["images"][0], "id": 8, "neg_category_ids": []})
    truth = LvisGroundTruth.from_dict(dataset)
    hit = _detections((0, 0.5, HIT))
    stray = _detections((0, 0.9, HIT), image_id=8)
    assert _ap(truth, Detections.concatenate([hit, stray])) == pytest.approx(1)
    dataset["images"][1]["neg_category_ids"] = [1]
    truth = LvisGroundTruth.from_dict(dataset)
    assert _ap(truth, Detections.concatenate([hit, stray])) == pytest.approx(0.5)


def test_an_unmatched_detection_of_a_not_exhaustive_class_does_no_harm() -> None:
    detections = _detections((0, 0.9, MISS), (0, 0.5, HIT))
    truth = LvisGroundTruth.from_dict(one_image())
    assert _ap(truth, detections) == pytest.approx(0.5)
    truth = LvisGroundTruth.from_dict(one_image(not_exhaustive_category_ids=[1]))
    assert _ap(truth, detections) == pytest.approx(1)


@pytest.mark.parametrize(("other", "ap"), [(8, 1), (6, 0.5)])
def test_of_equal_scores_in_two_images_the_lower_image_id_is_better(other: int, ap: float) -> None:
    dataset = one_image()
    dataset["images"].append({**dataset["images"][0], "id": other, "neg_category_ids": [1]})
    truth = LvisGroundTruth.from_dict(dataset)
    stray, hit = _detections((0, 0.5, HIT), image_id=other), _detections((0, 0.5, HIT))
    for parts in ([stray, hit], [hit, stray]):
        result = evaluate_lvis(truth, Detections.concatenate(parts))
        assert result.metrics["AP"] == pytest.approx(ap)


def test_of_equal_overlaps_the_later_object_is_taken() -> None:
    dataset = one_image()
    later = {**dataset["annotations"][0], "id": 2, "bbox": [20, 0, 40, 40]}
    dataset["annotations"].append(later)
    truth = LvisGroundTruth.from_dict(dataset)
    # The first detection overlaps both equally; the second finds the first object only.
    detections = _detections((0, 0.9, [10, 0, 40, 40]), (0, 0.8, HIT))
    assert evaluate_lvis(truth, detections).metrics["AP50"] == pytest.approx(1)
    dataset["annotations"].reverse()
    truth = LvisGroundTruth.from_dict(dataset)
    assert evaluate_lvis(truth, detections).metrics["AP50"] == pytest.approx(51 / 101)


def test_detections_and_objects_outside_an_area_range_do_no_harm_in_it() -> None:
    truth = LvisGroundTruth.from_dict(one_image())  # its object is of medium size
    detections = _detections((0, 0.9, [60, 60, 10, 10]), (0, 0.5, HIT))
    metrics = evaluate_lvis(truth, detections).metrics
    assert (metrics["AP"], metrics["APm"]) == pytest.approx((0.5, 1))
    assert np.isnan(metrics["APs"]) and np.isnan(metrics["APl"])


def test_an_object_with_annotation_id_0_can_be_found() -> None:
    dataset = one_image()
    dataset["annotations"][0]["id"] = 0
    truth = LvisGroundTruth.from_dict(dataset)
    assert _ap(truth, _detections((0, 0.9, HIT))) == pytest.approx(1)


def test_classes_without_objects_do_not_count() -> None:
    result = evaluate_lvis(LvisGroundTruth.from_dict(one_image()), _detections((1, 0.9, HIT)))
    assert result.num_gt.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(result.per_class_ap, [0, np.nan, np.nan])
    np.testing.assert_array_equal(result.per_class_ap50, [0, np.nan, np.nan])
    assert result.metrics["AP"] == 0


@pytest.mark.parametrize("engine", ["fast", "lvis"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_at_all_is_zero(tmp_path: Path, iou_type: str, engine: str) -> None:
    dataset = random_lvis(np.random.default_rng(12))
    truth = LvisGroundTruth.from_json(write_json(tmp_path / "truth.json", dataset))
    result = evaluate_lvis(truth, Detections.empty(), iou_type, engine=engine)
    values = np.array(list(result.metrics.values()))
    assert np.isin(values[~np.isnan(values)], 0).all() and result.metrics["AP"] == 0
    np.testing.assert_array_equal(np.isnan(result.per_class_ap), result.num_gt == 0)


def test_no_objects_at_all_is_nan() -> None:
    truth = LvisGroundTruth.from_dict({**one_image(), "annotations": []})
    result = evaluate_lvis(truth, _detections((0, 0.9, HIT), (1, 0.9, HIT)))
    assert np.isnan(list(result.metrics.values())).all()


@pytest.mark.parametrize("kind", [str, lambda image_id: 2**40 + image_id])
def test_image_ids_may_be_strings_or_large(kind: Any) -> None:
    rng = np.random.default_rng(18)
    dataset = random_lvis(rng)
    results = random_detections(rng, dataset, score_digits=9)
    truth = LvisGroundTruth.from_dict(dataset)
    detections = Detections.from_json_list(results, truth.category_ids)
    expected = evaluate_lvis(truth, detections, "segm", max_dets=20)
    for image in dataset["images"]:
        image["id"] = kind(image["id"])
    for entry in [*dataset["annotations"], *results]:
        entry["image_id"] = kind(entry["image_id"])
    truth = LvisGroundTruth.from_dict(dataset)
    renamed = Detections.from_json_list(results, truth.category_ids)
    result = evaluate_lvis(truth, renamed, "segm", max_dets=20)
    np.testing.assert_allclose(result.precision, expected.precision, atol=1e-12)
    with pytest.raises(ValueError, match="image id"):
        evaluate_lvis(truth, detections)


def test_inputs_are_not_changed_and_a_repeat_gives_the_same() -> None:
    rng = np.random.default_rng(14)
    dataset = random_lvis(rng)
    truth = LvisGroundTruth.from_dict(dataset)
    detections = Detections.from_json_list(random_detections(rng, dataset), truth.category_ids)
    before = copy.deepcopy((detections.to_arrays(), truth.area, truth.listed))
    first, second = (evaluate_lvis(truth, detections, "segm").precision for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_equal((detections.to_arrays(), truth.area, truth.listed), before)


# Groups and tables


def test_groups_come_from_frequency_then_image_count_then_the_caller() -> None:
    dataset = one_image()
    hit = _detections((0, 0.9, HIT))
    assert evaluate_lvis(LvisGroundTruth.from_dict(dataset), hit).metrics["APr"] == pytest.approx(1)
    for category, count in zip(dataset["categories"], (100, 10, 101), strict=True):
        del category["frequency"]
        category["image_count"] = count
    truth = LvisGroundTruth.from_dict(dataset)
    assert truth.groups.tolist() == ["c", "r", "f"]
    assert evaluate_lvis(truth, hit).metrics["APc"] == pytest.approx(1)
    result = evaluate_lvis(truth, hit, frequency_groups=["few", "few", "many"])
    assert result.metrics["APfew"] == pytest.approx(1) and np.isnan(result.metrics["APmany"])
    assert "APr" not in result.metrics


def test_groups_may_be_any_classes_and_have_numbers_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(19)
    dataset = random_lvis(rng)
    truth = LvisGroundTruth.from_dict(dataset)
    detections = Detections.from_json_list(random_detections(rng, dataset), truth.category_ids)
    wanted = {"odd": [truth.class_names[1], int(truth.category_ids[3])], "none": []}
    result = evaluate_lvis(truth, detections, class_groups=wanted)
    assert list(result.members) == ["r", "c", "f", "odd", "none"]
    ap = result.per_class_ap
    assert result.metrics["APodd"] == pytest.approx(np.nanmean(ap[[1, 3]]))
    assert np.isnan(result.metrics["APnone"]) and "APodd" in result.as_dict()
    plain = evaluate_lvis(truth, detections)
    assert plain.metrics == {k: v for k, v in result.metrics.items() if k in plain.metrics}
    # The numbers of a group are those of a data set that has no other class.
    alone = evaluate_lvis(truth, detections, class_groups={"all": truth.class_names}).group_metrics
    areas = [name for name in plain.metrics if not name.startswith(("APr", "APc", "APf"))]
    np.testing.assert_equal(
        {k: alone["all"][k] for k in areas}, {k: plain.metrics[k] for k in areas}
    )
    for area, name in enumerate(("", "s", "m", "l")):
        expected = np.nanmean(result.precision[area][:, [1, 3]])
        assert result.group_metrics["odd"][f"AP{name}"] == pytest.approx(expected, nan_ok=True)
    assert "odd" in result.group_table()
    result.to_csv(tmp_path / "classes.csv")
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert lines[0] == "class,group,num_gt,AP,AP50" and len(lines) == 8


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"odd": ["unicorn", 99]}, r"'odd' has 2 of 2 classes .* the first is 'unicorn'"),
        ({"odd": "class 1"}, "expected a list"),
        ({"r": [1]}, "APr is the name of another metric"),
        ({"50": [1]}, "AP50 is the name of another metric"),
    ],
)
def test_impossible_groups_are_refused(groups: dict[str, Any], message: str) -> None:
    truth = LvisGroundTruth.from_dict(one_image())
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(truth, Detections.empty(), class_groups=groups)


def test_a_name_of_several_classes_is_no_group() -> None:
    dataset = one_image()
    dataset["categories"][1]["name"] = "class 1"
    truth = LvisGroundTruth.from_dict(dataset)
    with pytest.raises(ValueError, match="'class 1', the name of several classes"):
        evaluate_lvis(truth, Detections.empty(), class_groups={"odd": ["class 1"]})


def test_groups_of_another_vocabulary_or_with_a_name_in_use_are_refused() -> None:
    truth = LvisGroundTruth.from_dict(one_image())
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        evaluate_lvis(truth, Detections.empty(), frequency_groups=["r", "c"])
    with pytest.raises(ValueError, match="named 's'"):
        evaluate_lvis(truth, Detections.empty(), frequency_groups=["s", "c", "c"])


def test_reports_are_in_percent_with_detectron2s_names() -> None:
    result = evaluate_lvis(LvisGroundTruth.from_dict(one_image()), _detections((0, 0.9, HIT)))
    names = "AP AP50 AP75 APs APm APl APr APc APf AR".split()
    assert list(result.as_dict()) == names
    assert result.as_dict()["AP"] == pytest.approx(100)
    rows = result.per_class_rows()
    assert [row["class"] for row in rows] == ["class 1", "class 2", "class 3"]
    assert list(rows[0]) == ["class", "group", "num_gt", "AP", "AP50"]
    assert list(rows[0].values()) == ["class 1", "r", 1, pytest.approx(100), pytest.approx(100)]
    assert "class 1" in result.per_class_table() and "class 2" not in result.per_class_table()


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [7, 9]}, r"1 of 2 .* wrong image id: .*number 1\) has 9, .*1 images"),
        ({"category": [3, 0]}, r"1 of 2 .* wrong class index: .*has 3, expected 0 to 2"),
        ({"category": [0, -1]}, r"wrong class index: .*has -1"),
        ({"score": [np.nan, np.nan]}, r"2 of 2 .* wrong score: .*has nan"),
        ({"box": [[0, 0, 4, 4], [5, 5, 4, -1]]}, r"wrong box: .*\[5.0, 5.0, 4.0, -1.0\].*corners"),
        ({"box": [[0, 0, np.inf, 4], [5, 5, 4, 1]]}, r"wrong box: .*inf"),
    ],
)
def test_impossible_detections_are_refused(change: dict[str, Any], message: str) -> None:
    columns = {"image_id": [7, 7], "category": [0, 0], "score": [1, 1], "box": [HIT, HIT]}
    truth = LvisGroundTruth.from_dict(one_image())
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(truth, Detections(**{**columns, **change}))


def test_unknown_names_are_refused() -> None:
    truth = LvisGroundTruth.from_dict(one_image())
    with pytest.raises(ValueError, match="'keypoints'"):
        evaluate_lvis(truth, Detections.empty(), "keypoints")
    with pytest.raises(ValueError, match="'slow', expected 'fast' or 'lvis'"):
        evaluate_lvis(truth, Detections.empty(), engine="slow")
    with pytest.raises(ValueError, match="not from a file"):
        evaluate_lvis(truth, Detections.empty(), engine="lvis")


def test_masks_must_be_there_and_of_the_right_size() -> None:
    rng = np.random.default_rng(15)
    dataset = random_lvis(rng)
    truth = LvisGroundTruth.from_dict(dataset)
    results = random_detections(rng, dataset)
    detections = Detections.from_json_list(results, truth.category_ids)
    boxes = Detections.from_json_list(
        [{k: v for k, v in r.items() if k != "segmentation"} for r in results], truth.category_ids
    )
    with pytest.raises(ValueError, match=f"{len(boxes)} detections have no masks.*MASK_ON"):
        evaluate_lvis(truth, boxes, "segm")
    with pytest.raises(ValueError, match="read without masks.*bbox"):
        evaluate_lvis(LvisGroundTruth.from_dict(dataset, masks=False), detections, "segm")
    detections.masks.size[3] += 1
    with pytest.raises(ValueError, match=r"1 of .* wrong mask size .*number 3\)"):
        evaluate_lvis(truth, detections, "segm")


def test_a_json_with_boxes_only_is_evaluated_by_boxes(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    dataset = random_lvis(rng, with_masks=False)
    _compare(tmp_path, dataset, random_detections(rng, dataset, with_masks=False))
    assert LvisGroundTruth.from_dict(dataset).masks is None


def test_csv_of_no_class_is_a_header(tmp_path: Path) -> None:
    truth = LvisGroundTruth.from_dict({"images": [], "categories": [], "annotations": []})
    evaluate_lvis(truth, Detections.empty()).to_csv(tmp_path / "classes.csv")
    assert (tmp_path / "classes.csv").read_text().split() == ["class,group,num_gt,AP,AP50"]


def test_swapped_arguments_are_told() -> None:
    truth, found = LvisGroundTruth.from_dict(one_image()), Detections.empty()
    functions = (evaluate_lvis, evaluate_fixed_ap, label_detections)
    for function in (*functions, error_analysis, calibration_quality):
        with pytest.raises(ValueError, match="swapped"):
            function(found, truth)


@pytest.mark.parametrize(("form", "expected"), [("COCO", 1.0), ("LVIS", 0.752475)])
def test_only_lvis_form_limits_the_detections_of_an_image(form: str, expected: float) -> None:
    """400 objects, all found: LVIS's rule looks at 300, COCO's has no limit over all classes."""
    boxes = [[40 * x, 40 * y, 30, 30] for x in range(20) for y in range(20)]
    lists = {"neg_category_ids": []} if form == "LVIS" else {}
    truth = LvisGroundTruth.from_dict(
        {
            "images": [{"id": 7, **lists}],
            "categories": [{"id": 1, "name": "can"}],
            "annotations": [
                {"id": i, "image_id": 7, "category_id": 1, "bbox": box, "area": 900}
                for i, box in enumerate(boxes)
            ],
        }
    )
    found = Detections([7] * 400, [0] * 400, np.linspace(0.9, 0.5, 400), boxes)
    assert evaluate_lvis(truth, found).metrics["AP"] == pytest.approx(expected, abs=1e-5)
    assert evaluate_lvis(truth, found, max_dets=-1).metrics["AP"] == pytest.approx(1.0)
