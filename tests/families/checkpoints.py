"""The families, each as a configuration small enough to build in a blink."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers import AutoModelForImageTextToText as AutoModelOfTextAndImages

from engine.quiet import quiet_libraries
from tests.tiny_checkpoints import TRAINED

_TOKENIZER = TRAINED / "tiny-bloom"
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_SHORT = {"vocab_size": 1024, **_ENDS, "initializer_range": 0.25}
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    **_SHORT,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **_SHORT}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _bart(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 1024,
        **_ENDS,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 256,
        "init_std": 0.25,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        **more,
    }


def _t5(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 1024,
        **_ENDS,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 3,
        **more,
    }


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: Unique name, the first column of docs/models.md.
        model_type: What transformers calls it.
        config: Arguments of its configuration.
        kind: "causal", "encoder-decoder" or "text and images".
    """

    name: str
    model_type: str
    config: dict[str, Any] = field(hash=False)
    kind: str = "causal"


def _encoder_decoder(name: str, config: dict[str, Any], model_type: str | None = None) -> Family:
    return Family(name, model_type or name, config, "encoder-decoder")


_NO_WINDOW = {"sliding_window": None}
FAMILIES = (
    Family("bloom", "bloom", {**_SHORT, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    Family("gpt_neox", "gpt_neox", _SIZES),
    _encoder_decoder("t5 (flan-ul2)", _t5(feed_forward_proj="gated-silu"), "t5"),
    Family("gpt2 (Cerebras-GPT)", "gpt2", _GPT2),
    Family("llama", "llama", _GROUPED),
    Family(
        "llama, dynamic NTK",
        "llama",
        {
            **_GROUPED,
            "max_position_embeddings": 32,
            "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
        },
    ),
    Family("llama4_text", "llama4_text", {
        **_GROUPED, "num_hidden_layers": 4, "head_dim": 16, "intermediate_size_mlp": 128,
        "num_local_experts": 2, "interleave_moe_layer_step": 2, "moe_layers": [],
    }),
    Family("mistral, window", "mistral", {**_GROUPED, "sliding_window": 16}),
    Family("mistral, no window", "mistral", {**_GROUPED, **_NO_WINDOW}),
    Family("ministral3", "ministral3", _GROUPED),
    Family("mixtral", "mixtral", {
        **_GROUPED, **_NO_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    Family("qwen2", "qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    Family("qwen3", "qwen3", {**_GROUPED, "head_dim": 32}),
    Family("qwen2_moe", "qwen2_moe", {
        **_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 64,
    }),
    Family("qwen3_moe", "qwen3_moe", {**_GROUPED, **_EXPERTS, "head_dim": 16}),
    Family("qwen3_next", "qwen3_next", {
        **_GROUPED, **_EXPERTS, "num_hidden_layers": 4, "head_dim": 16,
        "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    }),
    Family("qwen3_5_text", "qwen3_5_text", {
        **_GROUPED, "num_hidden_layers": 4, "head_dim": 16, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    }),
    Family("gemma", "gemma", {**_SIZES, "num_key_value_heads": 1, "head_dim": 32}),
    Family("gemma2", "gemma2", {**_GROUPED, "head_dim": 32, "sliding_window": 16}),
    Family("gemma3_text", "gemma3_text", {
        **_GROUPED, "head_dim": 32, "sliding_window": 16, "num_hidden_layers": 6,
    }),
    Family("gemma3, text half", "gemma3", {
        "text_config": {**_GROUPED, "head_dim": 16, "sliding_window": 16},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 4, **_ENDS,
    }, "text and images"),
    Family("mistral3, text half", "mistral3", {
        "text_config": {"model_type": "mistral", **_GROUPED, **_NO_WINDOW},
        "vision_config": {"model_type": "pixtral", "head_dim": 16, **_VISION},
        **_ENDS,
    }, "text and images"),
    Family("phi", "phi", _SIZES),
    Family("phi3", "phi3", {**_GROUPED, **_NO_WINDOW}),
    Family("phi3, longrope", "phi3", {
        **_GROUPED, **_NO_WINDOW, "original_max_position_embeddings": 32,
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0] * 8,
            "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0],
        },
    }),
    Family("phimoe", "phimoe", {
        **_GROUPED, **_NO_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    Family("gptj", "gptj", {**_GPT2, "rotary_dim": 8, "tie_word_embeddings": False}),
    Family("gpt_neo", "gpt_neo", {
        **_SHORT, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 16,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256,
    }),
    Family("gpt_bigcode", "gpt_bigcode", {**_GPT2, "multi_query": True}),
    Family("gpt_oss", "gpt_oss", {
        **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
        "sliding_window": 16,
    }),
    Family("codegen", "codegen", {**_GPT2, "rotary_dim": 8}),
    Family("opt", "opt", {
        **_SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.25,
    }),
    Family("falcon, rotary", "falcon", {
        **_SIZES, "alibi": False, "new_decoder_architecture": False, "multi_query": True,
    }),
    Family("falcon, ALiBi", "falcon", {
        **_SIZES, "alibi": True, "new_decoder_architecture": False, "multi_query": False,
        "parallel_attn": False, "bias": True,
    }),
    Family("mpt", "mpt", {
        **_SHORT, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256,
    }),
    Family("stablelm", "stablelm", {**_SIZES, "num_key_value_heads": 4}),
    Family("starcoder2", "starcoder2", {**_GROUPED, **_NO_WINDOW}),
    Family("granite", "granite", {
        **_GROUPED, "embedding_multiplier": 6.0, "logits_scaling": 0.5,
        "residual_multiplier": 0.5, "attention_multiplier": 0.25,
    }),
    Family("granitemoe", "granitemoe", {
        **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    Family("granitemoehybrid", "granitemoehybrid", {
        **_GROUPED, **_MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 0,
        "shared_intermediate_size": 64,
    }),
    Family("deepseek_v2", "deepseek_v2", {**_SIZES, **_LATENT}),
    Family("deepseek_v3", "deepseek_v3", {**_SIZES, **_LATENT}),
    Family("olmo", "olmo", _GROUPED),
    Family("olmo2", "olmo2", _GROUPED),
    Family("olmoe", "olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    Family("cohere", "cohere", _GROUPED),
    Family("cohere2", "cohere2", {**_GROUPED, "sliding_window": 16}),
    Family("glm", "glm", {**_GROUPED, "head_dim": 16}),
    Family("glm4", "glm4", {**_GROUPED, "head_dim": 16}),
    Family("helium", "helium", {**_GROUPED, "head_dim": 16}),
    Family("nemotron", "nemotron", _GROUPED),
    Family("persimmon", "persimmon", _SIZES),
    Family("ernie4_5", "ernie4_5", {**_GROUPED, "head_dim": 16}),
    Family("exaone4", "exaone4", {**_GROUPED, "sliding_window": 16, "sliding_window_pattern": 2}),
    Family("smollm3", "smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    Family("seed_oss", "seed_oss", {**_GROUPED, "head_dim": 16}),
    Family("hunyuan_v1_dense", "hunyuan_v1_dense", {**_GROUPED, "head_dim": 16}),
    Family("arcee", "arcee", _GROUPED),
    Family("xglm", "xglm", {
        "vocab_size": 1024, **_ENDS, "d_model": 64, "num_layers": 2, "attention_heads": 4,
        "ffn_dim": 128, "max_position_embeddings": 256, "init_std": 0.25,
    }),
    Family("biogpt", "biogpt", _SIZES),
    Family("mamba", "mamba", {
        **_SHORT, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8,
    }),
    Family("mamba2", "mamba2", {
        **_SHORT, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8,
        "head_dim": 16, "expand": 2, "n_groups": 1, "chunk_size": 8,
    }),
    Family("falcon_mamba", "falcon_mamba", {
        **_SHORT, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8,
    }),
    Family("falcon_h1", "falcon_h1", {
        **_GROUPED, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16,
        "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    }),
    Family("jamba", "jamba", {
        **_GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1,
        "mamba_d_state": 8, "use_mamba_kernels": False,
    }),
    Family("bamba", "bamba", {**_GROUPED, **_MAMBA2, "attn_layer_indices": [1]}),
    Family("lfm2", "lfm2", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    Family("zamba2", "zamba2", {
        **_SIZES, "num_key_value_heads": 4, "mamba_d_state": 8, "n_mamba_heads": 8,
        "mamba_ngroups": 1, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1,
        "chunk_size": 8,
    }),
    _encoder_decoder("bart", _bart()),
    _encoder_decoder("mbart", _bart()),
    _encoder_decoder("marian", _bart(decoder_start_token_id=3)),
    _encoder_decoder("m2m_100 (NLLB)", _bart(), "m2m_100"),
    _encoder_decoder("pegasus", _bart(decoder_start_token_id=3)),
    _encoder_decoder("blenderbot", _bart()),
    _encoder_decoder("plbart", _bart()),
    _encoder_decoder("mt5", _t5(feed_forward_proj="gated-gelu")),
    _encoder_decoder("umt5", _t5(feed_forward_proj="gated-gelu")),
    _encoder_decoder("longt5", _t5(local_radius=15, encoder_attention_type="local")),
    _encoder_decoder(
        "switch_transformers", _t5(num_experts=4, expert_capacity=64, num_sparse_encoder_layers=1)
    ),
    # What has no way to share a batch.
    Family("rwkv", "rwkv", {**_SHORT, "hidden_size": 64, "num_hidden_layers": 2}),
    Family("recurrent_gemma", "recurrent_gemma", {
        **_SIZES, "num_key_value_heads": 1, "lru_width": 64, "attention_window_size": 16,
        "block_types": ["recurrent", "attention"],
    }),
    Family("minimax", "minimax", {
        **_GROUPED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    Family("openai-gpt", "openai-gpt", _GPT2),
    Family("xlnet", "xlnet", {**_SHORT, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    _encoder_decoder("prophetnet", {
        **_ENDS, "vocab_size": 1024, "hidden_size": 64, "num_encoder_layers": 1,
        "num_decoder_layers": 1, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    }),
)  # fmt: skip


def write_checkpoint(family: Family, folder: Path) -> Path:
    """A checkpoint of a family with random weights and a trained tokenizer."""
    torch.manual_seed(7)
    with quiet_libraries():
        config = AutoConfig.for_model(family.model_type, **family.config)
        if family.kind == "encoder-decoder":
            model = AutoModelForSeq2SeqLM.from_config(config)
        elif family.kind == "causal":
            model = AutoModelForCausalLM.from_config(config)
        else:
            model = AutoModelOfTextAndImages.from_config(config)
        _vary(model)
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(_TOKENIZER / name, folder)
    return folder


def _vary(model: Any) -> None:
    """Norms and biases of no round numbers, so that one that is lost on the way shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_rate = "A_log" in name or "dt" in name or name.rpartition(".")[2] == "D"
            if parameter.dim() == 1 and not is_rate:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
