"""Detectron2's one-stage detectors: RetinaNet, and FCOS if Detectron2 has it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .config_site import ConfigSite, register_config_site
from .registry import SITE_REGISTRY
from .running import check_ground_truth, heard
from .site import Inputs, LogitSite, TopScores

_KEYS = ConfigSite(
    num_classes="MODEL.RETINANET.NUM_CLASSES",
    score_threshold="MODEL.RETINANET.SCORE_THRESH_TEST",
    background="none",
    activation="sigmoid",
)
register_config_site("RetinaNet", _KEYS)
# FCOS has only LazyConfigs; the commands write their settings under these keys.
register_config_site("FCOS", _KEYS)


@SITE_REGISTRY.register("detectron2.modeling.meta_arch.fcos.FCOS")
@SITE_REGISTRY.register("detectron2.modeling.meta_arch.retinanet.RetinaNet")
def dense_site(model: nn.Module) -> LogitSite:
    """Sigmoid scores from a convolution: every anchor is a candidate, without background.

    The model's own matcher labels anchors; the loss ignores ambiguous ones. At test, the best of
    each level above the threshold become boxes. (FCOS multiplies scores by centerness, which is
    ignored here.)
    """
    head = model.head
    return LogitSite(
        [head.cls_score],
        num_classes=model.num_classes,
        matched=_labels,
        chosen=TopScores(model.test_score_thresh, model.test_topk_candidates),
        reused=[model.backbone, head.cls_subnet, head.bbox_subnet, head.bbox_pred],
    )


def _labels(model: nn.Module, inputs: Inputs) -> Sequence[Tensor]:
    check_ground_truth(
        inputs, "instances", "Map the data set with ground truth (DatasetMapper, is_train=True)"
    )
    # The arguments common to RetinaNet and FCOS come first; newer releases append others.
    anchors, logits, labels, *others = heard(model, model, "losses", lambda: model(list(inputs)))
    return labels
