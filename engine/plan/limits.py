"""What bounds the rows that are generated together."""

from __future__ import annotations

from dataclasses import dataclass

from engine.plan.demands import PREFILL_TOKENS


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """The memory a plan leaves for rows.

    Attributes:
        rows: Upper bound on the rows that are decoded together.
        cache_bytes: Upper bound on the KV cache, self and cross together; None if
            nothing but rows bounds it.
        prefill_tokens: Prompt tokens that go through a layer at once; at least
            one row's chunk does.
        encoded_rows: Number of prompts that one pass of an encoder serves, whose
            output is held meanwhile; 0 for a causal model.
    """

    rows: int
    cache_bytes: int | None = None
    prefill_tokens: int = PREFILL_TOKENS
    encoded_rows: int = 0
