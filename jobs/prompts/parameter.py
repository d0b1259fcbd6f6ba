"""One generation parameter: what its value may be, from a file's JSON or from text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal

from jobs.wording import describe, text_problem

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,40}")


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


# Beyond any vocabulary, and within what every library takes for an id.
GREATEST_TOKEN_ID = 2**31 - 1


# Above it a float stands for several whole numbers.
GREATEST_EXACT_FLOAT = 2**53


Kind = Literal["integer", "number", "boolean", "strings", "token_ids"]


NOUNS: dict[Kind, str] = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "strings": "a string",
    "token_ids": "a token id",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One generation parameter.

    Attributes:
        name: Its key in files and, with dashes, its flag.
        kind: What its value is; "strings" and "token_ids" are one of them or a list.
        default: The value where nobody gives one.
        help: What it does, in a sentence without a full stop.
        low: The least number allowed (lists: the fewest entries).
        high: The greatest (lists: the most).
        above_low: Whether low itself is refused.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    low: int = 0
    high: int = 0
    above_low: bool = False

    @property
    def range_text(self) -> str:
        """The range in words, such as "from 0 to 5"."""
        if self.kind == "token_ids":
            return f"one, or a JSON list of {self.low} to {self.high}"
        if self.above_low:
            return f"above {self.low} and up to {self.high}"
        return f"from {self.low} to {self.high}"

    @property
    def expected(self) -> str:
        """What a value must be, for messages and documentation."""
        if self.kind == "boolean":
            return self._noun
        if self.kind == "strings":
            return f"a string or a list of {self.low} to {self.high} strings, none empty"
        if self.kind == "token_ids":
            return (
                f"a token id or a list of {self.low} to {self.high} of them, "
                f"each a whole number from 0 to {GREATEST_TOKEN_ID}"
            )
        return f"{self._noun} {self.range_text}"

    def parse(self, value: object) -> Any:
        """The value in its one normal form.

        Raises:
            ValueError: It is refused; the text says why and what was expected.
        """
        if self.kind == "strings":
            return self._parse_strings(value)
        if self.kind == "token_ids":
            return self._parse_token_ids(value)
        if self.kind == "boolean":
            if not isinstance(value, bool):
                raise ValueError(f"{describe(value)} is not usable; expected {self.expected}")
            return value
        number: Any = _whole(value) if self.kind == "integer" else value
        # bool is an int to Python but not to anyone who writes a file.
        wanted = (int,) if self.kind == "integer" else (int, float)
        if type(number) not in wanted:
            raise ValueError(f"{describe(value)} is not {self._noun}; expected {self.expected}")
        # Written so that NaN fails it too.
        if not (self.low <= number <= self.high) or (self.above_low and number == self.low):
            raise ValueError(f"{describe(value)} is out of range; expected {self.expected}")
        # Adding 0.0 turns -0.0 into 0.0, so equal values are written alike.
        return number if self.kind == "integer" else float(number) + 0.0

    def parse_text(self, text: str) -> Any:
        """The value that a CSV cell or a flag spells.

        Raises:
            ValueError: As parse does.
        """
        if self.kind == "strings":
            return self.parse(_strings_from_text(text))
        spelled = text.strip()
        value: object = text
        if self.kind == "boolean":
            value = {"true": True, "false": False}.get(spelled.lower(), text)
        elif self.kind == "token_ids" and spelled.startswith("["):
            value = _list_from_text(text, "token ids")
        elif _WHOLE_NUMBER.fullmatch(spelled):
            value = int(spelled)
        elif _NUMBER.fullmatch(spelled):
            value = float(spelled)
        return self.parse(value)

    @property
    def _noun(self) -> str:
        return NOUNS[self.kind]

    def _parse_strings(self, value: object) -> list[str]:
        strings = self._listed(value, str)
        for string in strings:
            if not isinstance(string, str) or not string:
                raise ValueError(f"{describe(string)} is not usable; expected {self.expected}")
            if problem := text_problem(string):
                raise ValueError(problem)
        return strings

    def _parse_token_ids(self, value: object) -> list[int]:
        ids: list[Any] = [_whole(each) for each in self._listed(value, int | float)]
        for each in ids:
            if type(each) is not int or not 0 <= each <= GREATEST_TOKEN_ID:
                raise ValueError(f"{describe(each)} is not usable; expected {self.expected}")
        return ids

    def _listed(self, value: object, entry: type | UnionType) -> list[Any]:
        """The value as a list of as many entries as are allowed; one alone may stand for it."""
        entries = [value] if isinstance(value, entry) else value
        if not isinstance(entries, list | tuple) or not self.low <= len(entries) <= self.high:
            raise ValueError(f"{describe(value)} is not usable; expected {self.expected}")
        return list(entries)


def _whole(value: object) -> object:
    """The value, with 8.0 as 8: pandas writes whole numbers so where a column has gaps."""
    if not isinstance(value, float) or abs(value) > GREATEST_EXACT_FLOAT:
        return value
    return int(value) if value.is_integer() else value


def _strings_from_text(text: str) -> object:
    # "[INST]" is a stop string of its own; '["a"' is a list gone wrong.
    if text.startswith("["):
        try:
            return _list_from_text(text, "strings")
        except ValueError:
            if text.startswith('["'):
                raise
    return text


def _list_from_text(text: str, entries: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{describe(text)} is not a JSON list of {entries}") from None
