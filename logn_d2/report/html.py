"""Small builders of HTML: everything that is not built here is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["Html", "element", "join", "raw_element", "table"]

_VOID = ("img", "meta", "link", "br", "hr", "col")


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def join(parts: Iterable[str], separator: str = "\n") -> Html:
    """Several pieces in a row; plain ones are escaped."""
    return Html(separator.join(_escaped(part) for part in parts))


def element(name: str, /, *children: str, **attributes: object) -> Html:
    """One element.

    Args:
        name (str): of the tag.
        *children (str): plain text is escaped, `Html` is not.
        **attributes: a trailing underscore is dropped (``class_``), others become dashes
            (``aria_label``). None and False leave the attribute out, True gives its name alone.

    Example:
        >>> element("a", "R & D", href="#top", class_="link")
        '<a href="#top" class="link">R &amp; D</a>'
    """
    opening = f"<{name}{_attributes(attributes)}>"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{''.join(_escaped(child) for child in children)}</{name}>")


def raw_element(name: str, content: str) -> Html:
    """A style or script of our own, whose content is no HTML.

    Raises:
        ValueError: the content would end the element.
    """
    if f"</{name}" in content.lower():
        raise ValueError(f"The content of <{name}> holds its end tag.")
    return Html(f"<{name}>\n{content.strip()}\n</{name}>")


def table(
    caption: str,
    head: Sequence[Sequence[Html]],
    body: Iterable[Sequence[Html]],
    **attributes: object,
) -> Html:
    """A table with a caption, in a box that scrolls sideways on a narrow screen.

    Args:
        caption (str): what the table shows.
        head (Sequence[Sequence[Html]]): rows of ``th`` elements.
        body (Iterable[Sequence[Html]]): rows of ``th`` and ``td`` elements.
        **attributes: of the table.
    """
    content = element(
        "table",
        # The inner element can stay in view while the table scrolls.
        element("caption", element("span", caption)),
        element("thead", *(element("tr", *row) for row in head)),
        element("tbody", *(join([Html("\n"), element("tr", *row)], "") for row in body)),
        **attributes,
    )
    # Focusable, so that it can be scrolled by keyboard.
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _attributes(attributes: dict[str, object]) -> str:
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            written.append(f' {key}="{html.escape(str(value), quote=True)}"')
    return "".join(written)


def _escaped(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text, quote=False)
