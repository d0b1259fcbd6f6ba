"""The messages of a chat as text, by the model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.interface import ChatMessage


class ContentLostError(Exception):
    """The chat template leaves out what a message says."""


def chat_text(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """What the chat template makes of the messages, with the start of an answer.

    Some templates read a message's content as a text, others as a list of
    parts, and one that is given the other form may render nothing of it. Each
    message gets the form in which the template shows it.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The chat, oldest first.

    Raises:
        ContentLostError: The template shows some message's content in neither form.
        Exception: Anything that the template raises.
    """
    count = len(messages)
    # What a template does with a content may depend on what it says, so that the
    # form is found with contents that say nothing. Empty ones stay empty.
    probes = [
        ChatMessage(role=each.role, content=f"probe{n}x" if each.content.strip() else each.content)
        for n, each in enumerate(messages)
    ]
    in_texts = _shown(tokenizer, probes, [False] * count)
    if in_texts is not None and all(in_texts):
        return _rendered(tokenizer, messages, [False] * count)
    in_parts = _shown(tokenizer, probes, [True] * count)
    if in_texts is None and in_parts is None:
        # For the error that it raises at these messages.
        return _rendered(tokenizer, messages, [False] * count)
    in_texts, in_parts = in_texts or [False] * count, in_parts or [False] * count
    for n, each in enumerate(messages):
        if not (in_texts[n] or in_parts[n]):
            raise ContentLostError(f"it leaves out message {n + 1}, of the role {each.role!r}")
    return _rendered(tokenizer, messages, [not shown for shown in in_texts])


def _shown(
    tokenizer: Any, probes: Sequence[ChatMessage], as_parts: Sequence[bool]
) -> list[bool] | None:
    """Whether each content is in the rendered text; None if the template raises."""
    try:
        text = _rendered(tokenizer, probes, as_parts).casefold()
    except Exception:  # a template may raise anything at a form that it does not read
        return None
    return [each.content.strip() in text for each in probes]


def _rendered(tokenizer: Any, messages: Sequence[ChatMessage], as_parts: Sequence[bool]) -> str:
    conversation = [
        {
            "role": each.role,
            "content": [{"type": "text", "text": each.content}] if in_parts else each.content,
        }
        for each, in_parts in zip(messages, as_parts, strict=True)
    ]
    text: str = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=False
    )
    return text
