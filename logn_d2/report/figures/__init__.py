"""The figures, one file each: functions that take plain data and return a matplotlib Figure."""

from .changes import change_figure
from .errors import error_figure
from .intervals import interval_figure
from .logits import logit_figure, population_figure
from .prior import prior_figure
from .reliability import reliability_figure
from .scores import score_figure
from .statistics_images import images_figure
from .style import save_figure, svg_data_uri
from .thresholds import threshold_figure
from .unknown import unknown_figure

__all__ = [
    "change_figure",
    "error_figure",
    "images_figure",
    "interval_figure",
    "logit_figure",
    "population_figure",
    "prior_figure",
    "reliability_figure",
    "save_figure",
    "score_figure",
    "svg_data_uri",
    "threshold_figure",
    "unknown_figure",
]
