"""What a request may ask for: the generation parameters, their ranges and their defaults.

One table serves the checks, the command's options and the documentation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import BadInputError
from jobs.prompts.parameter import Parameter
from jobs.wording import describe, likeliest_meant


class ParameterError(BadInputError):
    """A generation parameter was refused.

    Attributes:
        problems: All of them, each saying what was expected.
    """

    code = "bad_parameter"

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


PARAMETERS: Mapping[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter(
            name="max_new_tokens",
            kind="integer",
            default=128,
            help="the most tokens a completion may have",
            low=1,
            high=1_000_000,
        ),
        Parameter(
            name="min_new_tokens",
            kind="integer",
            default=0,
            help="the fewest tokens before the model may end a completion",
            low=0,
            high=1_000_000,
        ),
        Parameter(
            name="temperature",
            kind="number",
            default=0.0,
            help="how freely tokens are drawn; 0 always takes the likeliest (greedy)",
            low=0,
            high=5,
        ),
        Parameter(
            name="top_p",
            kind="number",
            default=1.0,
            help="draw from the likeliest tokens that make up this share; 1 is off",
            low=0,
            high=1,
            above_low=True,
        ),
        Parameter(
            name="top_k",
            kind="integer",
            default=0,
            help="draw from this many of the likeliest tokens; 0 is off",
            low=0,
            high=1_000_000,
        ),
        Parameter(
            name="repetition_penalty",
            kind="number",
            default=1.0,
            help="above 1 makes tokens that were already used less likely; 1 is off",
            low=0,
            high=10,
            above_low=True,
        ),
        Parameter(
            name="stop",
            kind="strings",
            default=None,
            help="end a completion before the first of these strings",
            low=0,
            high=16,
        ),
        Parameter(
            name="seed",
            kind="integer",
            default=None,
            help="makes drawn tokens repeatable; one is derived for each prompt if not given",
            low=0,
            high=2**63 - 1,  # what a signed 64-bit column holds
        ),
        Parameter(
            name="eos_token_ids",
            kind="token_ids",
            default=None,
            help="the tokens that end a completion, in place of the model's own; "
            "with an empty list only the length and stop strings end it",
            low=0,
            high=16,
        ),
        Parameter(
            name="logprobs",
            kind="integer",
            default=None,
            help="tell the logprob of each new token and of this many of the likeliest",
            low=0,
            high=20,
        ),
        Parameter(
            name="echo",
            kind="boolean",
            default=False,
            help="begin the completion with the prompt",
        ),
    )
}


# A row of the results is one prompt; several completions would have no key.
REFUSED_PARAMETERS: Mapping[str, str] = dict.fromkeys(
    ("num_return_sequences", "n"),
    "a prompt has one completion; repeat the line (with another seed) to have more",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationParameters:
    """Every parameter of one request, resolved.

    A seed of None is derived where it runs; eos_token_ids None are the
    checkpoint's own; logprobs None tells of none.
    """

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: tuple[str, ...]
    seed: int | None
    eos_token_ids: tuple[int, ...] | None
    logprobs: int | None
    echo: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRequest:
    """One prompt of a file, checked; exactly one of prompt and messages is set."""

    line: int  # where it begins in the file, from 1
    custom_id: str | None  # the user's own name for it, unique in the file
    prompt: str | None
    messages: list[dict[str, str]] | None  # role and content of each
    parameters: dict[str, Any]  # this line's own only, normalised
    model: str | None = None  # which one an OpenAI line asks for


def parse_parameters(
    raw: Mapping[str, object], *, other_keys: Collection[str] = ()
) -> dict[str, Any]:
    """The parameters that are given, each in its normal form.

    None (null in a file) counts as not given.

    Args:
        raw: The parameters as a user wrote them.
        other_keys: Keys that may stand beside parameters where raw comes from,
            for the message about an unknown one.

    Raises:
        ParameterError: With every problem.
    """
    parsed: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in raw.items():
        parameter = PARAMETERS.get(name)
        if parameter is None:
            problems.append(unknown_problem("parameter", name, [*other_keys, *PARAMETERS]))
        elif value is not None:
            try:
                parsed[name] = parameter.parse(value)
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise ParameterError(problems)
    return parsed


def resolve_parameters(
    job_defaults: Mapping[str, object], overrides: Mapping[str, object]
) -> GenerationParameters:
    """Every parameter of one request: the line's own, else the job's, else the default.

    Raises:
        ParameterError: One is refused, or they contradict each other.
    """
    merged = parse_parameters(job_defaults) | parse_parameters(overrides)
    if problem := length_problem(merged):
        raise ParameterError([problem])
    values = {name: merged.get(name, known.default) for name, known in PARAMETERS.items()}
    values["stop"] = tuple(values["stop"] or ())
    if values["eos_token_ids"] is not None:
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
    return GenerationParameters(**values)


def length_problem(merged: Mapping[str, Any]) -> str | None:
    """Why the shortest and the longest completion contradict each other, if they do."""
    shortest = merged.get("min_new_tokens", PARAMETERS["min_new_tokens"].default)
    longest = merged.get("max_new_tokens", PARAMETERS["max_new_tokens"].default)
    if shortest <= longest:
        return None
    return f"min_new_tokens: {shortest} is too many; expected at most max_new_tokens, {longest}"


def unknown_problem(noun: str, name: str, known: Collection[str]) -> str:
    """The words for a key that is not known, or is refused on purpose."""
    if name in REFUSED_PARAMETERS:
        return f"{name}: not supported, since {REFUSED_PARAMETERS[name]}"
    hint = likeliest_meant(name, known)
    return f"unknown {noun} {describe(name)}{hint}; known: {', '.join(known)}"
