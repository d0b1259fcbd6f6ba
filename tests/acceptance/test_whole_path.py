"""The whole path for all four families: submit, work, results."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.box import Box

pytestmark = pytest.mark.acceptance
FAMILIES = ("tiny-bloom", "tiny-gpt-neox", "tiny-cerebras", "tiny-flan")
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "The worker", "custom_id": "first"},
    {"prompt": "A shard is", "max_new_tokens": 3},
    {"prompt": "The database is the ledger and", "temperature": 0.8, "seed": 7},
    {"prompt": "Every command"},
    {"prompt": "word " * 400, "custom_id": "too long"},
]


SLOW = '[models.slow]\nengine = "null"\nmicro_batch_seconds = 0.2\n'


@pytest.fixture(scope="module")
def served_box() -> Iterator[Box]:
    """SQLite, an embedded Redis and a worker of every model, which the tests share."""
    folder = Path(tempfile.mkdtemp(prefix="tgp-box-"))
    box = Box(folder)
    box.catalogue(SLOW)
    box.worker()
    yield box
    box.close()
    shutil.rmtree(folder)


@pytest.fixture
def served_postgres_box(postgres_box: Box) -> Box:
    postgres_box.worker()
    return postgres_box


@pytest.mark.parametrize("kind", ["served_box", "served_postgres_box"])
def test_every_family_is_worked_through_by_one_worker(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Given a job for each family, one worker completes them all in input order."""
    any_box: Box = request.getfixturevalue(kind)
    file = any_box.prompts(PROMPTS)
    jobs = {model: any_box.submit(file, model, "--max-new-tokens", "8") for model in FAMILIES}

    for model, job_id in jobs.items():
        status = any_box.wait_for_end(job_id)
        lines = any_box.results(job_id)
        assert status["status"] == "completed", status
        assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
        assert [line["custom_id"] for line in lines] == ["first", None, None, None, "too long"]
        assert {line["model"] for line in lines} == {model}
        done, failed = lines[:4], lines[4]
        assert all(line["error"] is None for line in done)
        assert all(isinstance(line["completion"], str) for line in done)
        assert all(line["finish_reason"] in ("stop", "length") for line in done)
        assert done[1]["completion_tokens"] <= 3
        assert failed["error"]["code"] == "prompt_too_long"
        assert failed["completion"] is None
        assert status["counts"] == {"total": 5, "completed": 4, "failed": 1, "pending": 0}
        assert status["tokens"]["completion"] == sum(line["completion_tokens"] for line in done)


def test_the_same_job_gives_the_same_results_again(served_box: Box) -> None:
    file = served_box.prompts(PROMPTS[:4])
    completions = []
    for _ in range(2):
        job_id = served_box.submit(file, "tiny-bloom", "--max-new-tokens", "8", "--watch")
        completions.append([line["completion"] for line in served_box.results(job_id)])

    assert completions[0] == completions[1]


def test_waiting_commands_tell_of_failed_prompts_by_their_exit_code(served_box: Box) -> None:
    done = served_box.run(
        "submit", served_box.prompts(PROMPTS), "--model", "tiny-bloom", "--watch", exit_code=1
    )
    job_id = done.stdout.strip()

    served_box.run("results", job_id, "--follow", exit_code=1)
    served_box.run("status", job_id, "--watch", exit_code=1)
    assert len(served_box.results(job_id, "--failed")) == 1


def test_follow_shows_results_in_input_order_while_the_job_runs(served_box: Box) -> None:
    job_id = served_box.submit(served_box.prompts([f"prompt {n}" for n in range(100)]), "slow")
    lines = served_box.results(job_id, "--follow")

    assert [line["index"] for line in lines] == list(range(100))
    assert lines[41]["completion"] == "prompt 41"


def test_a_chat_line_goes_through_the_chat_template(served_box: Box) -> None:
    """OpenAI batch lines in, OpenAI batch lines out."""
    body = {"messages": [{"role": "user", "content": "What is a shard?"}], "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}

    job_id = served_box.submit(served_box.prompts([line]), "tiny-bloom", "--watch")
    (answer,) = served_box.results(job_id, "--format", "openai")
    without = served_box.run(
        *("submit", served_box.prompts([line]), "--model", "tiny-cerebras", "--watch"), exit_code=1
    )

    assert answer["custom_id"] == "a"
    assert answer["response"]["body"]["object"] == "chat.completion"
    assert answer["response"]["body"]["usage"]["completion_tokens"] <= 4
    (refused,) = served_box.results(without.stdout.strip())
    assert refused["error"]["code"] == "no_chat_template"


def test_a_request_may_ask_for_logprobs_an_echo_and_no_end_but_its_length(served_box: Box) -> None:
    line = {"prompt": "The worker", "max_new_tokens": 6}
    body = {"prompt": "The worker", "max_tokens": 6, "logprobs": 2, "echo": True}
    own = served_box.submit(
        served_box.prompts([line]),
        "tiny-bloom",
        *("--logprobs", "2", "--echo", "--eos-token-ids", "[]", "--watch"),
    )
    openai = served_box.submit(
        served_box.prompts([{"url": "/v1/completions", "body": body | {"eos_token_ids": []}}]),
        *("tiny-bloom", "--watch"),
    )
    (result,) = served_box.results(own)
    (answer,) = served_box.results(openai, "--format", "openai")

    assert (result["finish_reason"], result["completion_tokens"]) == ("length", 6)
    new_text = "".join(token["token"] for token in result["logprobs"])
    assert result["completion"] == "The worker" + new_text
    assert all(len(token["top"]) == 2 for token in result["logprobs"])
    # greedy takes the likeliest
    assert [token["token_id"] for token in result["logprobs"]] == [
        token["top"][0]["token_id"] for token in result["logprobs"]
    ]
    choice = answer["response"]["body"]["choices"][0]
    assert choice["text"] == result["completion"]
    assert "".join(choice["logprobs"]["tokens"]) == new_text
    assert result["timing"]["first_token_seconds"] > 0
    assert served_box.status(own)["steps"]["count"] > 0


def test_run_needs_neither_worker_nor_redis(box: Box, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    box.run(
        *("run", box.prompts(PROMPTS[:4]), "--model", "tiny-gpt-neox"),
        *("--max-new-tokens", "4", "-o", str(output)),
    )

    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    assert all(line["error"] is None for line in lines)
    assert not (box.home / "redis").exists()
