"""Properties of a site that a config defines, for checks before a model is built."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from detectron2.config import CfgNode

from ..core.affine import Background


@dataclass(frozen=True)
class ConfigSite:
    """Config keys of a detector's site; by default those of RoI heads.

    Attributes:
        num_classes (str): key of K.
        score_threshold (str): key of the minimum score of detections, exclusive.
        background (str): position of the background column: "last", "first" or "none".
        activation (str): scores are the "sigmoid" or the "softmax" of the logits.
    """

    num_classes: str = "MODEL.ROI_HEADS.NUM_CLASSES"
    score_threshold: str = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
    background: Background = "last"
    activation: Literal["sigmoid", "softmax"] = "softmax"

    def classes_in(self, cfg: CfgNode) -> int:
        """Number of classes K."""
        return attrgetter(self.num_classes)(cfg)

    def threshold_in(self, cfg: CfgNode) -> float:
        """The minimum score of detections, exclusive."""
        return attrgetter(self.score_threshold)(cfg)


ROI_HEADS = ConfigSite()
_KNOWN: dict[str, ConfigSite] = {}


def register_config_site(meta_architecture: str, site: ConfigSite) -> None:
    """Register the config keys of a detector without RoI heads.

    Args:
        meta_architecture (str): MODEL.META_ARCHITECTURE.
        site (ConfigSite): its keys.
    """
    _KNOWN[meta_architecture] = site


def config_site(cfg: CfgNode) -> ConfigSite:
    """The keys for a config's detector; those of RoI heads unless others are registered.

    Example:
        >>> from detectron2.config import get_cfg
        >>> cfg = get_cfg()
        >>> config_site(cfg).num_classes
        'MODEL.ROI_HEADS.NUM_CLASSES'
        >>> cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        >>> config_site(cfg).num_classes
        'MODEL.RETINANET.NUM_CLASSES'
    """
    return _KNOWN.get(cfg.MODEL.META_ARCHITECTURE, ROI_HEADS)
