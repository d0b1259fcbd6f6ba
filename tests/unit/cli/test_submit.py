from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from jobs.database import Database
from jobs.store.reading import job_report
from jobs.store.workers import register_worker
from tests.ledger import job_count
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import completed, failed, work_off

NO_WORKER = "no worker is running yet: start one with tgp-jobs worker\n"


def test_only_the_id_is_printed_on_stdout(tgp: Tgp, prompt_file: Path) -> None:
    result = tgp("submit", prompt_file, "--model", "tiny-bloom")
    assert result.exit_code == 0
    assert re.fullmatch(r"[0-9a-z]{8}\n", result.stdout)
    assert result.stderr == NO_WORKER


def test_with_json_the_document_says_what_was_stored(tgp: Tgp, prompt_file: Path) -> None:
    result = tgp("submit", prompt_file, "--model", "tiny-bloom", "--shard-size", "2", "--json")
    document = json.loads(result.stdout)
    assert document == {
        "id": document["id"],
        "model": "tiny-bloom",
        "prompts": 3,
        "shards": 2,
        "created": True,
        "published": False,
    }


def test_the_job_is_stored_as_it_was_ordered(
    tgp: Tgp, prompt_file: Path, sqlite_database: Database
) -> None:
    job_id = tgp(
        *("submit", prompt_file, "--model", "tiny-bloom", "--name", "nightly"),
        *("--priority", "low", "--max-new-tokens", "7", "--temperature", "0.5"),
        *("--stop", "[END]", "--stop", "\n"),
    ).stdout.strip()
    job = job_report(sqlite_database, job_id)
    assert (job.name, job.priority, job.total) == ("nightly", "low", 3)
    assert job.parameters == {"max_new_tokens": 7, "temperature": 0.5, "stop": ["[END]", "\n"]}


def test_what_ends_a_completion_and_what_is_told_of_it_are_options_too(
    tgp: Tgp, prompt_file: Path, sqlite_database: Database
) -> None:
    options = ("--eos-token-ids", "[2, 0]", "--logprobs", "0", "--echo")
    job_id = tgp("submit", prompt_file, "--model", "tiny-bloom", *options).stdout.strip()
    parameters = job_report(sqlite_database, job_id).parameters
    assert parameters == {"eos_token_ids": [2, 0], "logprobs": 0, "echo": True}


def test_prompts_come_from_standard_input_too(tgp: Tgp, sqlite_database: Database) -> None:
    options = ("--model", "tiny-bloom", "--input-format", "txt")
    job_id = tgp("submit", "-", *options, stdin="a\nb\n").stdout.strip()
    assert job_report(sqlite_database, job_id).total == 2


def test_a_hub_id_names_the_model_as_well_as_its_alias(tgp: Tgp, prompt_file: Path) -> None:
    result = tgp("submit", prompt_file, "--model", "bigscience/bloom-7b1", "--json")
    assert json.loads(result.stdout)["model"] == "bloom-7b1"


def test_a_model_that_only_a_worker_knows_is_accepted(
    tgp: Tgp, prompt_file: Path, sqlite_database: Database
) -> None:
    register_worker(
        sqlite_database, worker_id="w", hostname="h", process=1, version="1", models=["own-model"]
    )
    assert tgp("submit", prompt_file, "--model", "own-model").exit_code == 0


def test_a_job_whose_model_no_live_worker_serves_is_told(
    tgp: Tgp, prompt_file: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a queue that answers, and a worker that was started with another catalogue
    monkeypatch.setattr("cli.commands.submit.publish_job", lambda *_: True)
    register_worker(
        sqlite_database, worker_id="w", hostname="h", process=1, version="1", models=["other"]
    )
    told = tgp("submit", prompt_file, "--model", "tiny-bloom").stderr
    assert "no live worker serves tiny-bloom: restart a worker whose catalogue has it" in told
    register_worker(
        sqlite_database, worker_id="v", hostname="h", process=2, version="1", models=["tiny-bloom"]
    )
    assert tgp("submit", prompt_file, "--model", "tiny-bloom").stderr == ""


class TestOpenAiLines:
    @pytest.fixture
    def batch(self, tmp_path: Path) -> Path:
        path = tmp_path / "batch.jsonl"
        self.write(path, "tiny-bloom")
        return path

    @staticmethod
    def write(path: Path, *models: str | None) -> None:
        lines = [
            {
                "custom_id": f"r{number}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {"prompt": "x"} | ({"model": model} if model else {}),
            }
            for number, model in enumerate(models)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def test_the_one_model_they_name_is_taken(self, tgp: Tgp, batch: Path) -> None:
        assert json.loads(tgp("submit", batch, "--json").stdout)["model"] == "tiny-bloom"

    def test_the_flag_wins_and_says_so(self, tgp: Tgp, batch: Path) -> None:
        result = tgp("submit", batch, "--model", "tiny-flan", "--json")
        assert json.loads(result.stdout)["model"] == "tiny-flan"
        assert result.stderr == (
            "--model wins: all prompts go to tiny-flan, although lines name tiny-bloom\n"
            + NO_WORKER
        )

    def test_the_flag_that_agrees_says_nothing(self, tgp: Tgp, batch: Path) -> None:
        assert tgp("submit", batch, "--model", "tiny-bloom").stderr == NO_WORKER

    @pytest.mark.parametrize(
        ("models", "message"),
        [
            ((None,), "names no model: add --model"),
            (("tiny-bloom", "tiny-flan"), "names several models (tiny-bloom, tiny-flan)"),
            (("gpt-5",), "no model is called 'gpt-5'"),
        ],
    )
    def test_lines_that_name_no_usable_model_need_the_flag(
        self,
        tgp: Tgp,
        batch: Path,
        sqlite_database: Database,
        models: tuple[str | None, ...],
        message: str,
    ) -> None:
        self.write(batch, *models)
        result = tgp("submit", batch)
        assert result.exit_code == 2
        assert message in result.stderr
        assert job_count(sqlite_database) == 0


class TestIdempotencyKey:
    def test_a_second_submit_prints_the_first_ones_id(self, tgp: Tgp, prompt_file: Path) -> None:
        options = ("--model", "tiny-bloom", "--idempotency-key", "k")
        first = tgp("submit", prompt_file, *options)
        second = tgp("submit", prompt_file, *options)
        assert second.stdout == first.stdout
        assert second.exit_code == 0
        assert "was stored with this idempotency key before" in second.stderr

    def test_the_document_says_that_nothing_was_created(self, tgp: Tgp, prompt_file: Path) -> None:
        options = ("--model", "tiny-bloom", "--idempotency-key", "k", "--json")
        first = json.loads(tgp("submit", prompt_file, *options).stdout)
        second = json.loads(tgp("submit", prompt_file, *options).stdout)
        assert second == first | {"created": False}

    def test_other_prompts_under_the_same_key_are_refused(
        self, tgp: Tgp, prompt_file: Path, sqlite_database: Database
    ) -> None:
        options = ("--model", "tiny-bloom", "--idempotency-key", "k")
        tgp("submit", prompt_file, *options)
        prompt_file.write_text('{"prompt": "another"}\n')
        result = tgp("submit", prompt_file, *options)
        assert result.exit_code == 2
        assert "use a new key" in result.stderr
        assert job_count(sqlite_database) == 1


BAD_ARGUMENTS = [
    (("--model", "tiny-blom"), "did you mean 'tiny-bloom'?"),
    (("--model", "tiny-bloom", "--top-p", "3"), "--top-p: 3 is out of range"),
    (("--model", "tiny-bloom", "--max-new-tokens", "x"), "--max-new-tokens: 'x' is not"),
    (("--model", "tiny-bloom", "--stop", ""), "--stop: "),
    (("--model", "tiny-bloom", "--min-new-tokens", "500"), "min_new_tokens"),
    (("--model", "tiny-bloom", "--eos-token-ids", "</s>"), "--eos-token-ids: '</s>' is not"),
    (("--model", "tiny-bloom", "--logprobs", "21"), "--logprobs: 21 is out of range"),
    (("--model", "tiny-bloom", "--name", "a\x1b[31m"), "--name: 'a\\x1b[31m' holds control"),
    (("--model", "tiny-bloom", "--name", "a" * 201), "--name: 201 characters"),
    (("--model", "tiny-bloom", "--name", ""), "--name: 0 characters"),
    (("--model", "tiny-bloom", "--idempotency-key", "k" * 201), "--idempotency-key: 201"),
    (("--model", "tiny-bloom", "--priority", "urgent"), "'urgent' is not one of"),
    ((), "names no model: add --model"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_a_bad_option_is_refused_and_nothing_stored(
    tgp: Tgp,
    prompt_file: Path,
    sqlite_database: Database,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    result = tgp("submit", prompt_file, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert job_count(sqlite_database) == 0


def test_all_bad_parameters_are_told_at_once(tgp: Tgp, prompt_file: Path) -> None:
    options = ("--top-p", "3", "--seed", "-1")
    result = tgp("submit", prompt_file, "--model", "tiny-bloom", *options)
    assert "--top-p: " in result.stderr
    assert "--seed: " in result.stderr


def test_a_file_that_is_not_there_is_refused(tgp: Tgp, tmp_path: Path) -> None:
    result = tgp("submit", tmp_path / "none.jsonl", "--model", "tiny-bloom")
    assert result.exit_code == 2
    assert "none.jsonl: there is no such file" in result.stderr


def test_every_bad_line_is_told_and_nothing_stored(
    tgp: Tgp, tmp_path: Path, sqlite_database: Database
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "fine"}\n{"promt": "x"}\n{"prompt": ""}\n')
    result = tgp("submit", path, "--model", "tiny-bloom")
    assert result.exit_code == 2
    assert f"{path}:2: " in result.stderr
    assert f"{path}:3: " in result.stderr
    assert result.stderr.endswith("nothing was stored\n")
    assert job_count(sqlite_database) == 0


def test_a_compressed_file_is_read_like_any_other(
    tgp: Tgp, tmp_path: Path, prompt_file: Path, sqlite_database: Database
) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    path.write_bytes(gzip.compress(prompt_file.read_bytes()))
    job_id = tgp("submit", path, "--model", "tiny-bloom").stdout.strip()
    assert job_report(sqlite_database, job_id).total == 3


def test_a_socket_that_nobody_listens_at_means_no_worker(
    tgp: Tgp, home: Path, prompt_file: Path
) -> None:
    socket = home / "redis" / "redis.sock"
    socket.parent.mkdir(parents=True)
    socket.touch()
    assert tgp("submit", prompt_file, "--model", "tiny-bloom").stderr == NO_WORKER


@pytest.mark.parametrize(("last_fails", "code"), [(False, 0), (True, 1)])
def test_watching_ends_with_the_job(
    tgp: Tgp,
    prompt_file: Path,
    sqlite_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    last_fails: bool,
    code: int,
) -> None:
    def work(_settings: object, _database: object, job_id: str) -> bool:
        last = failed(2) if last_fails else completed(2)
        work_off(sqlite_database, job_id, [completed(0), completed(1), last])
        return True

    monkeypatch.setattr("cli.commands.submit.publish_job", work)
    result = tgp("submit", prompt_file, "--model", "tiny-bloom", "--watch")
    assert result.exit_code == code
    job_id = result.stdout.strip()
    assert result.stderr.endswith(f"job {job_id} completed: tgp-jobs results {job_id}\n")
