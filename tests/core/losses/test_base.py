"""What a loss must define."""

import pytest

from logn_d2.core.losses.base import ClassificationLoss, RoIWiseLoss, SigmoidLoss


@pytest.mark.parametrize(
    ("family", "missing", "options"),
    [
        (ClassificationLoss, "loss", {}),
        (RoIWiseLoss, "roi_losses", {}),
        (SigmoidLoss, "entries", {"prior": 0.01}),
    ],
)
def test_a_loss_that_lacks_a_formula_is_refused_when_it_is_built(family, missing, options):
    class Incomplete(family):
        num_outputs = 4

        def probabilities(self, logits):
            return logits.softmax(dim=1)

    with pytest.raises(TypeError, match=f"abstract.*{missing}"):
        Incomplete(3, **options)

    complete = type("Complete", (Incomplete,), {missing: lambda self, *args: args[0]})
    assert complete(3, **options).num_classes == 3
