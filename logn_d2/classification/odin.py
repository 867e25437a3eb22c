"""ODIN (Liang, Li, Srikant, ICLR 2018): a score of perturbed images at a high temperature.

    x' = x + eps * sign(d log S_y(x; T) / dx),    score = S(x'; T)

where S(x; T) is the softmax of z / T and y the predicted class. The perturbation raises the
confidence for known images more than that for unknown ones.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .classifier import ImageClassifier

TEMPERATURE, NOISE = 1000.0, 0.0014
"""The paper's values for CIFAR-10, where eps was chosen on validation images."""

_PIXEL_RANGE = 255.0


class ODINInputs(nn.Module):
    """A classifier that perturbs its images: its logits, divided by T, give ODIN's score.

    Args:
        model (ImageClassifier): in evaluation mode; its raw logits are used, without a calibration.
        temperature (float): T, above 0.
        noise (float): eps, as a share of the pixel range (255), at least 0.

    Raises:
        ValueError: a temperature or noise outside its range.

    Example:
        >>> from logn_d2.classification import ClassifierHead, MLPBackbone
        >>> model = ImageClassifier(
        ...     backbone=MLPBackbone(channels=1, size=4, hidden=[8]),
        ...     head=ClassifierHead(8, num_classes=3), pixel_mean=[128.0], pixel_std=[64.0],
        ... )
        >>> ODINInputs(model.eval())([{"image": torch.zeros(1, 4, 4)}])[0]["logits"].shape
        torch.Size([3])
    """

    def __init__(
        self, model: ImageClassifier, temperature: float = TEMPERATURE, noise: float = NOISE
    ) -> None:
        super().__init__()
        if not (0 < temperature < float("inf") and 0 <= noise <= 1):
            raise UserError(
                f"The temperature is {temperature} and the noise {noise}, expected a number above "
                "0, and a share of the pixel range in [0, 1]."
            )
        self.model, self.temperature, self.noise = model, temperature, noise

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predictions of the `ImageClassifier` for the perturbed images."""
        return self.model(self.perturbed(batched_inputs))

    def perturbed(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same inputs with x' as images, in float; pixels may leave [0, 255] by eps."""
        # Evaluations switch gradients off. `autograd.grad` computes only those of the images, so
        # the weights accumulate none.
        with torch.enable_grad():
            images = [each["image"].float().detach().requires_grad_() for each in batched_inputs]
            inputs = [
                {**each, "image": image} for each, image in zip(batched_inputs, images, strict=True)
            ]
            logits = torch.stack([output["logits"] for output in self.model(inputs)])
            certainty = (logits / self.temperature).log_softmax(dim=1).amax(dim=1)
            # In evaluation mode no image affects another, so one sum gives all gradients.
            gradients = torch.autograd.grad(certainty.sum(), images)
        step = self.noise * _PIXEL_RANGE
        return [
            {**each, "image": image.detach() + step * gradient.sign()}
            for each, image, gradient in zip(batched_inputs, images, gradients, strict=True)
        ]
