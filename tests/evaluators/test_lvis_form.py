"""The Detectron2 evaluator: processes, files, class numbering and mistakes."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from logn_d2.evaluators.lvis_form import LVISFormEvaluator
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.evaluate import evaluate_lvis
from logn_d2.lvis.ground_truth import LvisGroundTruth

from ..lvis.lvis_reference import random_lvis, write_json

NAME = "lvis_evaluator_test"
METRICS = "AP AP50 AP75 APs APm APl APr APc APf AR".split()


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A registered random data set; its content."""
    content = random_lvis(np.random.default_rng(0))
    json_file = write_json(tmp_path / "truth.json", content)
    ids = sorted(category["id"] for category in content["categories"])
    MetadataCatalog.get(NAME).set(
        json_file=str(json_file),
        thing_dataset_id_to_contiguous_id={category: k for k, category in enumerate(ids)},
    )
    yield content
    MetadataCatalog.pop(NAME)


def _predict(content: dict[str, Any], with_masks: bool = True) -> list[tuple[dict, dict]]:
    """(input, output) of a model that finds most objects, of each image."""
    rng = np.random.default_rng(1)
    ids = sorted(category["id"] for category in content["categories"])
    pairs = []
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        instances = Instances((image["height"], image["width"]))
        box = torch.tensor([a["bbox"] for a in mine], dtype=torch.float32).reshape(-1, 4)
        box[:, 2:] += box[:, :2]
        instances.pred_boxes = Boxes(box + torch.from_numpy(rng.normal(0, 2, box.shape)).float())
        instances.scores = torch.from_numpy(rng.random(len(mine)))
        classes = [ids.index(a["category_id"]) for a in mine]
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        if with_masks:
            bitmasks = torch.zeros(len(mine), image["height"], image["width"], dtype=torch.bool)
            for bitmask, corners in zip(bitmasks, box.round().int().tolist(), strict=True):
                bitmask[corners[1] : corners[3], corners[0] : corners[2]] = True
            instances.pred_masks = bitmasks
        pairs.append(({"image_id": image["id"]}, {"instances": instances}))
    return pairs


def _run(evaluator: LVISFormEvaluator, pairs: list[tuple[dict, dict]]) -> dict[str, Any]:
    evaluator.reset()
    for start in range(0, len(pairs), 2):
        inputs, outputs = zip(*pairs[start : start + 2], strict=True)
        evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def _as_from_two_processes(
    monkeypatch: pytest.MonkeyPatch, first: LVISFormEvaluator, second: LVISFormEvaluator
) -> None:
    """Let the first evaluator's process receive the second's as well, as pickled."""
    import pickle

    sent: list[bytes] = []
    gather = "logn_d2.evaluators.lvis_form.comm.gather"
    with monkeypatch.context() as patch:
        patch.setattr("logn_d2.evaluators.lvis_form.comm.is_main_process", lambda: False)
        patch.setattr(gather, lambda data, dst: sent.append(pickle.dumps(data)) or [])
        assert second.evaluate() == {}
    monkeypatch.setattr(gather, lambda data, dst: [data, pickle.loads(sent[0])])


def _assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for task in one:
        np.testing.assert_equal(dict(one[task]), dict(other[task]))


def test_results_are_those_of_evaluate_lvis_in_percent(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    results = _run(LVISFormEvaluator(NAME), pairs)
    truth = LvisGroundTruth.from_dict(dataset)
    detections = Detections.from_instances(
        [output["instances"] for _, output in pairs], [image["image_id"] for image, _ in pairs]
    )
    assert list(results) == ["bbox", "segm"]
    for task in results:
        assert list(results[task]) == METRICS
        np.testing.assert_equal(
            dict(results[task]), dict(evaluate_lvis(truth, detections, task).as_dict())
        )
        assert 10 < results[task]["AP"] < 100


def test_results_equal_detectron2s_own_evaluator(
    dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectron2.evaluation import LVISEvaluator

    monkeypatch.setattr(np, "float", float, raising=False)
    pairs = _predict(dataset)
    ours, theirs = (_run(kind(NAME), pairs) for kind in (LVISFormEvaluator, LVISEvaluator))
    for task in ("bbox", "segm"):
        for name, value in theirs[task].items():
            assert np.nan_to_num(ours[task][name], nan=-100) == pytest.approx(value, abs=1e-7)


def test_one_and_two_processes_agree(
    dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = _predict(dataset)
    expected = _run(LVISFormEvaluator(NAME), pairs)
    first, second = LVISFormEvaluator(NAME), LVISFormEvaluator(NAME)
    for image, output in pairs[:3]:
        first.process([image], [output])
    # Uneven shares, and one image that a padding sampler gave to both.
    for image, output in pairs[2:]:
        second.process([image], [output])
    _as_from_two_processes(monkeypatch, first, second)
    _assert_equal(first.evaluate(), expected)


def test_a_process_without_images_agrees(
    dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = _predict(dataset)
    expected = _run(LVISFormEvaluator(NAME), pairs)
    first, second = LVISFormEvaluator(NAME), LVISFormEvaluator(NAME)
    _run(second, pairs)
    _as_from_two_processes(monkeypatch, first, second)
    _assert_equal(first.evaluate(), expected)


def test_an_image_processed_twice_counts_once(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    expected = _run(LVISFormEvaluator(NAME, distributed=False), pairs)
    _assert_equal(_run(LVISFormEvaluator(NAME, distributed=False), pairs + pairs[:5]), expected)


def test_reset_forgets(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    evaluator = LVISFormEvaluator(NAME)
    expected = _run(evaluator, pairs)
    _assert_equal(_run(evaluator, pairs), expected)


def test_both_engines_agree(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    ours, theirs = (_run(LVISFormEvaluator(NAME, engine=e), pairs) for e in ("fast", "lvis"))
    for task in ours:
        np.testing.assert_allclose(
            list(ours[task].values()), list(theirs[task].values()), atol=1e-7, rtol=0
        )


def test_files_hold_detections_and_classes(dataset: dict[str, Any], tmp_path: Path) -> None:
    pairs = _predict(dataset)
    out = tmp_path / "inference"
    results = _run(LVISFormEvaluator(NAME, output_dir=str(out), write_json=True), pairs)
    assert sorted(path.name for path in out.iterdir()) == [
        "detections.npz",
        "lvis_instances_results.json",
        "per_class_bbox.csv",
        "per_class_segm.csv",
    ]
    truth = LvisGroundTruth.from_dict(dataset)
    saved = Detections.load(out / "detections.npz")
    assert evaluate_lvis(truth, saved, "segm").as_dict()["AP"] == results["segm"]["AP"]
    written = json.loads((out / "lvis_instances_results.json").read_text())
    assert written == saved.to_json_list(truth.category_ids)
    with open(out / "per_class_bbox.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(truth.class_names)
    assert np.nanmean([float(row["AP"]) for row in rows]) == pytest.approx(results["bbox"]["AP"])


def test_detections_are_saved_even_if_the_evaluation_fails(
    dataset: dict[str, Any], tmp_path: Path
) -> None:
    pairs = _predict(dataset)
    full = next(output for _, output in pairs if len(output["instances"]))
    full["instances"].scores[0] = float("nan")
    with pytest.raises(ValueError, match="wrong score"):
        _run(LVISFormEvaluator(NAME, output_dir=str(tmp_path / "out")), pairs)
    assert len(Detections.load(tmp_path / "out" / "detections.npz"))


def test_a_model_without_masks_is_evaluated_by_boxes(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset, with_masks=False)
    assert list(_run(LVISFormEvaluator(NAME), pairs)) == ["bbox"]
    with pytest.raises(ValueError, match="have no masks"):
        _run(LVISFormEvaluator(NAME, tasks=("bbox", "segm")), pairs)


def test_only_the_tasks_asked_for_are_evaluated(dataset: dict[str, Any]) -> None:
    assert list(_run(LVISFormEvaluator(NAME, tasks=("segm",)), _predict(dataset))) == ["segm"]
    for wrong in ("bbox", ("boxes",)):
        with pytest.raises(ValueError, match="tasks is .* expected"):
            LVISFormEvaluator(NAME, tasks=wrong)


def test_annotations_without_masks_are_evaluated_by_boxes(dataset: dict[str, Any]) -> None:
    for annotation in dataset["annotations"]:
        del annotation["segmentation"]
    write_json(Path(MetadataCatalog.get(NAME).json_file), dataset)
    assert list(_run(LVISFormEvaluator(NAME), _predict(dataset))) == ["bbox"]


def test_no_predictions_are_zero_with_a_warning(
    dataset: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    results = LVISFormEvaluator(NAME, tasks=("bbox", "segm")).evaluate()
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0
    assert "12 of 12 images were not processed" in caplog.text
    assert "no detections at all" in caplog.text


def test_a_test_set_without_annotations_only_writes_files(
    dataset: dict[str, Any], tmp_path: Path
) -> None:
    pairs = _predict(dataset)
    write_json(Path(MetadataCatalog.get(NAME).json_file), {**dataset, "annotations": []})
    assert _run(LVISFormEvaluator(NAME, output_dir=str(tmp_path / "out")), pairs) == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.npz"]


def test_named_classes_are_results_of_their_own(
    dataset: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    truth = LvisGroundTruth.from_dict(dataset)
    names = (truth.class_names[truth.category[0]], "unicorn")
    results = _run(LVISFormEvaluator(NAME, class_names=names), _predict(dataset))
    assert list(results["bbox"]) == [*METRICS, f"AP-{names[0]}"]
    assert results["bbox"][f"AP-{names[0]}"] > 0
    assert "unicorn" in caplog.text


def test_results_are_logged_as_a_table(
    dataset: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _run(LVISFormEvaluator(NAME), _predict(dataset))
    assert "Evaluation results for bbox:" in caplog.text and "|  APr" in caplog.text


def test_class_numbers_of_the_metadata_are_obeyed(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    expected = _run(LVISFormEvaluator(NAME), pairs)
    metadata = MetadataCatalog.get(NAME)
    last = len(dataset["categories"]) - 1
    mapping = metadata.thing_dataset_id_to_contiguous_id
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).set(
        json_file=metadata.json_file,
        thing_dataset_id_to_contiguous_id={c: last - k for c, k in mapping.items()},
    )
    for _, output in pairs:
        output["instances"].pred_classes = last - output["instances"].pred_classes
    _assert_equal(_run(LVISFormEvaluator(NAME), pairs), expected)


def test_classes_are_numbered_by_category_id_without_a_mapping(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    expected = _run(LVISFormEvaluator(NAME), pairs)
    json_file = MetadataCatalog.get(NAME).json_file
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).json_file = json_file
    _assert_equal(_run(LVISFormEvaluator(NAME), pairs), expected)


def test_metadata_and_models_of_other_vocabularies_are_refused(dataset: dict[str, Any]) -> None:
    pairs = _predict(dataset)
    full = next(output for _, output in pairs if len(output["instances"]))
    full["instances"].pred_classes[0] = 1203
    with pytest.raises(ValueError, match=r"1 of .*has 1203, expected 0 to 6.*NUM_CLASSES"):
        _run(LVISFormEvaluator(NAME), pairs)
    metadata = MetadataCatalog.get(NAME)
    metadata.thing_dataset_id_to_contiguous_id[999] = 7
    with pytest.raises(ValueError, match=r"1 of the 8 category ids .*first is 999"):
        _run(LVISFormEvaluator(NAME), pairs)


def test_images_of_another_data_set_are_refused(dataset: dict[str, Any]) -> None:
    pairs = [({"image_id": 1000}, output) for _, output in _predict(dataset)]
    with pytest.raises(ValueError, match="wrong image id: .*has 1000, .*truth.json"):
        _run(LVISFormEvaluator(NAME), [pair for pair in pairs if len(pair[1]["instances"])])


def test_data_sets_without_a_json_are_refused(dataset: dict[str, Any]) -> None:
    Path(MetadataCatalog.get(NAME).json_file).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the file .*truth\.json"):
        LVISFormEvaluator(NAME)
    MetadataCatalog.pop(NAME)
    with pytest.raises(ValueError, match="has no json_file.*register_lvis_form"):
        LVISFormEvaluator(NAME)


def test_models_that_detect_nothing_by_design_are_refused(dataset: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\['sem_seg'\], expected \"instances\""):
        LVISFormEvaluator(NAME).process([{"image_id": 1}], [{"sem_seg": None}])
