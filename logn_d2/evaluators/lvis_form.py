"""LVIS AP as a Detectron2 evaluator, for any registered data set in LVIS or COCO format.

Detectron2's own `LVISEvaluator` needs lvis-api, keeps a dictionary per detection and reports no AP
per class. This one keeps arrays, reads the annotations in only one process, and writes every
class's AP to a file.

Shapes: K foreground classes. Results are in percent.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..errors import MissingFileError, UserError
from ..files import atomic_write
from ..lvis.detections import Detections, image_id_array
from ..lvis.evaluate import LvisResult, evaluate_lvis
from ..lvis.fixed_ap import evaluate_fixed_ap
from ..lvis.ground_truth import LvisGroundTruth
from .detection_store import BestOfEachClass, DetectionStore, MemoryStore, ShardStore

logger = logging.getLogger(__name__)


class LVISFormEvaluator(DatasetEvaluator):
    """Evaluate boxes and masks by the LVIS rule.

    With `output_dir` detections go to disk while inference runs, so memory does not grow with the
    data set; with `resume` a killed pass resumes, see `resumable_inference`. The evaluator then
    writes `detections.npz` (see `Detections.load`) before it evaluates, so that nothing is lost if
    the evaluation fails; `per_class_bbox.csv` and `per_class_segm.csv`; and, optionally,
    `lvis_instances_results.json`.

    Args:
        dataset_name (str): a registered data set whose metadata has `json_file`.
        tasks (Sequence[str] | None): "bbox", "segm" or both; by default "bbox", and "segm" if both
            the model and the annotations have masks.
        output_dir (str | None): output folder; None writes no files.
        distributed (bool): collect the detections of all processes; False evaluates those of this
            process, with files in a folder of its own in `output_dir` if there are several.
        max_dets (int | None): number of best detections kept per image; None for 300 in LVIS format
            and all in COCO format, whose rule has no such limit.
        max_dets_per_class (int | None): evaluate *fixed AP* instead of AP, with this number of
            detections per class over all images (10,000) and no limit per image. The results then
            include "AP-pooled" and so on. Only these detections are kept, in memory.
        engine (str): "fast", or "lvis" for lvis-api itself; see `evaluate_lvis`.
        class_names (Sequence[str] | None): classes whose AP is reported separately ("AP-name").
        frequency_groups (Sequence[str] | None): (K,) group of each class; by default from the json.
        class_groups (Mapping | None): further groups, see `evaluate_lvis`.
        write_json (bool): write `lvis_instances_results.json` for other tools, a large file.
        resume (bool): keep the files of an interrupted pass in `output_dir`.
        shard_size (int): images of a process per file; a killed pass loses at most these.

    Raises:
        ValueError: the metadata has no `json_file`, an unknown task, or `resume` without files;
            later, if a pass is resumed without `start`.
        FileNotFoundError: the json file does not exist.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        tasks: Sequence[str] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        distributed: bool = True,
        max_dets: int | None = None,
        max_dets_per_class: int | None = None,
        engine: str = "fast",
        class_names: Sequence[str] | None = None,
        frequency_groups: Sequence[str] | None = None,
        class_groups: Mapping[str, Sequence[str | int]] | None = None,
        write_json: bool = False,
        resume: bool = False,
        shard_size: int = 500,
    ) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file = _json_file(self._metadata, dataset_name)
        # None is resolved after inference: only then is it known whether the model has masks.
        self._tasks = None if tasks is None else _known_tasks(tasks)
        self._output_dir = None if output_dir is None else os.fspath(output_dir)
        if self._output_dir is not None and not distributed and comm.get_world_size() > 1:
            # Each process evaluates by itself: in one folder, they would overwrite each other's
            # files.
            name = f"process{comm.get_rank()}of{comm.get_world_size()}"
            self._output_dir = os.path.join(self._output_dir, name)
        self._distributed = distributed
        self._limit = max_dets_per_class
        self._groups = dict(frequency_groups=frequency_groups, class_groups=class_groups)
        self._options = dict(max_dets=max_dets, engine=engine)
        self._class_names = tuple(class_names or ())
        self._write_json = write_json
        if resume and (output_dir is None or max_dets_per_class is not None):
            raise UserError(
                "resume=True needs output_dir, where an interrupted pass has left its detections, "
                "and excludes max_dets_per_class, which keeps them in memory."
            )
        # The digest comes with `start`: the evaluator does not know weights and images.
        self._shards = dict(resume=resume, shard_size=shard_size, digest="")
        self._store: DetectionStore | None = None

    def reset(self) -> None:
        """Discard all detections, or resume the interrupted pass; called before a pass."""
        self._store = self._new_store()

    def start(self, digest: str, resume: bool | None = None) -> int:
        """Prepare for a pass that may resume an interrupted one.

        Args:
            digest (str): digest of everything that determines the detections; another digest starts
                a new pass.
            resume (bool | None): overrides the evaluator's own setting.

        Returns:
            int: number of batches that this process has already done, for the loader to skip.
        """
        self._shards["digest"] = digest
        if resume is not None:
            self._shards["resume"] = resume
        self.reset()
        return self._store.num_batches

    def _new_store(self) -> DetectionStore:
        if self._limit is not None:
            return BestOfEachClass(self._limit)
        if self._output_dir is None:
            return MemoryStore()
        if not self._shards["digest"]:
            if self._shards["resume"]:
                raise UserError(
                    "resume=True needs a digest to identify an interrupted pass: call "
                    "resumable_inference(model, loader, evaluator), or evaluator.start(digest) "
                    "with a digest of weights, images and settings."
                )
            # Without resuming, nothing has to tell this pass from others.
            self._shards["digest"] = "pass"
        return ShardStore(os.path.join(self._output_dir, "shards"), **self._shards)

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the detections in some images; called after each batch.

        Args:
            inputs (Sequence[Mapping]): with "image_id".
            outputs (Sequence[Mapping]): with "instances", at the original size of the image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                raise UserError(
                    f"The model's output for image {image['image_id']} has {sorted(output)}, "
                    'expected "instances". LVISFormEvaluator evaluates instance detection; is '
                    "the model a detector, and in eval mode?"
                )
        image_ids = [image["image_id"] for image in inputs]
        instances = [output["instances"] for output in outputs]
        self._opened().add(image_ids, Detections.from_instances(instances, image_ids))

    def _opened(self) -> DetectionStore:
        """The store, created on first use, so that an evaluator also works without `reset`."""
        if self._store is None:
            self.reset()
        return self._store

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Evaluate the processed images; called after the pass, in all processes.

        Returns:
            OrderedDict: "bbox" and "segm", each with AP, AP50, AP75, APs, APm, APl, APr, APc, APf
            and AR in percent (NaN without objects). Empty in all processes except the first, and
            for a data set without annotations.
        """
        gathered = self._gather()
        if gathered is None:
            return OrderedDict()
        detections, seen = gathered
        ground_truth = LvisGroundTruth.from_json(
            self._json_file, masks=self._tasks is None or "segm" in self._tasks
        )
        # Before anything is written, so that files on disk are in the json's numbering.
        detections = _to_json_classes(detections, self._metadata, ground_truth)
        self._write_detections(detections, ground_truth)
        results: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        if len(ground_truth):
            _warn_if_incomplete(detections, seen, ground_truth)
            # Boxes first: if masks can't be evaluated, their figures are in the log already.
            for task in self._tasks or _possible_tasks(detections, ground_truth):
                results[task] = self._evaluate_task(task, detections, ground_truth)
        else:
            logger.info("%s has no annotations: nothing to evaluate.", self._json_file)
        # The last step: until the results exist, the shards are what a repeated command starts
        # from.
        self._opened().clear()
        return results

    def _evaluate_task(
        self, task: str, detections: Detections, ground_truth: LvisGroundTruth
    ) -> OrderedDict[str, float]:
        """Metrics of boxes or masks in percent, including those of chosen classes."""
        if self._limit is None:
            result = evaluate_lvis(ground_truth, detections, task, **self._options, **self._groups)
            metrics = result.as_dict()
        else:
            fixed = evaluate_fixed_ap(
                ground_truth, detections, task, max_dets_per_class=self._limit, **self._groups
            )
            result, metrics = fixed.result, fixed.as_dict()
        logger.info("Evaluation results for %s:\n%s", task, create_small_table(metrics))
        metrics.update(self._chosen_classes(result))
        if self._output_dir is not None:
            result.to_csv(os.path.join(self._output_dir, f"per_class_{task}.csv"))
        return metrics

    def _gather(self) -> tuple[Detections, np.ndarray] | None:
        """Detections and image ids of all processes; None except in the first."""
        detections, seen = self._opened().load()
        # Arrays, because pickling one object for each detection would take most of the time.
        mine = (detections.to_arrays(), seen)
        # Without collective calls, because the other processes may evaluate something else.
        if not self._distributed:
            return _merge([mine])
        # As Detectron2's evaluators do: slow processes are waited for here, not inside gather.
        comm.synchronize()
        parts = comm.gather(mine, dst=0)
        return _merge(parts) if comm.is_main_process() else None

    def _write_detections(self, detections: Detections, ground_truth: LvisGroundTruth) -> None:
        """Write the detections for later evaluation, sweeps and other tools."""
        if self._output_dir is None:
            return
        # Before the evaluation: inference is the expensive part, and its result must survive an
        # error.
        detections.save(os.path.join(self._output_dir, "detections.npz"))
        if self._write_json:
            path = os.path.join(self._output_dir, "lvis_instances_results.json")
            with atomic_write(path) as temporary, open(temporary, "w") as file:
                json.dump(detections.to_json_list(ground_truth.category_ids), file)

    def _chosen_classes(self, result: LvisResult) -> dict[str, float]:
        """AP of the classes named in `class_names`, in percent."""
        index = {name: k for k, name in enumerate(result.class_names)}
        unknown = [name for name in self._class_names if name not in index]
        if unknown:
            # A warning only: after hours of inference, a misspelt name must not cost the other
            # figures.
            logger.warning("class_names has %s, no class of %s.", unknown, self._json_file)
        return {
            f"AP-{name}": float(100 * result.per_class_ap[index[name]])
            for name in self._class_names
            if name in index
        }


def _json_file(metadata: Any, dataset_name: str) -> str:
    """Return the local path of a data set's annotations, which must exist."""
    json_file = metadata.get("json_file")
    if json_file is None:
        raise UserError(
            f"The metadata of data set '{dataset_name}' has no json_file, so there are no "
            "annotations to evaluate with. Register the data set with "
            "logn_d2.register_lvis_form, or set MetadataCatalog.get(name).json_file."
        )
    path = PathManager.get_local_path(os.fspath(json_file))
    if not os.path.isfile(path):
        raise MissingFileError(
            f"The annotations of data set '{dataset_name}' are missing: expected the file {path}. "
            "Put them there, or set DETECTRON2_DATASETS to the folder that has them."
        )
    return path


def _known_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    unknown = [task for task in tasks if task not in ("bbox", "segm")]
    if unknown or isinstance(tasks, str):
        raise UserError(f'tasks is {tasks!r}, expected ("bbox",), ("segm",) or both.')
    # Sorted, so that boxes come first in every log.
    return tuple(sorted(tasks))


def _possible_tasks(detections: Detections, ground_truth: LvisGroundTruth) -> tuple[str, ...]:
    """Masks are evaluated if both sides have them."""
    if detections.masks is None:
        return ("bbox",)
    if ground_truth.masks is None:
        logger.info("The annotations have no masks: only boxes are evaluated.")
        return ("bbox",)
    return ("bbox", "segm")


def _merge(
    parts: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]],
) -> tuple[Detections, np.ndarray]:
    """Join the detections of several processes; an image counts once, for the first of them.

    Args:
        parts (Sequence[tuple]): `Detections.to_arrays` and the ids of the images of each process.

    Returns:
        tuple[Detections, ndarray]: all detections, and the ids of all images, ascending.
    """
    seen, kept = None, []
    for arrays, images in parts:
        detections = Detections.from_arrays(arrays)
        again = [] if seen is None else np.intersect1d(images, seen)
        if len(again):
            # Samplers that pad the last batch yield some images twice.
            detections = detections.take(~np.isin(detections.image_id, again))
        kept.append(detections)
        # The type of an empty array says nothing: ids may be strings.
        if len(images):
            seen = np.unique(images) if seen is None else np.union1d(seen, images)
    return Detections.concatenate(kept), image_id_array([] if seen is None else seen)


def _to_json_classes(
    detections: Detections, metadata: Any, ground_truth: LvisGroundTruth
) -> Detections:
    """Number the classes as the ground truth does, by ascending category id."""
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    # Without a mapping the classes are numbered by category id: Detectron2's own LVIS sets.
    if mapping is None or not len(detections):
        return detections
    unknown = sorted(set(mapping) - set(ground_truth.category_ids.tolist()))
    if unknown:
        raise UserError(
            f"{len(unknown)} of the {len(mapping)} category ids in the metadata are not in "
            f"{ground_truth.json_file}, the first is {unknown[0]}. Metadata and json are of "
            "different vocabularies: register the data set with its own json."
        )
    # A table from class indices of the model to those of the json; -1 marks indices without a
    # class.
    index = np.full(max(mapping.values()) + 1, -1)
    index[list(mapping.values())] = np.searchsorted(ground_truth.category_ids, list(mapping))
    wrong = np.flatnonzero((detections.category < 0) | (detections.category >= len(index)))
    if len(wrong):
        raise UserError(
            f"{len(wrong)} of {len(detections)} detections have a wrong class index: the first has "
            f"{detections.category[wrong[0]]}, expected 0 to {len(index) - 1}. The model has more "
            "classes than the data set; set MODEL.ROI_HEADS.NUM_CLASSES to the data set's."
        )
    # The usual case, without a copy of millions of detections.
    if np.array_equal(index, np.arange(len(index))):
        return detections
    return dataclasses.replace(detections, category=index[detections.category])


def _warn_if_incomplete(
    detections: Detections, seen: np.ndarray, ground_truth: LvisGroundTruth
) -> None:
    """Warn if a low AP has a simple reason."""
    missing = np.setdiff1d(ground_truth.image_ids, seen)
    if len(missing):
        logger.warning(
            "%d of %d images were not processed (the first is %s); their objects count as missed.",
            *(len(missing), ground_truth.num_images, missing[0]),
        )
    if not len(detections):
        logger.warning(
            "There are no detections at all, so every AP is 0. Is the score threshold "
            "(MODEL.ROI_HEADS.SCORE_THRESH_TEST) too high, or are the weights not loaded?"
        )
