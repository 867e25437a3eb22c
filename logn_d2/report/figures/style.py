"""The style shared by all figures: colours, axes, titles, output files.

Figures are drawn for a web page: without a background, and with all lines and letters in one colour
that the page sets (`svg_data_uri`), so that they suit light and dark mode. Runs and groups differ
in colour (Okabe and Ito's palette, safe for colour-blind readers) and also in marker, line or
hatch, so that a grey print separates them.

Names may contain any characters: none is read as a formula, and those that no installed font has
are written as their code point (U+732B).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ...errors import UserError
from ...files import atomic_write
from ...frequency import group_title
from ...results import ClassInfo

_POINT_SIZE = 30
# Stands for the page's text colour; occurs nowhere else.
INK = "#010203"
ACCENT = "#0072B2"
# Colour and marker, the rarest group first.
_GROUP_STYLES = (
    *(("#D55E00", "^"), ("#E69F00", "s"), ("#0072B2", "o"), ("#009E73", "D")),
    *(("#CC79A7", "v"), ("#56B4E9", "P"), ("#F0E442", "X")),
)
_OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Symbola"),
)
_SVG_STYLE = (
    "<style>svg{color:#1b1f24}"
    "@media screen and (prefers-color-scheme:dark){svg{color:#e4e7eb}}</style>"
)

BAR_STYLES: tuple[dict[str, Any], ...] = (
    {"facecolor": "none", "edgecolor": INK, "hatch": "////", "linewidth": 1.0},
    {"facecolor": ACCENT, "edgecolor": INK, "linewidth": 1.0},
    {"facecolor": "#E69F00", "edgecolor": INK, "hatch": "..", "linewidth": 1.0},
    {"facecolor": "#009E73", "edgecolor": INK, "hatch": "xx", "linewidth": 1.0},
)
"""Bars of the runs, in their order: before, after, others."""

LINE_STYLES: tuple[dict[str, Any], ...] = (
    {"color": INK, "linestyle": "--", "marker": "o", "markerfacecolor": "none"},
    {"color": ACCENT, "linestyle": "-", "marker": "s"},
    {"color": "#E69F00", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
)
"""Lines of the runs, in the same order."""


def plain_line(style: dict[str, Any]) -> dict[str, Any]:
    """A style of `LINE_STYLES` for a curve or an outline of many points: without markers."""
    return {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.6}


def new_figure(
    width: float,
    height: float,
    *,
    columns: int,
    rows: int = 1,
    widths: Sequence[float] | None = None,
    share_y: bool | str = False,
) -> tuple[Figure, list[Axes]]:
    """Make axes in the common style; without pyplot, so without global state.

    Args:
        width (float): width of the figure in inches.
        height (float): height in inches.
        columns (int): number of columns of axes.
        rows (int): number of rows.
        widths (Sequence[float] | None): relative widths of the columns.
        share_y (bool or str): False, True for one scale for all, "row" or "col".

    Returns:
        tuple[Figure, list[Axes]]: axes row by row.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y, width_ratios=widths)
    for axis in axes.flat:
        _style_axis(axis)
    return figure, list(axes.flat)


def _style_axis(axis: Axes) -> None:
    """Set thin lines in the common colour, no frame, a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    for spine in axis.spines.values():
        spine.set_color(INK)
    axis.tick_params(which="both", color=INK, labelcolor=INK, labelsize=9)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=INK, fontsize=9.5)
    axis.grid(True, color=INK, alpha=0.12, linewidth=0.8)
    axis.set_axisbelow(True)


def title(axis: Axes, text: str, note: str) -> None:
    """Write a bold title with a plain note below it."""
    pad = 18 if note else 8
    _plain(axis.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=pad))
    if note:
        _plain(axis.annotate(note, (0, 1), (0, 6), "axes fraction", textcoords="offset points",
                             fontsize=9, color=INK))  # fmt: skip


def legend(axis: Axes, above: bool = False) -> None:
    """Add a legend if an artist has a label; above the axes if data may be anywhere in them."""
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        return
    place: dict[str, Any] = {}
    if above:
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(labels)}
        place |= {"borderaxespad": 0.2}
    box = axis.legend(handles, labels, fontsize=9, frameon=False, labelcolor=INK, **place)
    box.set_zorder(5)
    _names(box.get_texts())


def legend_below(figure: Figure, axis: Axes) -> None:
    """Add the legend of one axis below all axes."""
    handles, labels = axis.get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": len(labels)}
    box = figure.legend(handles, labels, fontsize=9, frameon=False, labelcolor=INK, **place)
    _names(box.get_texts())


def label(name: str) -> str:
    """A name as a legend entry; matplotlib hides labels with a leading underscore."""
    return f" {name}" if name.startswith("_") else name


def name_ticks(axis: XAxis | YAxis, places: np.ndarray, labels: Sequence[str]) -> None:
    """Set ticks whose labels are a user's names."""
    # Matplotlib creates the labels anew at each drawing, so `_plain` on the present ones would be
    # lost.
    shown = [readable(each) for each in labels]
    axis.set_ticks(places, shown, parse_math=False, fontfamily=_families())


def _names(texts: Iterable[Text]) -> None:
    for text in texts:
        _plain(text)


def _plain(text: Text) -> None:
    """Show a user's names as they are."""
    text.set_parse_math(False)
    text.set_text(readable(text.get_text()))
    text.set_fontfamily(_families())


def readable(text: str) -> str:
    """Replace characters that no installed font has by their code points."""
    return "".join(
        letter if letter.isspace() or _has_glyph(letter) else f"U+{ord(letter):04X}"
        for letter in text
    )


@functools.cache
def _families() -> list[str]:
    """Matplotlib's own font, then installed ones for other scripts, in order of preference."""
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed)]


@functools.cache
def _has_glyph(letter: str) -> bool:
    fonts = (get_font(findfont(FontProperties(family=name))) for name in _families())
    return any(font.get_char_index(ord(letter)) for font in fonts)


def group_styles(groups: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each group; they repeat after seven.

    Args:
        groups (Sequence[str]): names, in the order of `ClassInfo.group_names`.
    """
    return dict(zip(groups, itertools.cycle(_GROUP_STYLES)))


def scatter(
    axis: Axes, x: np.ndarray, y: np.ndarray, classes: ClassInfo, chosen: np.ndarray
) -> None:
    """Draw the chosen classes by group, the rare ones last and therefore on top."""
    groups = np.array(classes.groups)[chosen]
    for group, (color, marker) in reversed(group_styles(classes.group_names).items()):
        members = groups == group
        if members.any():
            axis.scatter(
                x[members], y[members], s=_POINT_SIZE, marker=marker, color=color,
                edgecolors=INK, linewidths=0.4, alpha=0.85,
                label=label(f"{group_title(group)} ({members.sum()})"), zorder=3,
            )  # fmt: skip


def log_counts(axis: Axes, count: np.ndarray) -> None:
    """Scale an axis of counts logarithmically, with plain numbers instead of powers of ten."""
    if not len(count):
        return
    # Less than two decades may contain a single power of ten, so 2 and 5 are labelled too.
    wide = np.max(count) > 100 * np.min(count)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def percent(value: float, _: int | None = None) -> str:
    """Format a share in percent; the second argument is the tick position from matplotlib."""
    return f"{100 * value:.3g} %"


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 200) -> None:
    """Write a figure for print or slides: on white, in near-black.

    Args:
        figure (Figure): the figure.
        path (str or PathLike): the file; its ending .png, .svg or .pdf sets the format. On failure
            an existing file stays intact.
        dpi (int): pixels per inch of a png.

    Raises:
        ValueError: another file type.
    """
    form = os.path.splitext(os.fspath(path))[1].lower().lstrip(".")
    if form not in ("png", "svg", "pdf"):
        raise UserError(f"{os.fspath(path)} ends in {form!r}, expected .png, .svg or .pdf.")
    # No date, so that the same data make the same file.
    metadata = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
    with atomic_write(path) as temporary, _fixed_svg():
        figure.savefig(temporary, format=form, dpi=dpi, facecolor="white", metadata=metadata)


def svg_data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address of an SVG image, the same bytes for the same data."""
    buffer = io.BytesIO()
    with _fixed_svg():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode("utf-8").replace(INK, "currentColor")
    head, tag, rest = text.partition("<defs>")
    svg = f"{head}{_SVG_STYLE}{tag}{rest}"
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _fixed_svg() -> contextlib.AbstractContextManager[None]:
    """Settings for SVG: letters as shapes, since a reader may lack the font, and fixed ids."""
    return matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "logn_d2"})
