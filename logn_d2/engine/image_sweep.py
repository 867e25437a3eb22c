"""Many calibrations of one image classifier, and unknown inputs, from one pass for each data set.

Shapes: N images, K classes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from .. import UNCALIBRATED
from ..classification.accuracy import ImageResult
from ..classification.logits import StoredLogits, collect_logits, scores_of
from ..classification.odin import ODINInputs
from ..core import AffineCalibration, ClassCounts
from ..core.losses import LogitNorm
from ..data.loader import build_evaluation_loader
from ..modeling.box_predictors import unwrapped
from ..ood import (
    OOD_SCORES,
    OODResult,
    evaluate_ood,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    normalized_logits,
    score_logits,
)
from ..passes.resume import deciding_settings, pass_digest
from .images import evaluate_stored, training_counts, write_results


class ImageSweep:
    """Raw logits of any data sets, and the results of calibrations on them.

    Every process passes over its images (`logits`); only the first computes figures.

    Args:
        cfg (CfgNode): config of the classifier.
        model (nn.Module): uncalibrated, with its weights.
        calibrations (Mapping): name -> a list with one calibration, or an empty one.
        folder (str): folder for the logits of each set, "logits_SET.safetensors".
        resume (bool): reuse stored logits of the same weights and images.
        odin_noise (float): perturbation for ODIN's score (`ODINInputs`) of unknown images; None
            leaves out this score, which takes another pass over each set.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        calibrations: Mapping[str, Sequence[AffineCalibration]],
        folder: str,
        *,
        resume: bool = False,
        odin_noise: float | None = None,
    ) -> None:
        self._cfg, self._model, self._folder = cfg, unwrapped(model).eval(), folder
        self._calibrations, self._resume = calibrations, resume
        self._odin = None if odin_noise is None else ODINInputs(self._model, noise=odin_noise)
        self._kept: dict[str, StoredLogits] = {}
        self._scored: dict[str, dict[str, dict[str, np.ndarray]]] = {}

    def logits(self, dataset: str) -> StoredLogits | None:
        """Raw logits of a registered set, from one pass; None on all processes but the first."""
        return self._passed("logits", dataset, self._model, deciding_settings(self._cfg))

    def collect_scores(self, dataset: str) -> None:
        """Make the pass that ODIN's score of a set needs besides its logits, by all processes."""
        if self._odin is not None:
            self._odin_logits(dataset)

    def _odin_logits(self, dataset: str) -> StoredLogits | None:
        """Raw logits of the images that ODIN has perturbed."""
        about = {"noise": self._odin.noise, "temperature": self._odin.temperature}
        settings = {**deciding_settings(self._cfg), "odin": about}
        return self._passed("odin_logits", dataset, self._odin, settings)

    def _passed(
        self, kind: str, dataset: str, model: nn.Module, settings: Mapping[str, Any]
    ) -> StoredLogits | None:
        name = f"{kind}_{dataset}.safetensors"
        if name not in self._kept:
            path = os.path.join(self._folder, name)
            loader = build_evaluation_loader(self._cfg, dataset)
            # Of the classifier's own weights, also for ODIN, whose model only wraps it.
            digest = pass_digest(self._model, loader, settings)
            found = self._stored(path, digest)
            # A pass needs all processes, which may see a file of a shared disk at different times.
            if not all(comm.all_gather(found is not None)):
                found = collect_logits(model, loader)
                if found is not None:
                    found = StoredLogits(found.logits, found.labels, digest)
                    found.save(path)
            self._kept[name] = found
        return self._kept[name] if comm.is_main_process() else None

    def _stored(self, path: str, digest: str) -> StoredLogits | None:
        if not (self._resume and os.path.isfile(path)):
            return None
        found = StoredLogits.load(path)
        return found if found.digest == digest else None

    @functools.cached_property
    def _counts(self) -> ClassCounts | None:
        # Once for all sets: counting reads the whole training set.
        return training_counts(self._cfg)

    def results(self, dataset: str) -> dict[str, ImageResult]:
        """Name -> accuracies of each calibration on a registered set."""
        return evaluate_stored(self._model, self.logits(dataset), self._calibrations, self._counts)

    def write(self, dataset: str, results: Mapping[str, ImageResult]) -> None:
        """Write a CSV file of every class, and the predictions and scores so far for the report.

        Args:
            dataset (str): a registered set.
            results (Mapping): return value of `results`.
        """
        write_results(results, self._scored, dataset, self._counts, self._folder)

    def temperatures(self, dataset: str, fitted_on: str) -> dict[str, dict[str, float]]:
        """Expected calibration error with a temperature fitted on validation images.

        The temperature divides the logarithms of class probabilities; for a softmax this equals
        dividing its logits.

        Args:
            dataset (str): the evaluated set.
            fitted_on (str): another registered set of the same classes.

        Returns:
            dict: name -> "T", and "ECE_T" in percent.
        """
        test, validation = self.logits(dataset), self.logits(fitted_on)
        found = {}
        for name in self._calibrations:
            value = fit_temperature(self._log_scores(name, validation), validation.labels)
            log_p = log_softmax(self._log_scores(name, test) / value)
            right = log_p.argmax(axis=1) == test.labels.numpy()
            # Rounding may leave it slightly above 1, which no bin of confidence has.
            confidence = np.exp(log_p.max(axis=1)).clip(max=1)
            ece = expected_calibration_error(confidence, right).ece
            found[name] = {"ECE_T": 100 * ece, "T": value}
        return found

    def unknown(self, known: str, unknown: str) -> dict[str, dict[str, OODResult]]:
        """Separation of images of unknown classes from known ones by each score.

        Args:
            known, unknown (str): registered sets.

        Returns:
            dict: name -> score -> figures. Scores are those in `OOD_SCORES` of the calibrated
            logits; for a classifier trained with LogitNorm also "msp, normalized"; uncalibrated
            also "odin", with `odin_noise`.
        """
        sides = [self._scores(each) for each in (known, unknown)]
        return {
            name: {
                score: evaluate_ood(values, sides[1][name][score])
                for score, values in sides[0][name].items()
            }
            for name in self._calibrations
        }

    def _scores(self, dataset: str) -> dict[str, dict[str, np.ndarray]]:
        """Scores of a set: name -> score -> (N,); computed once."""
        if dataset not in self._scored:
            stored = self.logits(dataset)
            self._scored[dataset] = {
                name: self._scores_with(name, stored) for name in self._calibrations
            }
            if self._odin is not None and UNCALIBRATED in self._calibrations:
                changed = self._odin_logits(dataset).logits.double().numpy()
                # ODIN is MSP at a high temperature of the perturbed images.
                odin = score_logits("msp", changed / self._odin.temperature)
                self._scored[dataset][UNCALIBRATED]["odin"] = odin
        return self._scored[dataset]

    def _scores_with(self, name: str, stored: StoredLogits) -> dict[str, np.ndarray]:
        logits = self._calibrated(name, stored).cpu().numpy()
        scored = {score: score_logits(score, logits) for score in OOD_SCORES}
        loss = self._model.head.loss.inner
        if isinstance(loss, LogitNorm):
            normal = normalized_logits(logits, loss.tau, loss.eps)
            scored["msp, normalized"] = score_logits("msp", normal)
        return scored

    def _calibrated(self, name: str, stored: StoredLogits) -> torch.Tensor:
        """Calibrated logits, (N, K) float64."""
        logits = stored.logits.double()
        calibration = next(iter(self._calibrations[name]), None)
        return logits if calibration is None else calibration.cpu()(logits)

    def _log_scores(self, name: str, stored: StoredLogits) -> np.ndarray:
        """Logarithms of class probabilities, (N, K) float64."""
        # A probability may be 0 in float32; its logarithm would make the temperature's cost NaN.
        scores = scores_of(self._model, None, self._calibrated(name, stored)).double()
        return scores.clamp(min=np.finfo(np.float64).tiny).log().numpy()
