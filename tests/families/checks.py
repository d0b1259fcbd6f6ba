"""What holds for one family: a row of docs/models.md."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from engine.decode.engine import DecodeEngine
from engine.decode.special_tokens import special_tokens_of
from engine.interface import (
    ChatMessage,
    Engine,
    GenerationRequest,
    GenerationResult,
    ModelLoadError,
    ModelSource,
    RequestList,
    SamplingParameters,
)
from engine.load import load_engine
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits
from engine.store.prepare import Int8Store
from tests.continuous_engines import description
from tests.families.checkpoints import Family, write_checkpoint
from tests.oracle import new_tokens_alone
from tests.plain_models import plain_model
from tests.stores import ignore, never, prepare
from tests.streamed_models import StreamedModels

ON_CPU = StreamedModels(device=torch.device("cpu"), dtype=torch.float32)
FLOAT32: dict[str, Any] = {"dtype": torch.float32}
NEW_TOKENS = 6
# Of several lengths, the longest past every window and boundary of the checkpoints.
PROMPTS = (
    "The worker reads",
    "A job is stored in the database before the command returns, and a worker takes it from "
    "there when its turn comes, one shard after another.",
    "Redis",
    "Shards and leases: a",
)
CHAT = (ChatMessage(role="user", content="What does the worker read?"),)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One family's row of the table; "-" where it was not looked at.

    Attributes:
        family: Unique name.
        resident: Whether it runs with all weights in memory.
        streamed: Whether it says the same while layers stream from disk.
        int8: Share of its matrices' parameters that are int8, in percent.
        batch: Whether a prompt says in a batch what it says alone.
        transformers: Whether that is what transformers' generate() says.
        logprobs: Whether each token has its log-probability.
        echo: Whether the prompt stands before the completion if asked for.
        chat: Whether messages go through the chat template.
        remark: How it is loaded, or why it is refused.
    """

    family: str
    resident: str = "-"
    streamed: str = "-"
    int8: str = "-"
    batch: str = "-"
    transformers: str = "-"
    logprobs: str = "-"
    echo: str = "-"
    chat: str = "-"
    remark: str = ""

    def line(self) -> str:
        """A row of a Markdown table."""
        return "| " + " | ".join(str(getattr(self, each.name)) for each in fields(self)) + " |"


def report_of(family: Family, scratch: Path) -> Report:
    """Make a family's checkpoint and look at everything."""
    folder = write_checkpoint(family, scratch / "checkpoint")
    source = ModelSource(alias="mine", folder=folder)
    try:
        engine = load_engine(
            source,
            on_progress=ignore,
            should_stop=never,
            stores=scratch / "stores",
            compute_mode="w8a16",
            device="cpu",
        )
    except ModelLoadError as refusal:
        _, _, reason = str(refusal).partition(" models are not supported: ")
        if not reason:
            raise
        reason = reason.partition("; docs/models.md")[0]
        return Report(family=family.name, resident="no", remark=f"refused: {reason}")
    assert isinstance(engine, DecodeEngine)
    loaded = engine._loaded
    assert loaded is not None
    with closing(engine):
        alone = [_tokens(engine, [prompt])[0] for prompt in PROMPTS]
        together = _results(engine, [_asked(*each) for each in enumerate(PROMPTS)])
        options = _results(
            engine,
            [_asked(0, PROMPTS[0], echo=True), GenerationRequest(key=1, prompt=CHAT)],
        )
        store = None if loaded.layout is None else prepare(folder, scratch / "stores", **FLOAT32)
        plain = _plain_tokens(loaded, store)
        int8 = _int8_percent(loaded)
    return Report(
        family=family.name,
        resident="yes",
        streamed="-" if store is None else _yes(_streamed_tokens(store) == alone),
        int8=f"{int8:.0f} %",
        batch=_yes([_ids(each) for each in together] == alone),
        transformers=_yes(plain == alone),
        logprobs=_yes(all(_ids(each) for each in together)),
        echo=_yes((options[0].text or "").startswith(PROMPTS[0])),
        chat=_yes(options[1].error is None and options[1].completion_tokens > 0),
        remark="loaded whole, not streamed: transformers merges or computes some of its tensors"
        if store is None
        else "",
    )


def _asked(key: int, prompt: str, *, echo: bool = False) -> GenerationRequest:
    parameters = SamplingParameters(
        max_new_tokens=NEW_TOKENS, eos_token_ids=(), logprobs=0, echo=echo
    )
    return GenerationRequest(key=key, prompt=prompt, parameters=parameters)


def _results(engine: Engine, requests: list[GenerationRequest]) -> list[GenerationResult]:
    windows = engine.generate(RequestList(requests), should_stop=never)
    results = [result for window in windows for result in window.results]
    return sorted(results, key=lambda result: result.key)


def _ids(result: GenerationResult) -> list[int]:
    return [token.token_id for token in result.logprobs or ()]


def _tokens(engine: Engine, prompts: list[str]) -> list[list[int]]:
    return [_ids(each) for each in _results(engine, [_asked(*one) for one in enumerate(prompts)])]


def _plain_tokens(loaded: Int8Model, store: Int8Store | None) -> list[list[int]]:
    """What transformers' generate() says to each prompt alone."""
    model = loaded.model if store is None else plain_model(store, mode="w8a16")
    special = special_tokens_of(model, loaded.tokenizer)
    return [
        new_tokens_alone(model, special, loaded.tokenizer, _asked(0, prompt))[0]
        for prompt in PROMPTS
    ]


def _streamed_tokens(store: Int8Store) -> list[list[int]]:
    """The same from a model whose layers are read from disk in every pass."""
    tokenizer = AutoTokenizer.from_pretrained(store.folder)
    with ON_CPU.placed(store, "all-on-disk", mode="w8a16", tokenizer=tokenizer) as placed:
        engine = DecodeEngine(
            placed,
            description("streamed", context_tokens=None),
            limits=BatchLimits(rows=len(PROMPTS), encoded_rows=len(PROMPTS)),
        )
        return _tokens(engine, list(PROMPTS))


def _int8_percent(loaded: Int8Model) -> float:
    """Share of the layers' matrices that is int8."""
    tables = {id(module.weight) for module in loaded.model.modules() if _is_table(module)}
    head = loaded.model.get_output_embeddings()
    tables.add(id(getattr(head, "weight", None)))
    matrices = [
        each for each in loaded.model.parameters() if each.dim() > 1 and id(each) not in tables
    ]
    int8: int = sum(each.numel() for each in matrices if each.dtype == torch.int8)
    whole: int = sum(each.numel() for each in matrices)
    return 100.0 * int8 / whole


def _is_table(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
