"""Checkpoints that survive a killed process, and that are loaded only if they are complete."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError
from ..files import write_text
from ..source import source_of
from .statistics import without_calibration

logger = logging.getLogger(__name__)

_PARTIAL = "model_partial"


class AtomicCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that writes each file under another name and renames it.

    Detectron2 writes in place. A training run that is killed while it rewrites ``model_final.pth``
    or ``last_checkpoint`` then has nothing left to resume from.

    Args:
        model (nn.Module): as DetectionCheckpointer's.
        save_dir (str): a local folder.
        **kwargs: of DetectionCheckpointer.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth, and its name to ``last_checkpoint``."""
        self._name = f"{name}.pth"
        # Under a name that nothing resumes from; `tag_last_checkpoint` renames the whole file.
        super().save(_PARTIAL, **kwargs)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Add one line to Detectron2's warnings if the weights have other classes."""
        super()._log_incompatible_keys(incompatible)
        for key, found, wanted in incompatible.incorrect_shapes:
            if "cls_score" in key:
                logger.warning(
                    "These weights belong to a detector with other classes: %s has the shape %s in "
                    "the file and %s in the model. The classifier starts at random.",
                    key,
                    tuple(found),
                    tuple(wanted),
                )
                break  # a cascade's other stages would say the same

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Rename the finished file, then write its name to ``last_checkpoint``."""
        os.replace(
            os.path.join(self.save_dir, last_filename_basename),
            os.path.join(self.save_dir, self._name),
        )
        write_text(os.path.join(self.save_dir, "last_checkpoint"), self._name)
        logger.info("Saved checkpoint %s", self._name)


class IncompleteWeightsError(UserError):
    """A checkpoint lacks parameters of the model."""


class WholeCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that refuses weights that leave part of the model randomly
    initialised.

    Detectron2 only warns, and nobody can tell the statistics and AP of a randomly initialized
    classifier from proper ones.
    """

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Raise IncompleteWeightsError with the first parameter that was not loaded."""
        needed = _needed(self.model)
        shapes = {key: (found, wanted) for key, found, wanted in incompatible.incorrect_shapes}
        # Other shapes first: they tell of another number of classes, missing keys of another model.
        missing = [
            key for key in dict.fromkeys((*shapes, *incompatible.missing_keys)) if key in needed
        ]
        if missing:
            first = missing[0]
            why = "is not in it"
            if first in shapes:
                found, wanted = shapes[first]
                why = f"has the shape {tuple(found)} in it and {tuple(wanted)} in the model"
            raise IncompleteWeightsError(
                f"The checkpoint lacks {len(missing)} of the model's parameters, or has them in "
                f"other shapes; the first is {first}, which {why}. "
                + _advice(first, shapes, incompatible.unexpected_keys)
            )
        super()._log_incompatible_keys(incompatible)


def _needed(model: nn.Module) -> set[str]:
    """Names of the parameters and of batch norm's buffers; the counts of losses may start at 0."""
    buffers = (name for name, _ in model.named_buffers())
    kept = ("running_mean", "running_var", "weight", "bias")
    return {
        *(name for name, _ in model.named_parameters()),
        *(name for name in buffers if name.rpartition(".")[2] in kept),
    }


def _advice(first: str, shapes: Mapping[str, Any], unexpected: Sequence[str]) -> str:
    # As of a wrapped model, whose names begin with "module." or "model.".
    prefixed = next((key for key in unexpected if key.endswith(f".{first}")), None)
    if prefixed is not None:
        return f"It has {prefixed}: remove '{prefixed[: -len(first)]}' from the names in the file."
    if any("cls_score" in key for key in shapes):
        return (
            "The number of classes (MODEL.ROI_HEADS.NUM_CLASSES, MODEL.RETINANET.NUM_CLASSES) must "
            "be that of the training: check it and the file."
        )
    return (
        "Weights of a backbone alone, or of another model, can't be used here: name the "
        "checkpoint of the trained detector, and check the config."
    )


def load_model(cfg: CfgNode) -> tuple[nn.Module, str]:
    """The model of a config with its weights, in evaluation mode; it returns raw logits.

    Returns:
        tuple: the model, and the file or address of the weights.

    Raises:
        ValueError: see `load_weights`.
    """
    model = source_of(without_calibration(cfg)).model().eval()
    return model, load_weights(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)


def load_weights(model: nn.Module, weights: str, output_dir: str, *, resume: bool) -> str:
    """Load the weights for a pass over a data set.

    Args:
        model (nn.Module): changed in place.
        weights (str): a file or address; "" for none.
        output_dir (str): the folder of the training run's checkpoints.
        resume (bool): load the last of those checkpoints, if there is one.

    Returns:
        str: the file or address that was loaded.

    Raises:
        ValueError: there are no weights, the file can't be read, lacks parameters of the model,
            or has values that are not finite.
    """
    checkpointer = WholeCheckpointer(model, output_dir)
    if resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    if not weights:
        raise UserError(
            "There are no weights: MODEL.WEIGHTS is empty. Write MODEL.WEIGHTS FILE at the end of "
            f"the command, or --resume for the last checkpoint in {output_dir}."
        )
    try:
        _check_archive(weights)
        # Without optimizer and schedule, which belong to the training and not to a pass.
        checkpointer.load(weights, checkpointables=[])
    except (FileNotFoundError, PermissionError):  # these name the file
        raise
    except IncompleteWeightsError as error:
        raise IncompleteWeightsError(f"The weights {weights} can't be used. {error}") from None
    except Exception as error:  # whatever a damaged file makes torch, fvcore or pickle raise
        raise UserError(
            f"The weights {weights} can't be loaded ({error}). The file is missing, truncated or "
            "of another model: check MODEL.WEIGHTS and the config."
        ) from error
    _check_finite(model, weights)
    return weights


def _check_archive(path: str) -> None:
    """Compare the checksums in a file of torch.save, which torch itself ignores.

    Raises:
        ValueError: a checksum differs. A flipped bit in a weight gives a plausible number, which no
            other check would find.
    """
    if os.path.isfile(path) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise UserError(f"the checksum of {broken} differs")


def _check_finite(model: nn.Module, weights: str) -> None:
    # The state dict, not the parameters: batch norm keeps its running means in buffers.
    broken = [name for name, each in model.state_dict().items() if not each.isfinite().all()]
    if broken:
        raise UserError(
            f"The weights {weights} have values that are not finite in {len(broken)} tensors; "
            f"the first is {broken[0]}. The training diverged, or the file is damaged: name "
            "another checkpoint."
        )
