"""Reads a report: its tables, text and links, and whether it is well formed."""

from __future__ import annotations

from html.parser import HTMLParser

__all__ = ["Page"]

VOID = {"img", "meta", "link", "br", "hr", "col"}


class Page(HTMLParser):
    """What a page holds; refuses tags that are not closed in order.

    Attributes:
        ids (list[str]): of all elements.
        links (list[str]): all addresses.
        images (list[dict]): attributes of the pictures.
        tables (dict[str, list[list[str]]]): id -> rows of the texts of their cells, head first. The
            parts of a cell have a blank between them. Tables without an id are numbered.
        captions (int): of tables.
        text (str): all that is read.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.captions = 0
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._text: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []
        self.text = "".join(self._text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert len(named) == len(attrs), f"<{tag}> repeats an attribute"
        if "id" in named:
            self.ids.append(named["id"])
        self.links += [named[name] for name in ("src", "href") if name in named]
        self.captions += tag == "caption"
        if tag == "img":
            self.images.append(named)
        if tag == "table":
            self._rows = self.tables.setdefault(named.get("id") or str(len(self.tables)), [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")
        if tag == "th":
            assert named.get("scope") in ("col", "row", "colgroup"), named
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open):
            return
        self._text.append(data)
        if {"th", "td"} & set(self._open):
            before = self._rows[-1][-1]
            self._rows[-1][-1] = f"{before} {data.strip()}".strip()
