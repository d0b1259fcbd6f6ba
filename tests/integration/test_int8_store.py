"""A store is what transformers' own 8-bit save_pretrained writes, byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BitsAndBytesConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
)

from engine.checkpoint.tensors import StoreUnsupportedError
from engine.quiet import quiet_libraries
from engine.store.prepare import Int8Store
from tests.stores import (
    engine_only_tensors,
    pickle_weights,
    plain_tensors,
    prepare,
    split_in_two,
)
from tests.tiny_checkpoints import (
    ALIASES,
    ENCODER_DECODERS,
    checkpoint_folder,
    save_random_checkpoint,
    tiny_tokenizer,
)

PROMPTS = ("the queue holds shards", "a model that fits", "every prompt")


def transformers_class(alias: str) -> Any:
    return AutoModelForSeq2SeqLM if alias in ENCODER_DECODERS else AutoModelForCausalLM


def in_plain_int8(alias: str, folder: Path, **options: Any) -> Any:
    with quiet_libraries():
        return transformers_class(alias).from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), **options
        )


def saved_by_transformers(alias: str, folder: Path, target: Path) -> dict[str, torch.Tensor]:
    with quiet_libraries():
        in_plain_int8(alias, folder).save_pretrained(target)
    saved: dict[str, torch.Tensor] = load_file(target / "model.safetensors")
    return saved


def assert_same_bytes(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    def copy(alias: str) -> Path:
        source = checkpoint_folder(alias, tmp_path / "scratch")
        return Path(shutil.copytree(source, tmp_path / "checkpoint"))

    return copy


StoreOf = Callable[[str], Int8Store]


@pytest.fixture(scope="module")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> StoreOf:
    """The store of a tiny checkpoint, made once and only read."""
    scratch = tmp_path_factory.mktemp("made")

    @cache
    def made(alias: str) -> Int8Store:
        return prepare(checkpoint_folder(alias, scratch), scratch / "stores")

    return made


def as_it_is(folder: Path) -> Path:
    return folder


def as_float32(folder: Path) -> Path:
    return _cast(folder, torch.float32)


def as_bfloat16(folder: Path) -> Path:
    return _cast(folder, torch.bfloat16)


def _cast(folder: Path, dtype: torch.dtype) -> Path:
    file = folder / "model.safetensors"
    cast = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(cast, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", [as_it_is, as_float32, as_bfloat16, split_in_two, pickle_weights])
@pytest.mark.parametrize("alias", ALIASES)
def test_every_tensor_is_the_one_that_transformers_saves(
    alias: str,
    form: Callable[[Path], Path],
    copied: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = form(copied(alias))

    store = prepare(folder, tmp_path / "stores")

    theirs = saved_by_transformers(alias, folder, tmp_path / "theirs")
    assert_same_bytes(plain_tensors(store.folder), theirs)


@pytest.mark.parametrize("alias", ALIASES)
def test_random_weights_are_saved_alike_too(alias: str, tmp_path: Path) -> None:
    folder = save_random_checkpoint(alias, tmp_path / "random")

    store = prepare(folder, tmp_path / "stores")

    theirs = saved_by_transformers(alias, folder, tmp_path / "theirs")
    assert_same_bytes(plain_tensors(store.folder), theirs)


NAMES = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
OTHERS = {
    "llama": LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, **NAMES
    ),
    "opt": OPTConfig(
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        **NAMES,
    ),
    "bart": BartConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        **NAMES,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_saved_alike_too(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    kind = AutoModelForSeq2SeqLM if name == "bart" else AutoModelForCausalLM
    kind.from_config(OTHERS[name]).half().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)

    store = prepare(folder, tmp_path / "stores")

    with quiet_libraries():
        kind.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        ).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert_same_bytes(plain_tensors(store.folder), theirs)


def test_a_model_whose_tensors_are_merged_gets_no_store(tmp_path: Path) -> None:
    config = MixtralConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, **NAMES)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "random")
    tiny_tokenizer().save_pretrained(tmp_path / "random")

    with pytest.raises(StoreUnsupportedError, match="merges or splits"):
        prepare(tmp_path / "random", tmp_path / "stores")


@pytest.mark.parametrize("alias", ALIASES)
def test_the_quantisation_config_is_the_one_that_transformers_saves(
    alias: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(alias)

    store = prepare(folder, tmp_path / "stores")

    saved_by_transformers(alias, folder, tmp_path / "theirs")
    configs = [
        json.loads((place / "config.json").read_text())["quantization_config"]
        for place in (store.folder, tmp_path / "theirs")
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("alias", ALIASES)
def test_plain_transformers_loads_a_store_whole(alias: str, made_store: StoreOf) -> None:
    store = made_store(alias)

    with quiet_libraries():
        _, report = transformers_class(alias).from_pretrained(
            store.folder, output_loading_info=True
        )

    assert not any(report.values()), report


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("alias", ALIASES)
def test_plain_transformers_gives_the_same_tokens_from_a_store(
    alias: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    folder = checkpoint_folder(alias, tmp_path)

    store = prepare(folder, tmp_path / "stores", dtype=dtype)

    with quiet_libraries():
        from_store = transformers_class(alias).from_pretrained(store.folder)
    from_checkpoint = in_plain_int8(alias, folder, dtype=dtype or "auto")
    for prompt in PROMPTS:
        assert greedy(from_store, store.folder, prompt) == greedy(from_checkpoint, folder, prompt)


@pytest.mark.parametrize("form", [as_it_is, as_bfloat16])
@pytest.mark.parametrize("alias", ALIASES)
def test_for_a_cpu_embedding_and_head_are_stored_as_the_checkpoint_has_them_too(
    alias: str, form: Callable[[Path], Path], copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = form(copied(alias))

    store = prepare(folder, tmp_path / "stores", dtype=torch.float32)

    plain, narrow = plain_tensors(store.folder), engine_only_tensors(store.folder)
    checkpoint = load_file(folder / "model.safetensors")
    tables = {name: t for name, t in narrow.items() if t.dtype in (torch.half, torch.bfloat16)}
    assert tables
    for name, table in tables.items():
        assert torch.equal(table, checkpoint[name])
        assert torch.equal(table.float(), plain[name])


def greedy(model: Any, folder: Path, prompt: str) -> list[int]:
    with quiet_libraries(), torch.inference_mode():
        encoded = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        tokens = model.eval().generate(**encoded, max_new_tokens=24, do_sample=False)
    found: list[int] = tokens[0].tolist()
    return found


def test_an_untied_head_stays_untied(made_store: StoreOf) -> None:
    # transformers itself reads its own saved config of such a T5 as a tied one
    store = made_store("tiny-flan")

    tensors = plain_tensors(store.folder)

    assert json.loads((store.folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.equal(tensors["lm_head.weight"], tensors["shared.weight"])


def test_a_head_that_is_only_said_to_be_untied_is_stored_once(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied("tiny-flan")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["shared.weight"].clone()}, file)

    store = prepare(folder, tmp_path / "stores")

    assert "lm_head.weight" not in plain_tensors(store.folder)


def test_a_tied_weight_may_come_under_its_other_name(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied("tiny-cerebras")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    save_file(tensors, file, {"format": "pt"})

    store = prepare(folder, tmp_path / "stores")

    theirs = saved_by_transformers("tiny-cerebras", folder, tmp_path / "theirs")
    assert_same_bytes(plain_tensors(store.folder), theirs)


def test_what_transformers_keeps_in_float_is_int8_for_the_engine(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-flan", tmp_path)

    store = prepare(folder, tmp_path / "stores")

    name = "encoder.block.0.layer.1.DenseReluDense.wo"
    tensors = engine_only_tensors(store.folder)
    restored = tensors[f"{name}.weight"] * tensors[f"{name}.SCB"][:, None] / 127
    original = load_file(folder / "model.safetensors")[f"{name}.weight"].float()
    # half a step, and float16's rounding of the largest value
    allowed = tensors[f"{name}.SCB"][:, None] * (0.5 / 127 + 1e-3)
    assert tensors[f"{name}.weight"].dtype == torch.int8
    assert bool(((restored - original).abs() <= allowed).all())


@pytest.mark.parametrize("alias", ALIASES)
def test_each_transformer_block_is_one_file_of_aligned_tensors(
    alias: str, made_store: StoreOf
) -> None:
    store = made_store(alias)

    for file in store.folder.glob("*.safetensors"):
        header_bytes = int.from_bytes(file.read_bytes()[:8], "little")
        assert (8 + header_bytes) % 4096 == 0
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                tensor = tensors.get_tensor(name)
                assert tensor.data_ptr() % tensor.element_size() == 0


@pytest.mark.parametrize("alias", ALIASES)
def test_the_tokenizer_comes_along(alias: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(alias, tmp_path)

    store = prepare(folder, tmp_path / "stores")

    ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (store.folder, folder))
    assert ours(PROMPTS[0])["input_ids"] == theirs(PROMPTS[0])["input_ids"]


@pytest.mark.parametrize("alias", ALIASES)
def test_what_is_not_int8_can_be_asked_for_in_another_dtype(alias: str, tmp_path: Path) -> None:
    folder = save_random_checkpoint(alias, tmp_path / "random")

    store = prepare(folder, tmp_path / "stores", dtype=torch.float16)

    with quiet_libraries():
        in_plain_int8(alias, folder, dtype=torch.float16).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert_same_bytes(plain_tensors(store.folder), theirs)
