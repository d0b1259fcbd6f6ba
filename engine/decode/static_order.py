"""Cutting prompts into micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from engine.decode.prompts import EncodedPrompt


def longest_first(prompts: Iterable[EncodedPrompt]) -> deque[EncodedPrompt]:
    """Prompts in the order they are run.

    Neighbours of like length waste little padding, and with the longest first
    a batch that does not fit shows at once and not after an hour.
    """
    return deque(sorted(prompts, key=lambda prompt: -len(prompt.token_ids)))


def take_micro_batch(
    waiting: deque[EncodedPrompt], *, rows: int, shared_context_tokens: int | None
) -> list[EncodedPrompt]:
    """Take the next rows off the queue: at least one, at most `rows`.

    A finished row stays in its batch, fed with padding, until the last one is
    finished, and its positions go on counting. Where positions are a table
    (GPT-2), the longest prompt plus the longest completion must therefore
    stay within the context, though no row of its own may need that much.

    Args:
        waiting: Longest prompt first.
        rows: The micro-batch's size.
        shared_context_tokens: The context that prompt and completion share,
            or None where there is no such limit.
    """
    taken = [waiting.popleft()]
    longest_prompt = len(taken[0].token_ids)
    while waiting and len(taken) < rows:
        new_tokens = max(prompt.max_new_tokens for prompt in (*taken, waiting[0]))
        if shared_context_tokens is not None and (
            longest_prompt + new_tokens > shared_context_tokens
        ):
            break
        taken.append(waiting.popleft())
    return taken
