"""Evaluate and sweep from Python, with the arguments of `attach`.

The model comes first, then the source of the calibration: a statistics file or a `LogitStatistics`,
a calibration or its text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.utils import comm
from torch import nn

from .. import UNCALIBRATED
from ..core import AffineCalibration, CountsSource, LogitStatistics
from ..lvis import LvisGroundTruth
from ..modeling.attach import Source, chosen_calibrations, find_sites
from ..passes.resume import BatchLoader, LoaderFactory
from ..sweeps import evaluate_sweep
from ..sweeps import sweep as run_sweep
from .evaluation import Metrics, read_ground_truth

# LogN and its parts (paper Table 2), which need nothing but statistics.
DEFAULT = ("logn", "logn_mean", "logn_std", "logn_no_beta")


def evaluate(
    model: nn.Module,
    source: Source = None,
    *,
    loader: BatchLoader | LoaderFactory,
    dataset: str | LvisGroundTruth,
    calibration: Source = None,
    statistics: str | os.PathLike | LogitStatistics | None = None,
    counts: CountsSource = None,
    class_names: Sequence[str] | None = None,
    train_datasets: Sequence[str] = (),
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Metrics:
    """AP of a detector by the rules of LVIS, or of COCO for data sets in COCO format.

    The model is not changed, and a calibration that is already attached is ignored. Without a
    source the detector is evaluated uncalibrated.

    Args:
        model (nn.Module): a detector with its weights loaded.
        source, calibration, statistics, counts, class_names: see `attach`; all None for the
            uncalibrated detector.
        loader (Iterable or Callable): batches of mapped images in the same order each time; see
            `logn_d2.data.loader.build_evaluation_loader`.
        dataset (str or LvisGroundTruth): registered name, or the annotations.
        train_datasets (Sequence[str]): registered training sets, whose image counts define the
            frequency groups if the data set itself has none.
        output_dir (PathLike): folder for the detections, from which an interrupted pass can be
            resumed.
        resume (bool): resume an interrupted pass.

    Returns:
        Mapping: task ("bbox", "segm") -> metric -> percent; empty on all processes but the first.

    Raises:
        ValueError: the calibration does not fit the model, or the annotations have other classes.

    Example:
        >>> evaluate(model, "stats.safetensors", loader=loader, dataset="lvis_v1_val")
        ... # doctest: +SKIP
    """
    # `attach` refuses a call without any of them; here it means the detector as it is.
    given = any(each is not None for each in (source, calibration, statistics))
    chosen = {} if not given else {"calibrated": (source, calibration)}
    found = _sweep(
        *(model, chosen, loader, dataset, statistics, counts, class_names, train_datasets),
        output_dir=output_dir,
        resume=resume,
    )
    return found.get("calibrated" if given else UNCALIBRATED, {})


def sweep(
    model: nn.Module,
    source: str | os.PathLike | LogitStatistics | None = None,
    *,
    loader: BatchLoader | LoaderFactory,
    dataset: str | LvisGroundTruth,
    calibrations: Sequence[str | AffineCalibration] = DEFAULT,
    counts: CountsSource = None,
    class_names: Sequence[str] | None = None,
    train_datasets: Sequence[str] = (),
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> dict[str, Metrics]:
    """AP under many calibrations from one inference pass.

    Args:
        model (nn.Module): a detector with its weights loaded.
        source: a statistics file or a LogitStatistics, for calibrations that need statistics.
        calibrations (Sequence): texts such as "norcal(gamma=0.6)", or AffineCalibrations, which
            appear under their names. "uncalibrated" is always included.
        loader, dataset, counts, class_names, train_datasets, output_dir, resume: see `evaluate`.

    Returns:
        dict: calibration -> task -> metric -> percent, "uncalibrated" first; empty on all processes
        but the first.

    Raises:
        ValueError: a calibration does not fit the model, or an input that it needs is missing.

    Example:
        >>> sweep(model, "stats.safetensors", loader=loader, dataset="lvis_v1_val",
        ...       calibrations=["logn", "norcal(gamma=0.6)"], counts=counts)  # doctest: +SKIP
    """
    texts = [each for each in calibrations if each != UNCALIBRATED]
    chosen = {each if isinstance(each, str) else each.name: (None, each) for each in texts}
    return _sweep(
        *(model, chosen, loader, dataset, source, counts, class_names, train_datasets),
        output_dir=output_dir,
        resume=resume,
    )


def _sweep(
    model: nn.Module,
    chosen: dict[str, tuple[Source, Source]],
    loader: BatchLoader | LoaderFactory,
    dataset: str | LvisGroundTruth,
    statistics: str | os.PathLike | LogitStatistics | None,
    counts: CountsSource,
    class_names: Sequence[str] | None,
    train_datasets: Sequence[str],
    **folders: object,
) -> dict[str, Metrics]:
    """Name -> task -> metric, with the calibrations that `attach` would apply."""
    sites = find_sites(model)
    made = {UNCALIBRATED: chosen_calibrations(sites, UNCALIBRATED)[0]}
    for name, (source, calibration) in chosen.items():
        # `attach` refuses statistics beside a finished calibration, which does not need them.
        own = None if isinstance(calibration, AffineCalibration) else statistics
        made[name], _ = chosen_calibrations(
            *(sites, source, calibration, own), counts=counts, class_names=class_names
        )
    if isinstance(dataset, LvisGroundTruth):
        truth = dataset
    else:
        truth = read_ground_truth(dataset, train_datasets)
    swept = run_sweep(model, loader, made, ground_truth=truth, **folders)
    # Without a folder the other processes hold only their own images.
    return evaluate_sweep(swept, truth) if comm.is_main_process() else {}
