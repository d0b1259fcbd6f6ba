"""The promises to OpenAI's batch lines: read in full, or refused; nothing is dropped."""

from __future__ import annotations

import json

import pytest

from jobs.prompts.openai import IGNORED, NEUTRAL
from jobs.prompts.parameters import PARAMETERS, resolve_parameters
from tests.unit.jobs.prompt_contents import openai, problems_of, request, requests_of, summary_of

BODY_KEYS = [
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "top_logprobs",
    "ignore_eos",
    "stop_token_ids",
    *PARAMETERS,
]
ONE_COMPLETION = "(a prompt has one completion; repeat the line to have more)"
LIST_PROMPT = "is not a string; expected a string"


def test_a_completion_line_is_a_request() -> None:
    body = {"model": "m", "prompt": ["Hi"], "max_tokens": 5, "temperature": 0, "top_k": 3}
    line = openai(body, custom_id="a", method="POST")
    parameters = {"max_new_tokens": 5, "temperature": 0.0, "top_k": 3}
    assert requests_of(line) == [request(1, "Hi", custom_id="a", parameters=parameters, model="m")]


def test_a_chat_line_is_a_request() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    line = openai({"messages": messages, "max_completion_tokens": 5}, url="/v1/chat/completions")
    (read,) = requests_of(line)
    assert (read.messages, read.parameters) == (messages, {"max_new_tokens": 5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", 1),
        ("best_of", 1),
        ("stream", False),
        ("logprobs", None),
        ("logprobs", False),
        ("presence_penalty", 0),
        ("frequency_penalty", 0.0),
        ("user", "u"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("n", 1.0),
        ("suffix", ""),
        ("logit_bias", {}),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("tools", []),
        ("tool_choice", "auto"),
        ("tool_choice", "none"),
        ("functions", []),
        ("function_call", "none"),
        ("parallel_tool_calls", True),
        ("reasoning_effort", "medium"),
        ("stream_options", {"include_usage": True}),
        ("service_tier", "flex"),
        ("prompt_cache_key", "k"),
        ("min_p", 0.0),
        ("skip_special_tokens", True),
        ("chat_template_kwargs", {}),
    ],
)
def test_an_option_that_changes_nothing_is_accepted(key: str, value: object) -> None:
    assert requests_of(openai({"prompt": "Hi", key: value})) == [request(1, "Hi")]


@pytest.mark.parametrize("key", [*sorted({*BODY_KEYS, *NEUTRAL, *IGNORED}), "audio", "guided_json"])
def test_null_in_a_body_means_not_given(key: str) -> None:
    assert requests_of(openai({key: None} | {"prompt": "Hi"})) == [request(1, "Hi")]
    messages = [{"role": "user", "content": "Hi", "name": None}]
    url = "/v1/chat/completions"
    (read,) = requests_of(openai({key: None} | {"messages": messages}, url=url))
    assert (read.prompt, read.parameters, read.model) == (None, {}, None)


@pytest.mark.parametrize("key", ["custom_id", "method", "id"])
def test_null_in_an_openai_line_means_not_given(key: str) -> None:
    line = {"url": "/v1/completions", "body": {"prompt": "Hi"}, key: None}
    assert requests_of(json.dumps(line)) == [request(1, "Hi")]
    line = {"url": None, "body": {"prompt": "Hi"}, key: None}
    assert requests_of(json.dumps(line)) == [request(1, "Hi")]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tools", [{"type": "function"}], "a list of 1 is not supported; expected []"),
        ("tool_choice", "required", '\'required\' is not supported; expected "none" or "auto"'),
        ("logit_bias", {"50256": -100}, "an object is not supported; expected {}"),
        (
            "response_format",
            {"type": "json_object"},
            'an object is not supported; expected {"type": "text"}',
        ),
        ("modalities", ["text", "audio"], 'a list of 2 is not supported; expected ["text"]'),
        ("reasoning_effort", "low", "'low' is not supported; expected \"medium\""),
        ("skip_special_tokens", False, "false is not supported; expected true"),
        ("min_p", False, "false is not supported; expected 0"),
        (
            "chat_template_kwargs",
            {"enable_thinking": False},
            "an object is not supported; expected {}",
        ),
    ],
)
def test_a_value_that_would_change_the_answer_is_refused_by_name(
    key: str, value: object, expected: str
) -> None:
    assert problems_of(openai({"prompt": "Hi", key: value})) == [f":1: body.{key}: {expected}"]


def test_an_empty_list_of_stop_strings_is_none() -> None:
    (read,) = requests_of(openai({"prompt": "Hi", "stop": []}))
    assert resolve_parameters({"stop": ["END"]}, read.parameters).stop == ()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"n": 2}, f"body.n: 2 is not supported; expected 1 {ONE_COMPLETION}"),
        ({"n": True}, f"body.n: true is not supported; expected 1 {ONE_COMPLETION}"),
        ({"best_of": 2}, f"body.best_of: 2 is not supported; expected 1 {ONE_COMPLETION}"),
        ({"stream": True}, "body.stream: true is not supported; expected false"),
        (
            {"logprobs": True},
            "body.logprobs: true is not a whole number; expected a whole number from 0 to 20",
        ),
        (
            {"logprobs": 21},
            "body.logprobs: 21 is out of range; expected a whole number from 0 to 20",
        ),
        (
            {"top_logprobs": 5},
            "body.top_logprobs: does not belong to /v1/completions; expected a number in logprobs",
        ),
        ({"echo": 1}, "body.echo: 1 is not usable; expected true or false"),
        ({"presence_penalty": 0.5}, "body.presence_penalty: 0.5 is not supported; expected 0"),
        (
            {"guided_json": {}},
            f"body: unknown key 'guided_json'; known: {', '.join(BODY_KEYS)}; "
            "other keys are not supported",
        ),
        (
            {"max_tokens": 0},
            "body.max_tokens: 0 is out of range; expected a whole number from 1 to 1000000",
        ),
        (
            {"max_tokens": 1, "max_new_tokens": 2},
            "body.max_new_tokens: max_tokens was given as well; expected one of them",
        ),
        ({"model": 7}, "body.model: 7 is not a model's name; expected a string"),
        ({"prompt": ["a", "b"]}, f"prompt: a list of 2 {LIST_PROMPT}"),
        ({"prompt": [1, 2, 3]}, f"prompt: a list of 3 {LIST_PROMPT}"),
        ({"prompt": ""}, "prompt is empty; expected at least one character"),
        (
            {"messages": []},
            "body.messages: does not belong to /v1/completions; expected prompt alone",
        ),
    ],
)
def test_a_body_that_cannot_be_honoured_is_refused(body: dict[str, object], problem: str) -> None:
    assert problems_of(openai({"prompt": "a"} | body)) == [f":1: {problem}"]


def test_a_completion_line_may_ask_for_logprobs_and_an_echo() -> None:
    (read,) = requests_of(openai({"prompt": "Hi", "logprobs": 5, "echo": True}))
    assert read.parameters == {"logprobs": 5, "echo": True}


@pytest.mark.parametrize(
    "url",
    [
        "/chat/completions",
        "/v1/chat/completions/",
        "v1/chat/completions",
        "/openai/chat/completions",
    ],
)
def test_a_chat_url_may_be_spelt_as_other_servers_spell_it(url: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    (read,) = requests_of(openai({"messages": messages}, url=url))
    assert read.messages == messages


@pytest.mark.parametrize("url", ["/completions", "v1/completions", "/openai/v1/completions"])
def test_a_completion_url_may_be_spelt_as_other_servers_spell_it(url: str) -> None:
    assert requests_of(openai({"prompt": "Hi"}, url=url)) == [request(1, "Hi")]


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        ({"min_tokens": 1}, {"min_new_tokens": 1}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"ignore_eos": True}, {"eos_token_ids": []}),
        ({"ignore_eos": True, "stop_token_ids": [2]}, {"eos_token_ids": [2]}),
        ({"ignore_eos": False, "stop_token_ids": []}, {}),
    ],
)
def test_a_parameter_may_have_its_name_in_vllm(
    body: dict[str, object], parameters: dict[str, object]
) -> None:
    (read,) = requests_of(openai({"prompt": "Hi"} | body))
    assert read.parameters == parameters


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"ignore_eos": 1}, "body.ignore_eos: 1 is not usable; expected a boolean"),
        (
            {"ignore_eos": True, "eos_token_ids": [2]},
            "body.eos_token_ids: ignore_eos was given as well; expected one of them",
        ),
        (
            {"stop_token_ids": [2]},
            'body.stop_token_ids: not supported without "ignore_eos": true, since the tokens '
            "replace the model's own; expected eos_token_ids with every token that ends a "
            "completion",
        ),
    ],
)
def test_end_tokens_in_vllms_spelling_that_cannot_be_honoured_are_refused(
    body: dict[str, object], problem: str
) -> None:
    assert problems_of(openai({"prompt": "Hi"} | body)) == [f":1: {problem}"]


def chat(**body: object) -> str:
    messages = [{"role": "user", "content": "Hi"}]
    return openai({"messages": messages} | body, url="/v1/chat/completions")


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"top_logprobs": 5, "logprobs": True}, {"logprobs": 5}),
        ({"logprobs": False, "top_logprobs": None}, {}),
        ({"logprobs": None, "top_logprobs": 0}, {}),
    ],
)
def test_a_chat_line_asks_for_logprobs_with_two_keys(
    body: dict[str, object], parameters: dict[str, object]
) -> None:
    (read,) = requests_of(chat(**body))
    assert read.parameters == parameters


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            {"logprobs": 5},
            "body.logprobs: 5 is not usable in a chat; expected true or false, "
            "and how many in top_logprobs",
        ),
        (
            {"logprobs": True, "top_logprobs": 21},
            "body.top_logprobs: 21 is out of range; expected a whole number from 0 to 20",
        ),
        (
            {"logprobs": True, "top_logprobs": True},
            "body.top_logprobs: true is not a whole number; expected a whole number from 0 to 20",
        ),
        (
            {"top_logprobs": 5},
            "body.top_logprobs: changes nothing without logprobs; expected it to be true",
        ),
    ],
)
def test_logprobs_of_a_chat_that_cannot_be_had_are_refused(
    body: dict[str, object], problem: str
) -> None:
    assert problems_of(chat(**body)) == [f":1: {problem}"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (openai({}), "body.prompt is missing; /v1/completions needs it"),
        (
            openai({"prompt": "a"}, url="/v1/embeddings"),
            "url: '/v1/embeddings' is not supported; "
            "expected /v1/completions or /v1/chat/completions",
        ),
        (
            openai("a"),
            "body: 'a' is not an object; expected an object with prompt or messages",
        ),
        (
            '{"url": "/v1/completions"}',
            "body is missing; expected an object with prompt or messages",
        ),
        (openai({"prompt": "a"}, method="GET"), "method: 'GET' is not supported; expected 'POST'"),
        (
            openai({"prompt": "a"}, temperature=1),
            "unknown key 'temperature'; known: custom_id, method, url, body",
        ),
    ],
)
def test_a_line_of_another_shape_is_refused(line: str, problem: str) -> None:
    assert problems_of(line) == [f":1: {problem}"]


def test_the_summary_names_the_models_asked_for() -> None:
    lines = [openai({"prompt": "a", "model": model}) for model in ("b", "a", "b")]
    assert summary_of("\n".join(lines)).models == ("a", "b")


def test_the_summary_names_at_most_20_models() -> None:
    lines = [openai({"prompt": "a", "model": str(number)}) for number in range(30)]
    assert len(summary_of("\n".join(lines)).models) == 20
