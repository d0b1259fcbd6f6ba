"""Prompts as token ids, and the prompts that cannot be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from engine.interface import ChatMessage, GenerationRequest, RequestError
from engine.layout.families import Family


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A request with its tokens; max_new_tokens is what the context leaves room for."""

    request: GenerationRequest
    token_ids: tuple[int, ...]
    max_new_tokens: int


class RefusedPromptError(Exception):
    """A prompt that cannot be run, with the error its result carries."""

    def __init__(self, code: str, message: str, *, prompt_tokens: int = 0) -> None:
        super().__init__(message)
        self.error = RequestError(code=code, message=message)
        self.prompt_tokens = prompt_tokens


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """Encodes requests for one model.

    Attributes:
        tokenizer: A transformers tokenizer.
        family: Decides whether prompt and completion share the context.
        context_tokens: The model's limit, or None.
        vocabulary_rows: Rows of the embedding; a larger token id would be
            read past its end, which on CUDA takes the whole process down.
        blank_token_ids: What stands for a prompt of no tokens: the model's
            first of bos and eos, or nothing.
    """

    tokenizer: Any
    family: Family
    context_tokens: int | None
    vocabulary_rows: int
    blank_token_ids: tuple[int, ...]

    def encode(self, request: GenerationRequest) -> EncodedPrompt:
        """The prompt's tokens.

        Raises:
            RefusedPromptError: prompt_too_long, empty_prompt, no_chat_template,
                invalid_chat or invalid_text.
        """
        token_ids = self._token_ids(request.prompt) or self.blank_token_ids
        if not token_ids:
            raise RefusedPromptError(
                "empty_prompt",
                "the prompt has no tokens, and this model has no beginning-of-text token to "
                "start from; give it some text",
            )
        if max(token_ids) >= self.vocabulary_rows:
            raise RefusedPromptError(
                "invalid_text",
                f"the tokenizer gives token {max(token_ids)} and the model has only "
                f"{self.vocabulary_rows}; leave that special token out of the prompt",
                prompt_tokens=len(token_ids),
            )
        room = self._room_tokens(len(token_ids))
        wanted = request.parameters.max_new_tokens
        return EncodedPrompt(
            request=request,
            token_ids=token_ids,
            max_new_tokens=wanted if room is None else min(wanted, room),
        )

    def _room_tokens(self, prompt_tokens: int) -> int | None:
        """How many new tokens the context has room for; None without a limit."""
        if self.context_tokens is None:
            return None
        shares_context = not self.family.is_encoder_decoder
        if prompt_tokens + shares_context > self.context_tokens:
            raise RefusedPromptError(
                "prompt_too_long",
                f"the prompt is {prompt_tokens} tokens and the model's context is "
                f"{self.context_tokens}{' with the completion' if shares_context else ''}; "
                "shorten the prompt or choose a model with a longer context",
                prompt_tokens=prompt_tokens,
            )
        return self.context_tokens - prompt_tokens if shares_context else self.context_tokens

    def _token_ids(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        is_text = isinstance(prompt, str)
        text = prompt if isinstance(prompt, str) else self._chat_text(prompt)
        try:
            # A template writes the special tokens itself.
            return tuple(self.tokenizer(text, add_special_tokens=is_text)["input_ids"])
        except (TypeError, ValueError) as error:
            raise RefusedPromptError(
                "invalid_text",
                f"the tokenizer cannot read the prompt ({error}); it may hold half of a "
                "surrogate pair, which is no text",
            ) from error

    def _chat_text(self, messages: Sequence[ChatMessage]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RefusedPromptError(
                "no_chat_template",
                "this model's tokenizer has no chat template; send the text as a plain prompt "
                "(/v1/completions), or choose a chat model",
            )
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RefusedPromptError(
                "invalid_chat",
                f"the model's chat template refused the messages ({error}); change their roles "
                "or order",
            ) from error
        return text
