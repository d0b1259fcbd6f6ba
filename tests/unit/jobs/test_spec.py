"""The promises of the generation parameters: ranges, normal forms, and refusals in full."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.prompts.parameters import (
    PARAMETERS,
    GenerationParameters,
    ParameterError,
    parse_parameters,
    resolve_parameters,
)

SEED_RANGE = "a whole number from 0 to 9223372036854775807"
IDS = "a token id or a list of 0 to 16 of them, each a whole number from 0 to 2147483647"
STOP = "a string or a list of 0 to 16 strings, none empty"


def refusal(raw: dict[str, object]) -> list[str]:
    with pytest.raises(ParameterError) as caught:
        parse_parameters(raw)
    return caught.value.problems


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (
            {"temperature": 9},
            "temperature: 9 is out of range; expected a number from 0 to 5",
        ),
        (
            {"temperature": -0.1},
            "temperature: -0.1 is out of range; expected a number from 0 to 5",
        ),
        (
            {"temperature": float("nan")},
            "temperature: nan is out of range; expected a number from 0 to 5",
        ),
        (
            {"temperature": float("inf")},
            "temperature: inf is out of range; expected a number from 0 to 5",
        ),
        (
            {"temperature": "hot"},
            "temperature: 'hot' is not a number; expected a number from 0 to 5",
        ),
        (
            {"temperature": True},
            "temperature: true is not a number; expected a number from 0 to 5",
        ),
        (
            {"temperature": [1]},
            "temperature: a list of 1 is not a number; expected a number from 0 to 5",
        ),
        ({"top_p": 0}, "top_p: 0 is out of range; expected a number above 0 and up to 1"),
        ({"top_p": 1.01}, "top_p: 1.01 is out of range; expected a number above 0 and up to 1"),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty: 0.0 is out of range; expected a number above 0 and up to 10",
        ),
        (
            {"top_k": -1},
            "top_k: -1 is out of range; expected a whole number from 0 to 1000000",
        ),
        (
            {"max_new_tokens": 0},
            "max_new_tokens: 0 is out of range; expected a whole number from 1 to 1000000",
        ),
        (
            {"max_new_tokens": 3.5},
            "max_new_tokens: 3.5 is not a whole number; expected a whole number from 1 to 1000000",
        ),
        ({"seed": 2.0**60}, f"seed: {2.0**60} is not a whole number; expected {SEED_RANGE}"),
        (
            {"min_new_tokens": False},
            "min_new_tokens: false is not a whole number; "
            "expected a whole number from 0 to 1000000",
        ),
        ({"seed": 2**63}, f"seed: 9223372036854775808 is out of range; expected {SEED_RANGE}"),
        (
            {"seed": 10**5000},
            f"seed: a number of many digits is out of range; expected {SEED_RANGE}",
        ),
        ({"stop": ["x"] * 17}, f"stop: a list of 17 is not usable; expected {STOP}"),
        ({"stop": ["x", ""]}, f"stop: '' is not usable; expected {STOP}"),
        ({"stop": ""}, f"stop: '' is not usable; expected {STOP}"),
        ({"stop": 7}, f"stop: 7 is not usable; expected {STOP}"),
        (
            {"stop": "a\0"},
            "stop: holds a NUL character, which the database cannot store; "
            "expected text without it",
        ),
        (
            {"stop": ["\ud800"]},
            "stop: holds half of a surrogate pair (\\ud800 to \\udfff); expected whole characters",
        ),
        ({"eos_token_ids": [1] * 17}, f"eos_token_ids: a list of 17 is not usable; expected {IDS}"),
        ({"eos_token_ids": [1, -1]}, f"eos_token_ids: -1 is not usable; expected {IDS}"),
        (
            {"eos_token_ids": 2**31},
            f"eos_token_ids: 2147483648 is not usable; expected {IDS}",
        ),
        ({"eos_token_ids": True}, f"eos_token_ids: true is not usable; expected {IDS}"),
        ({"eos_token_ids": [2.5]}, f"eos_token_ids: 2.5 is not usable; expected {IDS}"),
        ({"eos_token_ids": "</s>"}, f"eos_token_ids: '</s>' is not usable; expected {IDS}"),
        (
            {"logprobs": True},
            "logprobs: true is not a whole number; expected a whole number from 0 to 20",
        ),
        ({"logprobs": 21}, "logprobs: 21 is out of range; expected a whole number from 0 to 20"),
        ({"echo": 1}, "echo: 1 is not usable; expected true or false"),
        ({"echo": "true"}, "echo: 'true' is not usable; expected true or false"),
        (
            {"temprature": 1},
            "unknown parameter 'temprature' (did you mean 'temperature'?); known: "
            + ", ".join(PARAMETERS),
        ),
        ({"zzz": 1}, "unknown parameter 'zzz'; known: " + ", ".join(PARAMETERS)),
        (
            {"n": 2},
            "n: not supported, since a prompt has one completion; "
            "repeat the line (with another seed) to have more",
        ),
        (
            {"num_return_sequences": 1},
            "num_return_sequences: not supported, since a prompt has one completion; "
            "repeat the line (with another seed) to have more",
        ),
    ],
)
def test_a_bad_parameter_is_refused_with_what_was_expected(
    raw: dict[str, object], problem: str
) -> None:
    assert refusal(raw) == [problem]


def test_all_problems_are_reported_at_once() -> None:
    problems = refusal({"temperature": 9, "top_p": 2, "nonsense": 1, "seed": 4})
    assert [problem.split()[0] for problem in problems] == ["temperature:", "top_p:", "unknown"]


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        ({}, {}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": -0.0}, {"temperature": 0.0}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"seed": None, "stop": None}, {}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"eos_token_ids": 2}, {"eos_token_ids": [2]}),
        ({"eos_token_ids": (2, 0)}, {"eos_token_ids": [2, 0]}),
        ({"eos_token_ids": []}, {"eos_token_ids": []}),
        ({"stop": []}, {"stop": []}),
        ({"logprobs": 0, "echo": True}, {"logprobs": 0, "echo": True}),
        ({"max_new_tokens": 1_000_000}, {"max_new_tokens": 1_000_000}),
        # Libraries for tables write whole numbers as floats where a column has gaps.
        ({"max_new_tokens": 8.0, "seed": 2.0**53}, {"max_new_tokens": 8, "seed": 2**53}),
        ({"top_k": -0.0, "eos_token_ids": [2.0, 3]}, {"top_k": 0, "eos_token_ids": [2, 3]}),
        ({"eos_token_ids": 2.0}, {"eos_token_ids": [2]}),
    ],
)
def test_a_good_parameter_comes_out_in_its_normal_form(
    raw: dict[str, object], parsed: dict[str, Any]
) -> None:
    # repr tells 0.0 from -0.0 and 1 from 1.0, which == does not.
    assert repr(parse_parameters(raw)) == repr(parsed)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("temperature", " 1 ", 1.0),
        ("temperature", "1e-1", 0.1),
        ("max_new_tokens", "64", 64),
        ("max_new_tokens", "8.0", 8),
        ("stop", "END", ["END"]),
        ("stop", '["a", "b"]', ["a", "b"]),
        ("stop", "[INST]", ["[INST]"]),
        ("eos_token_ids", "2", [2]),
        ("eos_token_ids", " [2, 0] ", [2, 0]),
        ("eos_token_ids", "[]", []),
        ("echo", "True", True),
        ("echo", " false", False),
    ],
)
def test_a_parameter_reads_what_a_flag_or_a_cell_spells(
    name: str, text: str, value: object
) -> None:
    assert PARAMETERS[name].parse_text(text) == value


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "max_new_tokens",
            "3.5",
            "3.5 is not a whole number; expected a whole number from 1 to 1000000",
        ),
        ("temperature", "nan", "'nan' is not a number; expected a number from 0 to 5"),
        ("temperature", "1e999", "inf is out of range; expected a number from 0 to 5"),
        (
            "top_k",
            "1_0",
            "'1_0' is not a whole number; expected a whole number from 0 to 1000000",
        ),
        ("stop", '["a"', "'[\"a\"' is not a JSON list of strings"),
        ("eos_token_ids", "[2", "'[2' is not a JSON list of token ids"),
        ("eos_token_ids", "2 0", f"'2 0' is not usable; expected {IDS}"),
        ("echo", "yes", "'yes' is not usable; expected true or false"),
        ("stop", "[1]", f"1 is not usable; expected {STOP}"),
    ],
)
def test_text_that_spells_no_value_is_refused(name: str, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        PARAMETERS[name].parse_text(text)
    assert str(caught.value) == problem


def test_nothing_given_resolves_to_greedy_defaults() -> None:
    assert resolve_parameters({}, {}) == GenerationParameters(
        max_new_tokens=128,
        min_new_tokens=0,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        stop=(),
        seed=None,
        eos_token_ids=None,
        logprobs=None,
        echo=False,
    )


def test_a_lines_own_parameter_goes_before_the_jobs() -> None:
    resolved = resolve_parameters({"temperature": 0.2, "seed": 1}, {"temperature": 0.9})
    assert (resolved.temperature, resolved.seed) == (0.9, 1)


def test_a_line_s_empty_list_of_ending_tokens_is_not_one_that_was_not_given() -> None:
    resolved = resolve_parameters({"eos_token_ids": [2]}, {"eos_token_ids": []})
    assert resolved.eos_token_ids == ()
    assert resolve_parameters({"eos_token_ids": [2]}, {}).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("job", "line", "longest"),
    [
        ({}, {"min_new_tokens": 200}, 128),
        ({"max_new_tokens": 50}, {"min_new_tokens": 200}, 50),
        ({"min_new_tokens": 200}, {"max_new_tokens": 199}, 199),
    ],
)
def test_a_minimum_above_the_maximum_is_refused_after_merging(
    job: dict[str, object], line: dict[str, object], longest: int
) -> None:
    with pytest.raises(ParameterError) as caught:
        resolve_parameters(job, line)
    assert caught.value.problems == [
        f"min_new_tokens: 200 is too many; expected at most max_new_tokens, {longest}"
    ]


@pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=lambda p: p.name)
def test_every_default_is_itself_allowed(parameter: Any) -> None:
    if parameter.default is not None:
        assert parameter.parse(parameter.default) == parameter.default


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*PARAMETERS, "n"]) | st.text(max_size=5), json_values))
def test_parsing_either_refuses_or_reaches_a_fixed_point(raw: dict[str, object]) -> None:
    try:
        parsed = parse_parameters(raw)
    except ParameterError:
        return
    assert repr(parse_parameters(parsed)) == repr(parsed)
