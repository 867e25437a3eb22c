"""The work of a sweep on a batch of images for models without box predictors.

The site determines which part of the network runs once; the model's own inference does the rest for
each calibration.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from torch import nn

from ..errors import UserError
from ..lvis.detections import Detections
from ..sites import LogitSite, layer_names, outputs_under
from .detections_folder import ImageDetections
from .union import Calibrations, calibrations_digest, check_calibrations


class SiteSweepRunner:
    """Replaces the detector in `inference_on_dataset`.

    Args:
        model (nn.Module): the detector itself, whose outputs are those of Detectron2.
        calibrations (Mapping): name -> a list of one calibration; they are copied.
        site (LogitSite): its site.

    Raises:
        ValueError: calibrations that do not fit the model, or a model without detections.
    """

    def __init__(self, model: nn.Module, calibrations: Calibrations, site: LogitSite) -> None:
        site.check_detections(model)
        check_calibrations(calibrations, [site.num_classes])
        for stages in calibrations.values():
            # A dense detector has one set of logits, hence one calibration for each name.
            stages[0].check_activation(site.activation == "sigmoid")
        self._model, self._site = model, site
        device = next(model.parameters()).device
        self._calibrations = {
            name: copy.deepcopy(stages[0]).to(device) for name, stages in calibrations.items()
        }

    def settings(self) -> dict[str, Any]:
        """The settings that determine the detections, besides weights and images."""
        listed = {name: [each] for name, each in self._calibrations.items()}
        return {
            "names": list(listed),
            "calibrations": calibrations_digest(listed),
            "layers": layer_names(self._model, self._site),
        }

    def __call__(self, inputs: Sequence[Mapping[str, Any]]) -> ImageDetections:
        """All calibrations' detections in N images."""
        # All calibrations of one batch before the next batch, so that the features are computed
        # once.
        outputs = outputs_under(self._model, self._site, inputs, self._calibrations)
        found = [
            _of_image(image["image_id"], [instances_of(each[index]) for each in outputs.values()])
            for index, image in enumerate(inputs)
        ]
        return ImageDetections.concatenate(found)


def instances_of(output: Mapping[str, Any]) -> Instances:
    """The detections in a detector's output for an image.

    Raises:
        UserError: the output is not in Detectron2's format.
    """
    if "instances" not in output:
        raise UserError(
            f"Expected outputs in Detectron2's format, with 'instances'; this "
            f"model returns {', '.join(output)}. Use logn_d2.sites.outputs_under, which returns "
            "each calibration's outputs unchanged."
        )
    return output["instances"]


def _of_image(image_id: int | str, instances: Sequence[Instances]) -> ImageDetections:
    """One image's detections, each distinct one (box and class) once."""
    parts = [Detections.from_instances([each], [image_id]) for each in instances]
    boxes, classes = (np.concatenate([getattr(p, n) for p in parts]) for n in ("box", "category"))
    # Box and class in one row, for a single np.unique; the score differs between calibrations and
    # stays out.
    rows = np.column_stack([boxes.reshape(-1, 4), classes])
    _, first, index = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return ImageDetections(
        image_ids=(image_id,),
        union=Detections.concatenate(parts).take(first),
        # numpy 2.0 shapes the inverse as a column where an axis is given, hence the reshape.
        index=tuple(each.astype(np.int32) for each in np.split(index.reshape(-1), ends)),
        score=tuple(part.score.astype(np.float32) for part in parts),
    )
