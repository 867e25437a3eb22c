"""The builders escape what is not theirs."""

from __future__ import annotations

import pytest

from logn_d2.report.html import Html, element, join, raw_element


def test_text_and_attributes_are_escaped_once() -> None:
    inner = element("b", "<&>")
    assert inner == "<b>&lt;&amp;&gt;</b>"
    assert element("p", inner, title='"<') == '<p title="&quot;&lt;"><b>&lt;&amp;&gt;</b></p>'
    assert join(["<", Html("<br>")], "") == "&lt;<br>"


def test_attributes_that_are_none_or_false_are_left_out() -> None:
    assert element("img", src="x", alt="", hidden=True, title=None) == '<img src="x" alt="" hidden>'
    assert element("th", scope="col", class_="a", aria_label="b") == (
        '<th scope="col" class="a" aria-label="b"></th>'
    )


def test_a_script_can_not_end_itself() -> None:
    with pytest.raises(ValueError, match="end tag"):
        raw_element("script", 'x = "</SCRIPT>"')
