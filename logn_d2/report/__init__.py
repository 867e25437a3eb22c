"""Figures and the HTML report, made from result files; nothing else here needs matplotlib."""

from .gallery import Gallery, GalleryEntry, make_gallery
from .page import ReportInputs, build_report, write_report
from .results import ClassInfo, ResultRow, Results
from .summary import summarise

__all__ = [
    "ClassInfo",
    "Gallery",
    "GalleryEntry",
    "ReportInputs",
    "ResultRow",
    "Results",
    "build_report",
    "make_gallery",
    "summarise",
    "write_report",
]
