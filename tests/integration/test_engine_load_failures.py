"""A model that cannot be loaded says what is wrong and what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.interface import ModelLoadError, ModelSource
from engine.load import load_engine
from tests.tiny_checkpoints import save_random_checkpoint


def message_of(source: ModelSource, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_engine(source, on_progress=lambda _: None, should_stop=lambda: False, **options)
    return str(caught.value)


def refusal(folder: Path) -> str:
    return message_of(ModelSource(alias="mine", folder=folder), device="cpu")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint("tiny-cerebras", tmp_path_factory.mktemp("intact"))


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "model"))


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_no_such_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "there is no folder" in message
    assert "catalogue" in message


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "there is no config.json" in refusal(folder)


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[]", "holds no JSON object")])
def test_a_config_that_is_no_json_object(folder: Path, text: str, said: str) -> None:
    (folder / "config.json").write_text(text)
    assert said in refusal(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    edit_config(folder, model_type="nobody-knows")
    message = refusal(folder)
    assert "'nobody-knows'" in message
    assert "upgrade transformers" in message


def test_code_beside_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    code = f"open({str(witness)!r}, 'w')\nclass C: pass\nclass M: pass\n"
    (folder / "theirs.py").write_text(code)
    edit_config(
        folder,
        model_type="theirs",
        auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
    )
    assert "never run" in refusal(folder)
    # nor where transformers knows the architecture itself
    edit_config(folder, model_type="gpt2")
    load_engine(
        ModelSource(alias="mine", folder=folder),
        on_progress=lambda _: None,
        should_stop=lambda: False,
        device="cpu",
    )
    assert not witness.exists()


def test_a_model_that_generates_no_text(folder: Path) -> None:
    edit_config(folder, model_type="bert", architectures=["BertForMaskedLM"])
    assert "neither a causal language model nor an encoder-decoder" in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "there are no weights" in refusal(folder)


def test_a_missing_part(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(folder)
    assert "1 of 1 weight files are missing" in message
    assert "model-00001-of-00002.safetensors" in message


def test_a_truncated_file(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refusal(folder)
    assert str(weights) in message
    assert "cut short" in message


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    message = refusal(folder)
    assert "lacks 1 tensors" in message
    assert "h.1.mlp.c_fc.weight" in message


def test_tensors_of_another_shape(folder: Path) -> None:
    edit_config(folder, n_inner=80)
    message = refusal(folder)
    assert "has another shape for" in message
    assert "do not belong together" in message


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer in" in refusal(folder)


def test_a_tokenizer_that_cannot_be_loaded_is_told_before_a_store_is_begun(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "tokenizer.json").write_text("{}")

    message = message_of(
        ModelSource(alias="mine", folder=folder), device="cpu", stores=tmp_path / "stores"
    )

    assert "the tokenizer in" in message
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "with bitsandbytes to 4 bits"),
        ({"load_in_4bit": True}, "with bitsandbytes to 4 bits"),
        ({"quant_method": "gptq", "bits": 4}, "with gptq"),
        ({"quant_method": "awq", "bits": 4}, "with awq"),
        ({"quant_method": "mxfp4"}, "with mxfp4"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "with compressed-tensors"),
    ],
)
def test_a_checkpoint_quantised_by_others_is_refused_by_name(
    folder: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    edit_config(folder, quantization_config=settings)

    message = message_of(
        ModelSource(alias="mine", folder=folder), device="cpu", stores=tmp_path / "stores"
    )

    assert said in message
    assert "give the checkpoint that it was made of" in message
    assert not (tmp_path / "stores").exists()


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 4}


def test_a_folder_with_an_adapter_only_is_refused_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))

    message = refusal(tmp_path)

    assert "a LORA adapter of some/base and not a whole model" in message
    assert "merge it into that model" in message


def test_an_adapter_beside_a_model_is_not_passed_over(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))

    assert "a LORA adapter of some/base beside a model" in refusal(folder)


@pytest.mark.parametrize("has_config", [True, False])
def test_a_folder_with_a_gguf_file_only_is_refused_with_what_to_do(
    folder: Path, has_config: bool
) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")
    if not has_config:
        (folder / "config.json").unlink()

    message = refusal(folder)

    assert "a GGUF file (model-q4.gguf)" in message
    assert "give the model's original checkpoint" in message


class Payload:
    """Unpickles by calling open(): what a hostile .bin would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def as_bin(folder: Path, **more: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, **more}, folder / "pytorch_model.bin")


def test_a_bin_of_tensors_loads(folder: Path) -> None:
    as_bin(folder)
    engine = load_engine(
        ModelSource(alias="mine", folder=folder),
        on_progress=lambda _: None,
        should_stop=lambda: False,
        device="cpu",
    )
    assert engine.model.architecture == "GPT2LMHeadModel"


def test_a_bin_with_code_is_refused(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    as_bin(folder, payload=Payload(witness))
    message = refusal(folder)
    assert "never run" in message
    assert "safetensors" in message
    assert not witness.exists()


def test_a_bin_that_is_a_bare_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(witness)))
    assert "cannot be loaded" in refusal(folder) or "never run" in refusal(folder)
    assert not witness.exists()


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given no network, which an address nobody listens on stands for
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    # The library tries again for half a minute.
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    message = message_of(ModelSource(alias="mine", hub_id="somebody/some-model"), device="cpu")
    assert "cannot be reached" in message
    assert "[models.mine] folder" in message


def test_a_name_that_is_no_hub_id() -> None:
    message = message_of(ModelSource(alias="mine", hub_id="no such/hub/id"), device="cpu")
    assert "correct `hub_id`" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(folder: Path) -> None:
    message = message_of(ModelSource(alias="mine", folder=folder), device="cuda")
    assert "no CUDA device" in message
    assert "auto or cpu" in message
