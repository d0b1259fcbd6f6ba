"""Times the project's own engine step by step: what a worker runs, decode loop and all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from benchmarks.offload.measure import Steps
from engine.cache.format import CacheDtype
from engine.decode.engine import DecodeEngine
from engine.int8.linear import ComputeMode
from engine.interface import GenerationRequest, ModelDescription, RequestList, SamplingParameters
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits
from engine.weights.passes import StreamTotals, WeightPasses


def engine_of(
    loaded: Int8Model,
    limits: BatchLimits,
    *,
    mode: ComputeMode,
    cache_dtype: CacheDtype,
    context_tokens: int,
) -> DecodeEngine:
    """An engine around a placed model of random weights."""
    description = ModelDescription(
        alias="random",
        device=str(loaded.device),
        architecture=type(loaded.model).__name__,
        parameter_count=loaded.parameter_count,
        weight_bytes=loaded.weight_bytes,
        load_seconds=0.0,
        context_tokens=context_tokens,
        compute_mode=mode,
    )
    engine = DecodeEngine(loaded, description, limits=limits, cache_dtype=cache_dtype)
    if not isinstance(engine, DecodeEngine):
        raise TypeError(f"{description.architecture} has no decode loop of ours")
    return engine


def generate_by_engine(
    engine: DecodeEngine,
    passes: WeightPasses,
    *,
    is_encoder_decoder: bool,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
) -> Steps:
    """Generate greedily, every row to its full length; rows that are over are refilled.

    Args:
        engine: Around the model.
        passes: The model's.
        is_encoder_decoder: Whether an encoder's pass comes first.
        requests: How many; more than the engine's rows wait for their turn.
        prompt_tokens: Of each.
        new_tokens: Of each; two at least.

    Returns:
        What it took; with more requests than rows, later prompts are among the steps.
    """
    clock = _Clock(lambda: passes.totals)
    feed = RequestList([_request(key, prompt_tokens, new_tokens) for key in range(requests)])
    batches = list(engine.generate(feed, should_stop=clock))
    tokens = sum(batch.completion_tokens for batch in batches)
    errors = [result.error for batch in batches for result in batch.results if result.error]
    if errors or tokens != requests * new_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {requests * new_tokens}: {errors[:1]}")
    # An encoder's pass comes before the first token.
    first = 2 if is_encoder_decoder else 1
    seconds = [later - sooner for sooner, later in zip(clock.times, clock.times[1:], strict=False)]
    streamed = clock.streamed[-1].since(clock.streamed[first])
    return Steps(
        prompt_seconds=sum(seconds[:first]),
        step_seconds=tuple(seconds[first:]),
        tokens=tokens,
        first_tokens=min(requests, engine.row_capacity),
        streamed_bytes=streamed.streamed_bytes,
        wait_seconds=streamed.link_wait_seconds,
        processor_seconds=clock.processor[-1] - clock.processor[first],
    )


@dataclass
class _Clock:
    """Asked before each step whether to stop: notes the time instead."""

    totals: Callable[[], StreamTotals]
    times: list[float] = field(default_factory=list)
    streamed: list[StreamTotals] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def __call__(self) -> bool:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.streamed.append(self.totals())
        self.processor.append(time.process_time())
        return False


def _request(key: int, prompt_tokens: int, new_tokens: int) -> GenerationRequest:
    parameters = SamplingParameters(max_new_tokens=new_tokens, eos_token_ids=())
    # A letter is a token.
    return GenerationRequest(key=key, prompt="a" * prompt_tokens, parameters=parameters)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, after one for the end and one for padding."""
    ends = ["</s>", "<pad>"]
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*ends, *letters])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=ends[0], eos_token=ends[0], pad_token=ends[1]
    )
