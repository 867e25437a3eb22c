"""Checkpoints that are whole even if the process that writes them is killed."""

from __future__ import annotations

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..core import atomic_write

__all__ = ["AtomicCheckpointer", "load_weights"]

logger = logging.getLogger(__name__)

_PARTIAL = "model_partial"


class AtomicCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that writes each file under another name and renames it.

    Detectron2 writes in place. A training that is killed while it rewrites ``model_final.pth``, or
    ``last_checkpoint``, then has nothing left to resume from.

    Args:
        model (nn.Module): as DetectionCheckpointer's.
        save_dir (str): a local folder.
        **kwargs: of DetectionCheckpointer.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth, and names it in ``last_checkpoint``."""
        self._name = f"{name}.pth"
        super().save(_PARTIAL, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Called when the file is written: gives it its name, then notes the name."""
        os.replace(
            os.path.join(self.save_dir, last_filename_basename),
            os.path.join(self.save_dir, self._name),
        )
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(self._name)
        logger.info("Saved checkpoint %s", self._name)


def load_weights(model: nn.Module, weights: str, output_dir: str, *, resume: bool) -> str:
    """Loads the weights that a pass over data is made with.

    Args:
        model (nn.Module): changed in place.
        weights (str): a file or address; "" for none.
        output_dir (str): where a training keeps its checkpoints.
        resume (bool): take the last of those, if there is one.

    Returns:
        str: what was loaded.

    Raises:
        ValueError: there are no weights, or the file can't be read.
    """
    checkpointer = DetectionCheckpointer(model, output_dir)
    if resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    if not weights:
        raise ValueError(
            "There are no weights: MODEL.WEIGHTS is empty. Write MODEL.WEIGHTS FILE at the end of "
            f"the command, or --resume for the last checkpoint in {output_dir}."
        )
    try:
        checkpointer.load(weights, checkpointables=[])
    except (EOFError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"The weights {weights} can't be loaded ({error}). The file is missing, truncated or "
            "of another model: check MODEL.WEIGHTS and the config."
        ) from error
    return weights
