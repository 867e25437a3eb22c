"""A sweep of ten calibrations against one evaluation: inference and AP of boxes and masks.

The other side is the evaluation of one model by Detectron2's loop with `LVISFormEvaluator`. The
sweep is timed in its default form (without masks that the LVIS rule ignores), with all masks, and
from stored outputs. All run in turn in one process, on a trained detector; the results of their
common calibration are compared first.

    make demo && python benchmarks/sweep.py --run output/demo --images 100 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import machine, seconds, spread
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from logn_d2 import UNCALIBRATED
from logn_d2.core import LogitStatistics, expand_grid
from logn_d2.data import class_counts, register_lvis_form
from logn_d2.data.loader import build_evaluation_loader
from logn_d2.engine import load_config
from logn_d2.engine.checkpoint import load_weights
from logn_d2.evaluators import LVISFormEvaluator
from logn_d2.lvis import LvisGroundTruth
from logn_d2.modeling.attach import calibrations_at, find_sites
from logn_d2.sweeps import StoredOutputs, evaluate_sweep, sweep, sweep_stored

CALIBRATIONS = (
    *(UNCALIBRATED, "logn", "logn_mean", "logn_std", "logn_no_beta"),
    *expand_grid("norcal(gamma=0.2:1:0.2)"),
)
DATASET = "sweep_benchmark"

Metrics = dict[str, dict[str, float]]


class Sides:
    """The ways to evaluate; each returns the metrics of the model without calibration.

    Args:
        cfg (CfgNode): config of the detector.
        run (Path): folder with its weights and statistics.
        folder (Path): folder for stored outputs.
    """

    def __init__(self, cfg: CfgNode, run: Path, folder: Path) -> None:
        self._cfg, self._store = cfg, folder / "store"
        self._model = build_model(cfg).eval()
        load_weights(self._model, str(run / "model_final.pth"), cfg.OUTPUT_DIR, resume=False)
        known = {"statistics": LogitStatistics.load(run / "logn_stats.safetensors")}
        known["counts"] = class_counts(tuple(cfg.DATASETS.TRAIN))
        sites = find_sites(self._model)
        self._calibrations = {text: calibrations_at(sites, text, **known) for text in CALIBRATIONS}
        self._truth = LvisGroundTruth.from_json(MetadataCatalog.get(DATASET).json_file)

    def evaluation(self) -> Metrics:
        """One inference pass and its AP."""
        loader = build_evaluation_loader(self._cfg, DATASET)
        evaluator = LVISFormEvaluator(DATASET, distributed=False)
        results = inference_on_dataset(self._model, loader, evaluator)
        return {task: dict(metrics) for task, metrics in results.items()}

    def sweep(self, all_masks: bool = False, store: Path | None = None) -> Metrics:
        """Ten calibrations and their AP."""
        swept = sweep(
            self._model,
            build_evaluation_loader(self._cfg, DATASET),
            self._calibrations,
            average=self._cfg.MODEL.LOGN.CASCADE_AVERAGE,
            ground_truth=None if all_masks else self._truth,
            store=store,
        )
        return evaluate_sweep(swept, self._truth)[UNCALIBRATED]

    def all_masks(self) -> Metrics:
        """The same, with masks that the LVIS rule drops."""
        return self.sweep(all_masks=True)

    def storing(self) -> Metrics:
        """The same, and the outputs are stored."""
        shutil.rmtree(self._store, ignore_errors=True)
        return self.sweep(store=self._store)

    def stored(self) -> Metrics:
        """Ten calibrations and their AP, without the network."""
        swept = sweep_stored(
            StoredOutputs.load(self._store),
            self._calibrations,
            average=self._cfg.MODEL.LOGN.CASCADE_AVERAGE,
            ground_truth=self._truth,
            device=self._cfg.MODEL.DEVICE,
        )
        return evaluate_sweep(swept, self._truth)[UNCALIBRATED]

    def megabytes(self) -> float:
        """Size of the stored outputs."""
        return sum(path.stat().st_size for path in self._store.iterdir()) / 1e6


def register_part(cfg: CfgNode, images: int, folder: Path) -> int:
    """Register the first images of the evaluation set; return their number."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    content = json.loads(Path(metadata.json_file).read_text(encoding="utf-8"))
    content["images"] = content["images"][:images]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path = folder / "part.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    register_lvis_form(DATASET, path, metadata.image_root)
    return len(kept)


def check(sides: dict[str, Callable[[], Metrics]]) -> None:
    """Compare the sides' results.

    Raises:
        AssertionError: they differ.
    """
    results = {name: side() for name, side in sides.items()}
    expected = results.pop("one evaluation")
    for name, found in results.items():
        for task, metrics in expected.items():
            values = [found[task][metric] for metric in metrics]
            # A mask computed in another batch may round a pixel differently.
            tolerance = 1e-9 if task == "bbox" else 0.05
            np.testing.assert_allclose(values, list(metrics.values()), atol=tolerance, err_msg=name)
    print(f"box AP {expected['bbox']['AP']:.3f} on all sides")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("output/demo"), help="folder of logn demo")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time, for a busy machine"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    opts = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_config(args.run / "config.yaml", opts)
    with tempfile.TemporaryDirectory() as folder:
        images = register_part(cfg, args.images, Path(folder))
        print(f"{images} images, {len(CALIBRATIONS)} calibrations; {machine(args.device)}")
        ways = Sides(cfg, args.run, Path(folder))
        sides = {
            "one evaluation": ways.evaluation,
            "sweep": ways.sweep,
            "sweep, all masks": ways.all_masks,
            "sweep, storing outputs": ways.storing,
            "sweep of stored outputs": ways.stored,
        }
        check(sides)
        print(f"stored: {ways.megabytes() / images * 1000:.0f} MB for 1,000 images")
        clock = time.process_time if args.cpu_time else time.perf_counter
        times = [
            [seconds(side, device=args.device, clock=clock) for side in sides.values()]
            for _ in range(args.rounds)
        ]
    print("\n| side | seconds | ratio to one evaluation |\n|---|---|---|")
    for name, own in zip(sides, zip(*times)):
        ratios = [each / round_[0] for each, round_ in zip(own, times)]
        print(f"| {name} | {sorted(own)[len(own) // 2]:.1f} | {spread(ratios)} |")


if __name__ == "__main__":
    main()
