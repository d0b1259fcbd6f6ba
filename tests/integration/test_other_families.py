"""Architectures beside the four: streamed as far as the planner allows, they compute the same."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    GPTJConfig,
    LlamaConfig,
    MarianConfig,
    MarianMTModel,
    OPTConfig,
    XGLMConfig,
)

from engine.checkpoint.tensors import StoreUnsupportedError
from engine.decode.engine import DecodeEngine
from engine.interface import (
    GenerationRequest,
    ModelLoadError,
    ModelSource,
    RequestList,
    SamplingParameters,
)
from engine.load import load_engine
from engine.plan.from_layout import demands_of_config, demands_of_layout
from engine.plan.plan import Tier
from engine.quiet import quiet_libraries
from engine.store.prepare import Int8Store
from tests.families.checkpoints import FAMILIES, write_checkpoint
from tests.stores import ignore, never, prepare
from tests.streamed_models import StreamedModels, at_tiers
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, tiny_tokenizer

ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
NAMES = {"vocab_size": 300, **ENDS}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "llama": LlamaConfig(intermediate_size=128, **SIZES, **NAMES),
    "llama-tied": LlamaConfig(intermediate_size=128, tie_word_embeddings=True, **SIZES, **NAMES),
    # Its embedding is scaled.
    "gemma": GemmaConfig(
        intermediate_size=128, head_dim=16, num_key_value_heads=4, **SIZES, **NAMES
    ),
    # Its positions are counted from a mask, and have a table.
    "opt": OPTConfig(ffn_dim=128, word_embed_proj_dim=64, **SIZES, **NAMES),
    # Its head has a bias.
    "gptj": GPTJConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, **NAMES),
    "xglm": XGLMConfig(d_model=64, ffn_dim=128, num_layers=2, attention_heads=4, **NAMES),
}
ON_CPU = StreamedModels(device=torch.device("cpu"), dtype=torch.float32)


def tiers_of(store: Int8Store, *, streamed: bool) -> dict[str, Tier]:
    demands = demands_of_layout(store.config, "other", store.layout, on_gpu=False)
    return {
        block.name: "disk" if streamed and not block.stays_resident else "resident"
        for block in demands.blocks
    }


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_logits_are_those_of_plain_transformers(name: str, streamed: bool, tmp_path: Path) -> None:
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(OTHERS[name]).half().save_pretrained(tmp_path / "random")
    tiny_tokenizer().save_pretrained(tmp_path / "random")
    store = prepare(tmp_path / "random", tmp_path / "stores", dtype=torch.float32)
    tiers = tiers_of(store, streamed=streamed)
    with quiet_libraries():
        plain = AutoModelForCausalLM.from_pretrained(store.folder).eval()
    inputs = inputs_of(rows=2, tokens=9)

    with at_tiers(store, tiers) as placed, torch.inference_mode():
        (ours,) = placed.passes.together([lambda: placed.model(**inputs).logits])
        theirs = plain(**inputs).logits

    assert streamed == ("disk" in tiers.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def inputs_of(*, rows: int, tokens: int) -> dict[str, Any]:
    ids = torch.randint(2, 300, (rows, tokens), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_tensors_that_transformers_computes_itself_are_left_to_it(tmp_path: Path) -> None:
    # Marian's positions are sines that no checkpoint holds.
    config = MarianConfig(
        vocab_size=300,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        eos_token_id=0,
        pad_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    folder = tmp_path / "random"
    MarianMTModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)

    with pytest.raises(StoreUnsupportedError, match="computes"):
        prepare(folder, tmp_path / "stores")
    engine = load_engine(
        ModelSource(alias="marian", folder=folder),
        on_progress=ignore,
        should_stop=never,
        device="cpu",
        stores=tmp_path / "stores",
    )
    request = GenerationRequest(
        key=0, prompt="A lease", parameters=SamplingParameters(max_new_tokens=4, eos_token_ids=())
    )
    with closing(engine):
        (batch,) = engine.generate(RequestList([request]), should_stop=never)
    assert batch.completion_tokens == 4


def test_a_model_whose_experts_stay_float_holds_its_budget_and_is_planned_as_it_is_loaded(
    tmp_path: Path,
) -> None:
    # given a mixture of experts, which transformers merges
    family = next(each for each in FAMILIES if each.name == "mixtral")
    folder = write_checkpoint(family, tmp_path / "mixtral")

    def load(cpu_bytes: int) -> DecodeEngine:
        engine = load_engine(
            ModelSource(alias="mixtral", folder=folder),
            on_progress=ignore,
            should_stop=never,
            device="cpu",
            stores=tmp_path / "stores",
            cpu_bytes=cpu_bytes,
        )
        assert isinstance(engine, DecodeEngine)
        return engine

    # when it is given too little, it is refused with the reason; nothing is streamed in secret
    with pytest.raises(ModelLoadError, match="loaded whole, with those in float") as refusal:
        load(2**20)
    demands = demands_of_config(AutoConfig.from_pretrained(folder), "mixtral", on_gpu=False)
    assert all(block.stays_resident for block in demands.blocks)
    assert "GiB of CPU memory" in str(refusal.value)
    # and what it takes when it is given enough is what was planned
    with closing(load(2**30)) as engine:
        assert engine.model.weight_bytes == pytest.approx(
            sum(block.weight_bytes for block in demands.blocks), rel=0.02
        )
        assert engine.model.row_capacity is not None


@pytest.mark.parametrize("alias", ALIASES)
def test_a_cache_is_counted_in_what_is_computed_in_and_not_in_what_a_table_is_kept_as(
    alias: str, tmp_path: Path
) -> None:
    source = ModelSource(alias=alias, folder=checkpoint_folder(alias, tmp_path))

    engine = load_engine(
        source, on_progress=ignore, should_stop=never, device="cpu", stores=tmp_path / "stores"
    )

    with closing(engine):
        assert isinstance(engine, DecodeEngine)
        budget = engine._budget
    demands = demands_of_config(
        AutoConfig.from_pretrained(checkpoint_folder(alias, tmp_path)), alias, on_gpu=False
    )
    assert budget.token_bytes == demands.self_kv_bytes_per_token
    assert budget.source_token_bytes == demands.cross_kv_bytes_per_token
