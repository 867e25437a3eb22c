"""`logn collect` and `logn sweep` at LVIS's size, as commands: time and memory of each.

The annotations are the stand-ins of lvis_start.py in LVIS's layout, so Detectron2's own data sets
`lvis_v1_train` and `lvis_v1_val` find them. All images are one drawing of 480 x 640 pixels. The
network is small (R-18-FPN, 200 RoIs, boxes, images of 64 pixels) and has random weights with
plausible batch norms: a larger one costs more per image and nothing else. Detections are unusually
many, since every class exceeds the score threshold: 300 in each image under each calibration.

    python benchmarks/lvis_passes.py                                   # 19,809 and 1,981 images
    python benchmarks/lvis_passes.py --images 1000 --save-outputs      # and from stored outputs
    python benchmarks/lvis_passes.py --train-images 100170 --images    # statistics alone, 10 GB
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import machine
from lvis_start import HEIGHT, WIDTH, draw
from PIL import Image
from statistics_pass import plausible_norms
from tabulate import tabulate

from logn_d2.config import config_file
from logn_d2.engine import load_config
from logn_d2.source import source_of

CLASSES = 1203
CALIBRATIONS = (
    *("logn", "logn_mean", "logn_std", "logn_beta", "logn_no_beta"),
    *("norcal(gamma=0.6)", "fracal", "auto"),
)
CONFIG = """
_BASE_: {base}
MODEL:
  DEVICE: cpu
  MASK_ON: False
  ROI_HEADS: {{NUM_CLASSES: {classes}}}
DATASETS:
  TRAIN: ("lvis_v1_train",)
  TEST: ("lvis_v1_val",)
DATALOADER:
  NUM_WORKERS: 0
  SAMPLER_TRAIN: RepeatFactorTrainingSampler
  REPEAT_THRESHOLD: 0.001
INPUT: {{MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 128}}
TEST: {{DETECTIONS_PER_IMAGE: 300}}
"""


class Commands:
    """Commands on stand-ins below a folder, each with its time and memory as a row.

    Args:
        folder (Path): an empty folder; it needs 0.2 GB for 19,809 images, 1 GB for 100,170.
        seed (int): of the stand-ins and weights.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self.rows: list[list] = []
        self._config = folder / "config.yaml"
        base = config_file("Glyphs-Base.yaml")
        self._config.write_text(CONFIG.format(base=base, classes=CLASSES))
        (folder / "lvis").mkdir()
        (folder / "coco" / "train2017").mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        self._image = folder / "image.jpg"
        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(self._image)

    def draw(self, split: str, num_images: int) -> None:
        """Replace a split."""
        draw(self._folder / "lvis" / f"lvis_v1_{split}.json", num_images, CLASSES, self._seed)
        for number in range(1, num_images + 1):
            link = self._folder / "coco" / "train2017" / f"{number:012}.jpg"
            if not link.is_symlink():
                link.symlink_to(self._image)

    def write_weights(self) -> None:
        """Write random weights, with plausible statistics in the batch norms."""
        torch.manual_seed(self._seed)
        model = source_of(load_config(self._config)).model()
        plausible_norms(model, [[{"image": 255 * torch.rand(3, 64, 85)}]])
        torch.save({"model": model.state_dict()}, self._folder / "model_final.pth")

    def run(self, what: str, num_images: int, verb: str, *arguments: str) -> None:
        """Add a row: CPU and wall seconds, and the peak of memory of the process."""
        weights = self._folder / "model_final.pth"
        command = [sys.executable, "-m", "logn_d2", verb, "--config-file", str(self._config)]
        command += ["--weights", str(weights), *arguments]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(self._folder)}
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{what} failed: {' '.join(command)}")
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
        self.rows.append([what, num_images, cpu, time.perf_counter() - start, peak])
        print(f"{what}, {num_images:,} images: {cpu:.1f} s, {peak:.2f} GB", flush=True)

    def collect(self, num_images: int, stop_at: float) -> None:
        """The statistics pass over the training set of this many images."""
        output = str(self._folder / "logn_stats.safetensors")
        more = ["--stop-at", str(stop_at), "--output", output, "OUTPUT_DIR", str(self._folder)]
        self.run("collect", num_images, "collect", *more)

    def sweep(self, num_images: int, save_outputs: bool) -> None:
        """The sweep with the network and, if wanted, again from the outputs it stored."""
        results, outputs = (self._folder / f"{kind}{num_images}" for kind in ("sweep", "outputs"))
        statistics = str(self._folder / "logn_stats.safetensors")
        common = ["--stats", statistics, "--calibrations", *CALIBRATIONS]
        store = ["--save-outputs", str(outputs)] if save_outputs else []
        self.run("sweep", num_images, "sweep", *common, "--output", str(results), *store)
        print(f"its detections: {_gigabytes(results):.2f} GB")
        if save_outputs:
            print(f"its outputs: {_gigabytes(outputs):.2f} GB")
            source = ["--from-outputs", str(outputs), "--output", f"{results}_again"]
            self.run("sweep of stored outputs", num_images, "sweep", *common, *source)


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, nargs="*", default=[1981, 19_809], help="sizes of the validation set"
    )
    parser.add_argument("--train-images", type=int, default=1000, help="size of the training set")
    parser.add_argument(
        "--stop-at", type=float, default=0.05, help="sampling error that ends the pass"
    )
    parser.add_argument(
        "--save-outputs", action="store_true", help="sweep stored outputs too; 5 MB per image"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(Path(folder), args.seed)
        commands.write_weights()
        commands.draw("train", args.train_images)
        commands.collect(args.train_images, args.stop_at)
        for num_images in args.images:
            commands.draw("val", num_images)
            commands.sweep(num_images, args.save_outputs)
    print(f"\n{CLASSES:,} classes, {len(CALIBRATIONS) + 1} calibrations; {machine()}")
    headers = ["command", "images", "CPU s", "seconds", "peak, GB"]
    formats = ("", ",", ".1f", ".1f", ".2f")
    print(tabulate(commands.rows, headers, tablefmt="github", floatfmt=formats, intfmt=","))


if __name__ == "__main__":
    main()
