"""The digest of a pass changes with everything that changes its result."""

from __future__ import annotations

import torch
from torch import nn

from logn_d2.data.loader import PassDataset
from logn_d2.passes.resume import pass_digest


class Images:
    """As a loader: has a data set."""

    def __init__(self, order: tuple[int, ...], weights: list[float] | None = None) -> None:
        records = [{"file_name": name} for name in "abc"]
        weights = None if weights is None else torch.tensor(weights)
        self.dataset = PassDataset(records, torch.tensor(order), dict, weights=weights)


def test_weights_buffers_images_and_settings_decide() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    images, settings = Images((0, 1, 2)), {"seed": 0}
    digests = [pass_digest(model, images, settings)]
    assert pass_digest(model, Images((0, 1, 2)), {"seed": 0}) == digests[0]
    for order, weights in (((0, 2, 1), None), ((0, 1), None), ((0, 1, 2), [1.0, 1.0, 2.0])):
        digests.append(pass_digest(model, Images(order, weights), settings))
    digests.append(pass_digest(model, images, {"seed": 1}))
    # Statistics of batch norm are buffers, which change every output as weights do.
    for tensor in (model[0].weight, model[1].running_mean, model[1].running_var):
        tensor.data[0] += 1e-3
        digests.append(pass_digest(model, images, settings))
    assert len(set(digests)) == len(digests) == 8
