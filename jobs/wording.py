"""The words of a refusal: values as messages show them, and what is wrong with a text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

# JSON escapes the controls below U+0020 itself. Terminals act on U+009B as on
# ESC [, some readers of lines break them at U+2028 and U+2029, and bidirectional
# marks show text in another order than it has.
_UNESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LONGEST_SHOWN_CHARACTERS = 60
LONGEST_SHOWN_BITS = 128


def describe(value: object) -> str:
    """A value as a message shows it: short, in JSON's words, without control characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN_BITS:
        return "a number of many digits"
    if isinstance(value, str) and len(value) > LONGEST_SHOWN_CHARACTERS:
        return repr(value[:LONGEST_SHOWN_CHARACTERS]) + "..."
    return repr(value)


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """The text with every character that is not for showing spelt as an escape.

    Besides what moves a terminal's cursor that is what reorders text
    (bidirectional marks) and what cannot be seen.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or (keep_newlines and each == "\n")
        else each.encode("unicode_escape", "backslashreplace").decode()
        for each in text
    )


def text_problem(text: str) -> str | None:
    """Why a text cannot be stored or tokenised, if it cannot."""
    if "\0" in text:
        return "holds a NUL character, which the database cannot store; expected text without it"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair (\\ud800 to \\udfff); expected whole characters"
    return None


def likeliest_meant(name: str, known: Collection[str]) -> str:
    """The hint " (did you mean 'temperature'?)", or nothing where no name is near."""
    import difflib  # costs start-up time and is needed for mistakes only

    close = difflib.get_close_matches(name[:LONGEST_SHOWN_CHARACTERS], known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def json_text(document: object, *, indent: int | None = None) -> str:
    """JSON in UTF-8 on one line unless indented, safe to show on a terminal."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return _UNESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
