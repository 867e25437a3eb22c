"""Detectron2's default trainer with LVIS evaluation."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from ..evaluation.lvis_evaluator import LVISFormEvaluator

__all__ = ["Trainer"]


class Trainer(DefaultTrainer):
    """`DefaultTrainer` that evaluates data sets in LVIS's and COCO's form."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the data set's metadata ask for.

        Args:
            cfg (CfgNode): the model's config.
            dataset_name (str): a registered data set.
            output_dir (str): where it writes its files; OUTPUT_DIR/inference if not given.

        Raises:
            ValueError: neither LVIS's nor COCO's form.
        """
        output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
        if kind == "lvis":
            return LVISFormEvaluator(dataset_name, output_dir=output_dir)
        if kind == "coco":
            return COCOEvaluator(dataset_name, output_dir=output_dir)
        raise ValueError(
            f"The data set '{dataset_name}' has the evaluator type {kind!r}, expected 'lvis' or "
            "'coco'. Register it with MODEL.LOGN.DATASETS or register_lvis_form, or override "
            "Trainer.build_evaluator."
        )
