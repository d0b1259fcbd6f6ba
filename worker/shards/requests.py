"""From the ledger's prompts to what an engine takes, and from its results back."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from engine.interface import (
    ChatMessage,
    GenerationRequest,
    GenerationResult,
    SamplingParameters,
    TokenLogprobs,
)
from jobs.prompts.parameters import GenerationParameters, ParameterError, resolve_parameters
from jobs.store.records import Claim, PendingPrompt, PromptOutcome

# What stands for the logarithm of nothing, which JSON has no word for.
LEAST_LOGPROB = -9999.0


def requests_of(
    claim: Claim, pending: list[PendingPrompt], first_key: int
) -> tuple[list[GenerationRequest], list[PromptOutcome]]:
    """The requests of a shard's prompts, and those that are refused.

    A request's key is first_key and the prompt's index added.
    """

    @cache
    def of_job() -> GenerationParameters:
        return resolve_parameters(claim.job_parameters, {})

    requests, refused = [], []
    for prompt in pending:
        own = prompt.parameters
        try:
            given = resolve_parameters(claim.job_parameters, own) if own else of_job()
            requests.append(_request(claim, prompt, given, first_key + prompt.index))
        except ParameterError as error:
            refused.append(
                PromptOutcome.not_generated(
                    prompt.index, claim.queued_seconds, code=error.code, message=error.message
                )
            )
    return requests, refused


def derived_seed(job_id: str, index: int) -> int:
    """The seed of a prompt that names none: the same whenever its job is run again."""
    digest = hashlib.sha256(f"{job_id}:{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def outcome_of(
    result: GenerationResult, index: int, *, queued_seconds: float, held_seconds: float
) -> PromptOutcome:
    """A prompt's result as the ledger keeps it.

    Args:
        result: The engine's.
        index: The prompt's place in its job.
        queued_seconds: From submit to the claim of its shard.
        held_seconds: From there until the engine took the request.
    """
    until_prefill = held_seconds + result.waiting_seconds
    has_token = result.completion_tokens > 0
    return PromptOutcome(
        index=index,
        text=None if result.text is None else storable(result.text),
        finish_reason=result.finish_reason,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        queued_seconds=queued_seconds + until_prefill,
        prefill_seconds=result.prefill_seconds,
        decode_seconds=result.decode_seconds,
        first_token_seconds=until_prefill + result.prefill_seconds if has_token else None,
        logprobs=None if result.logprobs is None else [_token(each) for each in result.logprobs],
        error_code=result.error.code if result.error else None,
        error_message=storable(result.error.message) if result.error else None,
    )


def storable(text: str) -> str:
    """The text without what a database refuses: a NUL on Postgres, half of a surrogate pair."""
    whole = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _request(
    claim: Claim, prompt: PendingPrompt, given: GenerationParameters, key: int
) -> GenerationRequest:
    return GenerationRequest(
        key=key,
        prompt=_messages(prompt.messages) if prompt.messages else prompt.prompt or "",
        parameters=SamplingParameters(
            max_new_tokens=given.max_new_tokens,
            min_new_tokens=given.min_new_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            top_k=given.top_k,
            repetition_penalty=given.repetition_penalty,
            stop=tuple(given.stop),
            seed=derived_seed(claim.job_id, prompt.index) if given.seed is None else given.seed,
            eos_token_ids=given.eos_token_ids,
            logprobs=given.logprobs,
            echo=given.echo,
        ),
    )


def _messages(messages: list[dict[str, str]]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role=each["role"], content=each["content"]) for each in messages)


def _token(token: TokenLogprobs) -> dict[str, Any]:
    return _logprob(token.token_id, token.text, token.logprob) | {
        "top": [_logprob(*likely) for likely in token.top]
    }


def _logprob(token_id: int, text: str, logprob: float) -> dict[str, Any]:
    # Written so that NaN, too, becomes a number that JSON has.
    number = logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB
    return {"token": storable(text), "token_id": token_id, "logprob": number}
