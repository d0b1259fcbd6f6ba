"""A chat's content reaches the model, in the form that the template reads."""

from __future__ import annotations

from typing import Any

import pytest

from engine.decode.chat import ContentLostError, chat_text
from engine.interface import ChatMessage
from tests.tiny_checkpoints import tiny_tokenizer

TEXT = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %};{% endfor %}"
)
PARTS_WITHOUT_A_LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }};{% endfor %}"
PARTS_OR_ERROR = (
    "{% for m in messages %}{{ m.role }}: "
    "{{ (m.content | selectattr('type', 'equalto', 'text') | first)['text'] }};{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}"
    "{% else %}{{ m.content[0].text }}{% endif %};{% endfor %}"
)
PARTS_FOR_USERS_ONLY = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'system' %}{{ m.content }}"
    "{% else %}{{ m.content[0].text }}{% endif %};{% endfor %}"
)
CHAT = (
    ChatMessage(role="system", content="Be short"),
    ChatMessage(role="user", content="Name three rivers"),
    ChatMessage(role="assistant", content=""),
)


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [TEXT, PARTS, PARTS_WITHOUT_A_LOOP, PARTS_OR_ERROR, EITHER, PARTS_FOR_USERS_ONLY],
)
def test_content_is_given_in_the_form_that_the_template_reads(template: str) -> None:
    messages = CHAT[:2]
    text = chat_text(with_template(template), messages)
    assert text == "system: Be short;user: Name three rivers;"


def test_an_empty_content_is_no_content_that_is_lost() -> None:
    assert chat_text(with_template(TEXT), CHAT).endswith("assistant: ;")


def test_a_template_may_change_a_content() -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] | upper }}{% endfor %}"
    messages = (ChatMessage(role="assistant", content="<think>long</think>short"),)
    assert chat_text(with_template(template), messages) == "SHORT"


@pytest.mark.parametrize("template", ["", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_leaves_out_a_message_is_refused_by_its_number(template: str) -> None:
    with pytest.raises(ContentLostError, match="message 1, of the role 'system'"):
        chat_text(with_template(template + "x"), CHAT[:2])
