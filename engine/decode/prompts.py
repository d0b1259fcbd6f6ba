"""From requests to rows: a prompt's tokens, and the prompts that cannot be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.cache.budget import Extent
from engine.decode.admission import Reservation
from engine.decode.chat import chat_text
from engine.decode.row import Row, RowTimes, seeded
from engine.decode.special_tokens import SpecialTokens
from engine.decode.stopping import StopStringWatch
from engine.interface import ChatMessage, GenerationRequest, RequestError


class RefusedPromptError(Exception):
    """A prompt that cannot be run, with the error its result carries."""

    def __init__(self, code: str, message: str, *, prompt_tokens: int = 0) -> None:
        super().__init__(message)
        self.error = RequestError(code=code, message=message)
        self.prompt_tokens = prompt_tokens


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows of one model's requests; what a request leaves open is filled in here.

    Attributes:
        tokenizer: A transformers tokenizer.
        special_tokens: The checkpoint's special tokens.
        is_encoder_decoder: Whether the prompt goes to an encoder, so that prompt
            and completion do not share the context.
        context_tokens: The longest prompt plus completion, or None.
        vocabulary_rows: Rows of the embedding; a larger token id would be
            read past its end, which on CUDA takes the whole process down.
        chunk_tokens: Prompt tokens in one pass; a longer prompt is read in
            chunks. None if every prompt is read whole.
        chunk_token_bytes: Bytes of a token in the cache of a prompt that is read
            in chunks.
    """

    tokenizer: Any
    special_tokens: SpecialTokens
    is_encoder_decoder: bool
    context_tokens: int | None
    vocabulary_rows: int
    chunk_tokens: int | None = None
    chunk_token_bytes: int = 0

    def row(self, request: GenerationRequest, taken: float) -> Row:
        """A row without new tokens.

        Args:
            request: What is asked for.
            taken: When it was taken off the feed, by time.perf_counter().

        Raises:
            RefusedPromptError: prompt_too_long, empty_prompt, no_chat_template,
                invalid_chat or invalid_text.
        """
        prompt = self._checked_token_ids(request.prompt)
        max_new_tokens = self._max_new_tokens(len(prompt), request.parameters.max_new_tokens)
        parameters = request.parameters
        stated = parameters.eos_token_ids
        start = (self.special_tokens.start,) if self.is_encoder_decoder else prompt
        return Row(
            request=request,
            source_tokens=prompt if self.is_encoder_decoder else (),
            tokens=list(start),
            given_tokens=len(start),
            max_new_tokens=max_new_tokens,
            end_tokens=frozenset(self.special_tokens.eos if stated is None else stated),
            forced_first=self.special_tokens.forced_first,
            reservation=self._reservation(len(prompt), max_new_tokens),
            watch=StopStringWatch(
                self.tokenizer, parameters.stop, () if self.is_encoder_decoder else prompt
            ),
            times=RowTimes(taken=taken),
            generator=seeded(parameters.seed) if parameters.temperature > 0 else None,
        )

    def _checked_token_ids(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        token_ids = self._token_ids(prompt) or self.special_tokens.blank
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
                f"{self.vocabulary_rows}; {self._advice_on_token(max(token_ids))}",
                prompt_tokens=len(token_ids),
            )
        return token_ids

    def _advice_on_token(self, token_id: int) -> str:
        """What to do about a token that the model's embedding does not have."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        if token_id in added:
            return "leave that special token out of the prompt"
        return (
            "these tokenizer files are not this model's: put those that were published with its "
            "weights into its folder"
        )

    def _max_new_tokens(self, prompt_tokens: int, wanted: int) -> int:
        """New tokens that the context leaves room for."""
        if self.context_tokens is None:
            return wanted
        shares_context = not self.is_encoder_decoder
        if prompt_tokens + shares_context > self.context_tokens:
            raise RefusedPromptError(
                "prompt_too_long",
                f"the prompt is {prompt_tokens} tokens and the model's context is "
                f"{self.context_tokens}{' with the completion' if shares_context else ''}; "
                "shorten the prompt or choose a model with a longer context",
                prompt_tokens=prompt_tokens,
            )
        return min(wanted, self.context_tokens - (prompt_tokens if shares_context else 0))

    def _reservation(self, prompt_tokens: int, max_new_tokens: int) -> Reservation:
        if self.is_encoder_decoder:
            return Reservation(extent=Extent(1 + max_new_tokens, prompt_tokens))
        is_chunked = self.chunk_tokens is not None and prompt_tokens > self.chunk_tokens
        return Reservation(
            extent=Extent(prompt_tokens + max_new_tokens),
            held_bytes=prompt_tokens * self.chunk_token_bytes if is_chunked else 0,
        )

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
        template = getattr(self.tokenizer, "chat_template", None)
        if isinstance(template, dict) and "default" not in template:
            names = ", ".join(sorted(template))
            raise RefusedPromptError(
                "no_chat_template",
                f"this model's tokenizer has chat templates named {names} and none named "
                "default; give one of them that name in tokenizer_config.json",
            )
        if not template:
            raise RefusedPromptError(
                "no_chat_template",
                "this model's tokenizer has no chat template; send the text as a plain prompt "
                "(/v1/completions), or choose a chat model",
            )
        try:
            return chat_text(self.tokenizer, messages)
        # A template is a program of its authors; it may raise anything.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise RefusedPromptError(
                "invalid_chat",
                f"the model's chat template refused the messages ({reason}); change their roles "
                "or order",
            ) from error
