"""Text from a run, which may hold anything, as a part of HTML or SVG."""

import html
import re

MAX_TEXT = 400  # characters of a text from a run
# Control characters, those that change the direction of the text around them, and halves of surrogate pairs, which
# stand for the bytes of a file name that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(value: object, most: int = MAX_TEXT) -> str:
    """A text from anywhere as HTML, at most `most` characters of it."""
    words = value if isinstance(value, str) else str(value)
    return html.escape(_UNPRINTABLE.sub("\ufffd", words[:most]) + (" ..." if len(words) > most else ""))
