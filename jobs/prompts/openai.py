"""Lines in the format of OpenAI's batch files, which vLLM and others write too.

``{"custom_id", "method", "url", "body"}``, as platform.openai.com/docs/guides/batch
describes them. What cannot be honoured is refused, never dropped in silence.
"""

from __future__ import annotations

import re

from jobs.prompts.draft import RequestDraft
from jobs.prompts.parameters import PARAMETERS, unknown_problem
from jobs.wording import describe, json_text, text_problem

COMPLETIONS_URL = "/v1/completions"


CHAT_URL = "/v1/chat/completions"


LINE_KEYS = ("custom_id", "method", "url", "body")


# Their names for our parameters.
RENAMED = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",  # vLLM's
}


# vLLM's way to say what ends a completion.
END_KEYS = ("ignore_eos", "stop_token_ids")


# As OpenAI, Azure and other servers spell the two.
_URL = re.compile(r"/?(?:openai/)?(?:v1/)?(chat/)?completions/?")


# Keys that change nothing at these values; tools write them into every line.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
    # vLLM's own.
    "min_p": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}


# Keys for the sender's bookkeeping, or for speed, or for a stream or tools that
# a line cannot ask for anyway; none has a bearing on the completion.
IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "stream_options",
        "parallel_tool_calls",
        "priority",
        "request_id",
    }
)


def is_openai_line(fields: dict[str, object]) -> bool:
    return "body" in fields or "url" in fields


def take_openai_line(draft: RequestDraft, fields: dict[str, object]) -> None:
    """Put an OpenAI batch line's request, or what is wrong with it, into the draft."""
    for key in fields:
        if key not in LINE_KEYS:
            draft.refuse(unknown_problem("key", key, LINE_KEYS))
    draft.take_custom_id(fields.get("custom_id"))
    method = fields.get("method", "POST")
    if method != "POST":
        draft.refuse(f"method: {describe(method)} is not supported; expected 'POST'")
    url = fields.get("url")
    known_url = _URL.fullmatch(url) if isinstance(url, str) else None
    if "url" in fields and known_url is None:
        draft.refuse(
            f"url: {describe(url)} is not supported; expected {COMPLETIONS_URL} or {CHAT_URL}"
        )
    body = fields.get("body")
    if not isinstance(body, dict):
        wrong = f": {describe(body)} is not an object" if "body" in fields else " is missing"
        draft.refuse(f"body{wrong}; expected an object with prompt or messages")
        return
    body = {key: value for key, value in body.items() if value is not None}
    # Without a usable url the body itself says which of the two it is.
    is_chat = "messages" in body if known_url is None else known_url[1] is not None
    _take_text(draft, body, is_chat=is_chat)
    _take_options(draft, body, is_chat=is_chat)
    _take_end_tokens(draft, body)


def _take_text(draft: RequestDraft, body: dict[str, object], *, is_chat: bool) -> None:
    wanted, other = ("messages", "prompt") if is_chat else ("prompt", "messages")
    url = CHAT_URL if is_chat else COMPLETIONS_URL
    if other in body:
        draft.refuse(f"body.{other}: does not belong to {url}; expected {wanted} alone")
    if wanted not in body:
        draft.refuse(f"body.{wanted} is missing; {url} needs it")
    elif is_chat:
        draft.take_messages(body["messages"])
    else:
        draft.take_prompt(_one_prompt(body["prompt"]))


def _one_prompt(value: object) -> object:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return value


def _take_options(draft: RequestDraft, body: dict[str, object], *, is_chat: bool) -> None:
    given_as: dict[str, str] = {}
    for key, value in body.items():
        if key in ("prompt", "messages", *END_KEYS) or key in IGNORED:
            continue
        if key == "model":
            _take_model(draft, value)
        elif key == "logprobs" and (is_chat or value is False):
            _take_chat_logprobs(draft, body)
        elif key == "top_logprobs":
            _check_top_logprobs(draft, body, is_chat=is_chat)
        elif key in NEUTRAL:
            _check_neutral(draft, key, value)
        else:
            _take_parameter(draft, key, value, given_as)


def _take_end_tokens(draft: RequestDraft, body: dict[str, object]) -> None:
    """VLLM's stop tokens end a completion beside the model's own, which may be switched off."""
    ignores_own = body.get("ignore_eos", False)
    token_ids = body.get("stop_token_ids", [])
    if not isinstance(ignores_own, bool):
        draft.refuse(f"body.ignore_eos: {describe(ignores_own)} is not usable; expected a boolean")
    elif ignores_own and "eos_token_ids" in body:
        draft.refuse("body.eos_token_ids: ignore_eos was given as well; expected one of them")
    elif ignores_own:
        draft.take_parameter("eos_token_ids", token_ids, shown_as="body.stop_token_ids")
    elif token_ids != []:
        draft.refuse(
            'body.stop_token_ids: not supported without "ignore_eos": true, since the tokens '
            "replace the model's own; expected eos_token_ids with every token that ends a "
            "completion"
        )


def _take_model(draft: RequestDraft, value: object) -> None:
    if not isinstance(value, str) or not value or text_problem(value):
        draft.refuse(f"body.model: {describe(value)} is not a model's name; expected a string")
        return
    draft.model = value


def _take_chat_logprobs(draft: RequestDraft, body: dict[str, object]) -> None:
    """A chat has a switch, and how many of the likeliest under another key."""
    wanted = body["logprobs"]
    if not isinstance(wanted, bool):
        draft.refuse(
            f"body.logprobs: {describe(wanted)} is not usable in a chat; expected true or false, "
            "and how many in top_logprobs"
        )
    elif wanted:
        count = body.get("top_logprobs", 0)
        draft.take_parameter("logprobs", count, shown_as="body.top_logprobs")


def _check_top_logprobs(draft: RequestDraft, body: dict[str, object], *, is_chat: bool) -> None:
    if not is_chat:
        draft.refuse(
            f"body.top_logprobs: does not belong to {COMPLETIONS_URL}; "
            "expected a number in logprobs"
        )
    elif body["top_logprobs"] != 0 and body.get("logprobs") is not True:
        draft.refuse("body.top_logprobs: changes nothing without logprobs; expected it to be true")


def _check_neutral(draft: RequestDraft, key: str, value: object) -> None:
    neutral = NEUTRAL[key]
    # true == 1 in Python, so the kinds are compared as well.
    if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
        return
    expected = " or ".join(json_text(each) for each in neutral)
    problem = f"body.{key}: {describe(value)} is not supported; expected {expected}"
    if key in ("n", "best_of"):
        problem += " (a prompt has one completion; repeat the line to have more)"
    draft.refuse(problem)


def _take_parameter(draft: RequestDraft, key: str, value: object, given_as: dict[str, str]) -> None:
    name = RENAMED.get(key, key)
    if name not in PARAMETERS:
        known = ["model", "prompt", "messages", *RENAMED, "top_logprobs", *END_KEYS, *PARAMETERS]
        problem = unknown_problem("key", key, known)
        draft.refuse(f"body: {problem}; other keys are not supported")
        return
    if name in given_as:
        draft.refuse(f"body.{key}: {given_as[name]} was given as well; expected one of them")
        return
    given_as[name] = key
    if key == "top_k" and value == -1:
        value = 0  # both mean off
    draft.take_parameter(name, value, shown_as=f"body.{key}")
