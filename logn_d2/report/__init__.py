"""Figures and the HTML report of runs, made from their folders."""

from ..results import ClassInfo, ResultRow, Results
from .compared import Settings
from .gallery import Gallery, GalleryEntry, make_gallery
from .make import make_report
from .numbers import Comparison, compare
from .page import Report, build_report, write_report
from .runs import Run, RunFolder, open_runs
from .summary import headline, summarise

__all__ = [
    "ClassInfo",
    "Comparison",
    "Gallery",
    "GalleryEntry",
    "Report",
    "ResultRow",
    "Results",
    "Run",
    "RunFolder",
    "Settings",
    "build_report",
    "compare",
    "headline",
    "make_gallery",
    "make_report",
    "open_runs",
    "summarise",
    "write_report",
]
