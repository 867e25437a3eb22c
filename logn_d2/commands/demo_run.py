"""One run of the demo: its settings, its files, and the journal of its phases."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import config_file
from ..engine import load_config
from ..errors import UserError
from ..files import write_json
from ..glyphs import glyphs_folder, register_glyphs
from ..lvis import LvisGroundTruth

SAMPLERS = {"random": "TrainingSampler", "rfs": "RepeatFactorTrainingSampler"}

_CONFIGS = {
    "tiny": "glyphs_tiny_mask_rcnn_R_18_FPN{suffix}.yaml",
    "demo": "glyphs_demo_mask_rcnn_efficientnet_lite0_FPN{suffix}.yaml",
    "lvis": "glyphs_lvis_mask_rcnn_R_50_FPN{suffix}.yaml",
}
# Two processes of one thread each train nearly twice as fast as one process of two threads: most
# layers of a network made for CPUs are too small to be divided among threads. Fixed, so that every
# machine draws the same random numbers.
_PROCESSES = {"demo": 2}
_JOURNAL = "demo.json"


@dataclass
class Run:
    """A run.

    Attributes:
        size (str): size of LT-Glyphs.
        sampler (str): a name in `SAMPLERS`.
        seed (int): seed of the training.
        output (Path): folder of all files except the data set.
        root (Path): datasets root.
        cfg (CfgNode): config with all of these settings.
        config_file (Path): config of size and sampler, without the other settings.
        journal (dict): settings, and for each phase its seconds and the time when it finished.
    """

    size: str
    sampler: str
    seed: int
    output: Path
    root: Path
    cfg: CfgNode
    config_file: Path
    journal: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.output / _JOURNAL
        if path.is_file():
            self.journal = json.loads(path.read_text())
        # Those that the run began with; `open_run` compares them with the present ones.
        self.journal.setdefault("settings", self.settings)
        self.journal.setdefault("phases", {})

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the results."""
        # The folder and the device do not: another machine may finish the run.
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = cfg.MODEL.DEVICE = ""
        return {
            "size": self.size,
            "sampler": self.sampler,
            "seed": self.seed,
            "config": self.config_file.name,
            "config_digest": hashlib.sha256(cfg.dump().encode()).hexdigest()[:12],
            "processes": self.processes,
        }

    @property
    def processes(self) -> int:
        """Processes of the phases that run the detector; one on a GPU."""
        return _PROCESSES.get(self.size, 1) if self.cfg.MODEL.DEVICE == "cpu" else 1

    @property
    def checksums(self) -> Path:
        """The file that marks the data set as complete."""
        return glyphs_folder(self.root, self.size) / "SHA256SUMS"

    @property
    def weights(self) -> Path:
        """The trained detector."""
        return self.output / "model_final.pth"

    @property
    def statistics(self) -> Path:
        """The statistics file."""
        return self.output / "logn_stats.safetensors"

    @property
    def results(self) -> Path:
        """The file with all numbers."""
        return self.output / "results.json"

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.output / "report.html"

    @property
    def train_set(self) -> str:
        """Registered name of the training set."""
        return self.cfg.DATASETS.TRAIN[0]

    @property
    def val_set(self) -> str:
        """Registered name of the validation set."""
        return self.cfg.DATASETS.TEST[0]

    def truth(self) -> LvisGroundTruth:
        """The annotations of the validation set."""
        return LvisGroundTruth.from_json(MetadataCatalog.get(self.val_set).json_file)

    def seconds(self, phase: str) -> float:
        """Duration of a phase, without interruptions."""
        return self.journal["phases"].get(phase, {}).get("seconds", 0.0)

    def finished(self, phase: str) -> float:
        """Time when a phase finished, in seconds since 1970; 0 if it is unfinished."""
        return self.journal["phases"].get(phase, {}).get("finished", 0.0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add up the time of a phase over interruptions, and note its end."""
        entry = self.journal["phases"].setdefault(phase, {"seconds": 0.0})
        # A phase that had finished is run again from the beginning.
        if entry.pop("finished", None):
            entry["seconds"] = 0.0
        before, start = entry["seconds"], time.perf_counter()
        try:
            self.save_journal()
            yield
            entry["finished"] = time.time()
        finally:
            entry["seconds"] = round(before + time.perf_counter() - start, 1)
            self.save_journal()

    def save_journal(self) -> None:
        """Write the journal."""
        write_json(self.output / _JOURNAL, self.journal)


def open_run(args: argparse.Namespace) -> Run:
    """Open the run of these arguments, new or partly done.

    Args:
        args (Namespace): size, sampler, seed, output, fresh.

    Raises:
        ValueError: the folder contains a run with other settings, or other files.
    """
    output = args.output or Path("output") / args.size
    # Only a folder with a journal is deleted: --output may be misspelt.
    ours = (output / _JOURNAL).is_file()
    if args.fresh and ours:
        shutil.rmtree(output)
    elif output.is_dir() and any(output.iterdir()) and not ours:
        raise UserError(
            f"{output} is not empty and contains no run of the demo; give another --output."
        )
    output.mkdir(parents=True, exist_ok=True)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    register_glyphs(root)
    cfg, path = _build_config(args, output)
    run = Run(args.size, args.sampler, args.seed, output, root, cfg, path)
    _check_settings(run)
    return run


def _check_settings(run: Run) -> None:
    """Refuse to mix two runs in one folder."""
    found, asked = run.journal["settings"], run.settings
    different = [key for key in asked if found.get(key) != asked[key]]
    if not different:
        return
    # Another seed also changes the config's digest, which comes last: it is named only if no other
    # setting explains the difference.
    key = different[0]
    raise UserError(
        f"{run.output} has a run with other settings ({key} {found.get(key)}, now {asked[key]}). "
        "Give another --output, or start over with --fresh."
    )


def _build_config(args: argparse.Namespace, output: Path) -> tuple[CfgNode, Path]:
    """The config of a size and sampler, and its file."""
    names = [_CONFIGS[args.size].format(suffix=suffix) for suffix in ("_rfs", "")]
    try:
        path = config_file(names[args.sampler != "rfs"])
    except FileNotFoundError:  # a size may have one config for both samplers
        path = config_file(names[1])
    cfg = load_config(path)
    cfg.DATALOADER.SAMPLER_TRAIN = SAMPLERS[args.sampler]
    # Statistics and evaluation are separate phases.
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.OUTPUT_DIR, cfg.SEED = str(output), args.seed
    cfg.freeze()
    # Relative, so that the printed commands are short.
    path = Path(path).resolve()
    here = Path.cwd().resolve()
    return cfg, path.relative_to(here) if path.is_relative_to(here) else path
