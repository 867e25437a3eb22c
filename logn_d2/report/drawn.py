"""A figure of the page, which can also be written to files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .figure_style import save_figure, svg_data_uri
from .html import Html, element

__all__ = ["Drawn"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure with what is said of it.

    Attributes:
        name (str): of its files, without ending; no two figures of a page have the same.
        figure (Figure): itself.
        alt (str): the same in words, for those who do not see it.
        caption (str): below it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str

    def element(self) -> Html:
        """A figure that scrolls sideways rather than shrink until it can't be read."""
        image = element("img", src=svg_data_uri(self.figure), alt=self.alt)
        label = self.caption.partition(".")[0]
        picture = element("div", image, class_="scroll wide", tabindex="0", role="region",
                          aria_label=label)  # fmt: skip
        return element("figure", picture, element("figcaption", self.caption))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes NAME.svg and NAME.png for print, on white; missing folders are made."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for ending in ("svg", "png"):
            save_figure(self.figure, Path(folder, f"{self.name}.{ending}"))
