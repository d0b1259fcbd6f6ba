"""One line's request while it is being checked: every problem is kept, not only the first."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.prompts.parameters import (
    PARAMETERS,
    ParameterError,
    PromptRequest,
    length_problem,
    parse_parameters,
)
from jobs.wording import describe, text_problem

LONGEST_CUSTOM_ID_CHARACTERS = 512


ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedLine:
    """A line with problems.

    Attributes:
        line: Where it begins, from 1; None when the whole file is refused.
        problems: What is wrong and what was expected, without file and line.
        custom_id: The line's custom_id if that much was fine: a later line that
            uses it again is refused in the same round.
    """

    line: int | None
    problems: tuple[str, ...]
    custom_id: str | None = None


class RequestDraft:
    """Takes a line's values one by one and ends as a request or a refusal."""

    __slots__ = ("custom_id", "line", "messages", "model", "parameters", "problems", "prompt")

    def __init__(self, line: int) -> None:
        self.line = line
        self.problems: list[str] = []
        self.custom_id: str | None = None
        self.prompt: str | None = None
        self.messages: list[dict[str, str]] | None = None
        self.parameters: dict[str, Any] = {}
        self.model: str | None = None

    def refuse(self, problem: str) -> None:
        self.problems.append(problem)

    def take_custom_id(self, value: object) -> None:
        if value is None:
            return
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown = describe(value)
            self.refuse(f'custom_id: {shown} is a number; expected a string such as "{shown}"')
        elif not isinstance(value, str):
            self.refuse(f"custom_id: {describe(value)} is not a string; expected a string")
        elif not value:
            self.refuse("custom_id is empty; expected a string, or no custom_id")
        elif len(value) > LONGEST_CUSTOM_ID_CHARACTERS:
            self.refuse(
                f"custom_id has {len(value)} characters; expected at most "
                f"{LONGEST_CUSTOM_ID_CHARACTERS}"
            )
        elif problem := text_problem(value):
            self.refuse(f"custom_id {problem}")
        else:
            self.custom_id = value

    def take_prompt(self, value: object) -> None:
        if not isinstance(value, str):
            self.refuse(f"prompt: {describe(value)} is not a string; expected a string")
        elif not value:
            self.refuse("prompt is empty; expected at least one character")
        elif problem := text_problem(value):
            self.refuse(f"prompt {problem}")
        else:
            self.prompt = value

    def take_messages(self, value: object) -> None:
        if not isinstance(value, list) or not value:
            self.refuse(
                f"messages: {describe(value)} is not usable; expected a list of at least one "
                'message such as {"role": "user", "content": "..."}'
            )
            return
        self.messages = [
            self._message(f"messages[{index}]", message) for index, message in enumerate(value)
        ]

    def take_parameters(
        self, raw: Mapping[str, object], *, other_keys: Collection[str] = ()
    ) -> None:
        try:
            self.parameters |= parse_parameters(raw, other_keys=other_keys)
        except ParameterError as error:
            self.problems.extend(error.problems)

    def take_parameter(self, name: str, value: object, *, shown_as: str) -> None:
        """Take a value that a known parameter was given under some other key."""
        try:
            self.parameters[name] = PARAMETERS[name].parse(value)
        except ValueError as error:
            self.refuse(f"{shown_as}: {error}")

    def take_parameter_text(self, name: str, text: str) -> None:
        """Take a known parameter's value as text spells it."""
        try:
            self.parameters[name] = PARAMETERS[name].parse_text(text)
        except ValueError as error:
            self.refuse(f"{name}: {error}")

    def finish(self, job_parameters: Mapping[str, Any]) -> PromptRequest | RefusedLine:
        """The request, or all that is wrong with it."""
        if not self.problems and self.parameters:
            contradiction = length_problem({**job_parameters, **self.parameters})
            if contradiction:
                self.refuse(contradiction)
        if self.problems:
            return RefusedLine(
                line=self.line, problems=tuple(self.problems), custom_id=self.custom_id
            )
        return PromptRequest(
            line=self.line,
            custom_id=self.custom_id,
            prompt=self.prompt,
            messages=self.messages,
            parameters=self.parameters,
            model=self.model,
        )

    def _message(self, where: str, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            self.refuse(f"{where}: {describe(value)} is not an object with role and content")
            return {}
        role = value.get("role")
        if role not in ROLES:
            self.refuse(f"{where}.role: {describe(role)} is not a role; expected {_any_of(ROLES)}")
        for key, given in value.items():
            # Tools write "refusal": null and "tool_calls": [] into every message.
            if key not in ("role", "content") and given not in (None, "", [], {}):
                self.refuse(f"{where}: {describe(key)} is not supported; expected role and content")
        content = self._content(f"{where}.content", value.get("content"))
        return {"role": str(role), "content": content}

    def _content(self, where: str, value: object) -> str:
        if isinstance(value, str):
            if problem := text_problem(value):
                self.refuse(f"{where} {problem}")
            return value
        if not isinstance(value, list):
            self.refuse(f"{where}: {describe(value)} is not text; expected a string or text parts")
            return ""
        return "".join(self._part(f"{where}[{index}]", part) for index, part in enumerate(value))

    def _part(self, where: str, value: object) -> str:
        # Other keys of a text part, such as cache_control, do not change the text.
        if not isinstance(value, dict) or value.get("type") != "text":
            kind = value.get("type") if isinstance(value, dict) else value
            self.refuse(
                f"{where}: a part of type {describe(kind)} is not supported; "
                'expected {"type": "text", "text": "..."}'
            )
            return ""
        text = value.get("text")
        if isinstance(text, str):
            return self._content(f"{where}.text", text)
        self.refuse(f"{where}.text: {describe(text)} is not text; expected a string")
        return ""


def _any_of(choices: Collection[str]) -> str:
    *most, last = choices
    return f"{', '.join(most)} or {last}"
