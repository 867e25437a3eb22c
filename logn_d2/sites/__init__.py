"""Classification sites: the class logits of detectors without box predictors.

`LogitSite` describes a site. Some modules register the sites of known detectors; your own detector
needs no registration, because `attach`, `fold` and `collect` take ``site=``.
"""

from . import detectron2_dense as _detectron2_dense  # noqa: F401  # only registration
from . import torchvision_dense as _torchvision_dense  # noqa: F401  # only registration
from .config_site import ROI_HEADS, ConfigSite, config_site, register_config_site
from .detectron2_semantic import semantic_site
from .hook import CHILD, CalibrationHook, attached_layers
from .layers import ClassLayers, layer_names
from .recorder import SiteOutput, SiteRecorder, SiteRecording
from .registry import SITE_REGISTRY, known_site, site_detector
from .replay import outputs_under
from .running import PassEnds, check_ground_truth, evaluation_mode, heard, shadowed
from .site import LogitSite, TopScores

__all__ = [
    "CHILD",
    "ROI_HEADS",
    "SITE_REGISTRY",
    "CalibrationHook",
    "ClassLayers",
    "ConfigSite",
    "LogitSite",
    "PassEnds",
    "SiteRecorder",
    "SiteRecording",
    "SiteOutput",
    "TopScores",
    "attached_layers",
    "check_ground_truth",
    "config_site",
    "heard",
    "known_site",
    "layer_names",
    "evaluation_mode",
    "outputs_under",
    "register_config_site",
    "semantic_site",
    "shadowed",
    "site_detector",
]
