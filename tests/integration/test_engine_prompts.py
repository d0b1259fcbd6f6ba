"""Prompts that cannot be run fail alone, and say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.interface import ChatMessage
from tests.integration.engine_runs import copy, edit, load, request, run
from tests.tiny_checkpoints import ALIASES, ENCODER_DECODERS, checkpoint_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scratch = tmp_path_factory.mktemp("checkpoints")
    return {alias: checkpoint_folder(alias, scratch) for alias in ALIASES}


@pytest.mark.parametrize("alias", ALIASES)
def test_a_prompt_too_long_is_refused_with_both_numbers(
    alias: str, folders: dict[str, Path]
) -> None:
    engine = load(folders[alias], alias, context_tokens=12)
    results = run(engine, [request(0, "worker " * 40), request(1, "A")])
    error = results[0].error
    assert error is not None
    assert error.code == "prompt_too_long"
    assert f" {results[0].prompt_tokens} tokens" in error.message
    assert " 12" in error.message
    assert results[0].prompt_tokens > 12
    # and the prompt that fits stops at the context
    assert results[1].error is None
    if alias not in ENCODER_DECODERS:
        assert results[1].prompt_tokens + results[1].completion_tokens <= 12


def test_a_prompt_without_tokens_starts_from_the_beginning_token(
    folders: dict[str, Path],
) -> None:
    result = run(load(folders["tiny-gpt-neox"]), [request(0, "")])[0]
    assert result.error is None
    assert result.prompt_tokens == 1


def test_half_a_surrogate_pair_is_refused_alone(
    folders: dict[str, Path],
) -> None:
    results = run(load(folders["tiny-gpt-neox"]), [request(0, "\ud800"), request(1, "A")])
    assert results[0].error is not None
    assert results[0].error.code == "invalid_text"
    assert results[1].error is None


CHAT = (ChatMessage(role="user", content="The queue"),)


def with_chat_template(folder: Path, tmp_path: Path, template: str | None) -> Path:
    copied = copy(folder, tmp_path)
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    edit(copied / "tokenizer_config.json", chat_template=template)
    return copied


def test_a_chat_goes_through_the_template(folders: dict[str, Path], tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    engine = load(with_chat_template(folders["tiny-bloom"], tmp_path, template))
    chat = run(engine, [request(0, CHAT)])[0]
    written_out = run(engine, [request(0, "user: The queue\nassistant:")])[0]
    assert chat.error is None
    assert (chat.text, chat.prompt_tokens) == (written_out.text, written_out.prompt_tokens)


def test_a_chat_without_a_template_says_what_to_do(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    engine = load(with_chat_template(folders["tiny-bloom"], tmp_path, None))
    error = run(engine, [request(0, CHAT)])[0].error
    assert error is not None
    assert error.code == "no_chat_template"
    assert "plain prompt" in error.message


def test_named_templates_without_a_default_are_told_by_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_chat_template(folders["tiny-bloom"], tmp_path, None)
    named = [{"name": name, "template": "{{ messages[0].content }}"} for name in ("rag", "tools")]
    edit(folder / "tokenizer_config.json", chat_template=named)
    error = run(load(folder), [request(0, CHAT)])[0].error
    assert error is not None
    assert error.code == "no_chat_template"
    assert "named rag, tools and none named default" in error.message


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{{ {}.pop('key') }}",
        "{{ messages | sum }}",
        "{{ messages.content.parts }}",
        "{{ range(10 ** 9) }}",
        "{% for %}",
        "no content",
    ],
)
def test_a_template_that_refuses_the_messages_fails_that_prompt_alone(
    template: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    engine = load(with_chat_template(folders["tiny-bloom"], tmp_path, template))
    results = run(engine, [request(0, CHAT), request(1, "A")])
    assert results[0].error is not None
    assert results[0].error.code == "invalid_chat"
    assert results[1].error is None
