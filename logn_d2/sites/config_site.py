"""What a config tells of a site before there is a model: for checks that come before long work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from detectron2.config import CfgNode

from ..core.affine import Background

__all__ = ["ROI_HEADS", "ConfigSite", "config_site", "register_config_site"]


@dataclass(frozen=True)
class ConfigSite:
    """Where a config has what a detector's site is made with; by default, that of RoI heads.

    Attributes:
        num_classes (str): key of K.
        score_threshold (str): key of the score that detections must be above.
        background (str): where the background column is: "last", "first" or "none".
        activation (str): scores are the "sigmoid" or the "softmax" of the logits.
    """

    num_classes: str = "MODEL.ROI_HEADS.NUM_CLASSES"
    score_threshold: str = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
    background: Background = "last"
    activation: Literal["sigmoid", "softmax"] = "softmax"

    def classes_in(self, cfg: CfgNode) -> int:
        """K."""
        return _value(cfg, self.num_classes)

    def threshold_in(self, cfg: CfgNode) -> float:
        """The score that detections must be above."""
        return _value(cfg, self.score_threshold)


ROI_HEADS = ConfigSite()
_KNOWN: dict[str, ConfigSite] = {}


def register_config_site(meta_architecture: str, site: ConfigSite) -> None:
    """Tells where the config of a detector without RoI heads has its classes.

    Args:
        meta_architecture (str): MODEL.META_ARCHITECTURE.
        site (ConfigSite): its keys.
    """
    _KNOWN[meta_architecture] = site


def config_site(cfg: CfgNode) -> ConfigSite:
    """The keys of a config's detector; those of RoI heads where nothing else is registered.

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


def _value(cfg: CfgNode, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)
