"""Cleaning texts as open_clip does."""

import html

import ftfy
from hypothesis import example, given
from hypothesis import strategies as st

from lookwire_server.encoding.texts import repair


@given(st.one_of(st.text(st.characters(max_codepoint=127)), st.text()))
@example("a\tb")
@example("a &amp;lt; b")
@example("\x1b[1mred\x7f dress")
@example("Â£ 3 – “blue”")
def test_plain_texts_need_no_repair(text: str) -> None:
    """What is left out of the cleaning of plain texts would have changed nothing."""
    assert repair(text) == html.unescape(html.unescape(ftfy.fix_text(text)))
