"""The promises of a prompt file as a whole: all problems, every source, two equal passes."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import PromptFileError
from jobs.prompts.file import PromptFile
from jobs.prompts.lines import LONGEST_LINE_BYTES
from tests.unit.jobs.prompt_contents import opened, problems_of, summary_of

TOO_LONG = ":1: the line is too long; expected at most 16 MiB"


class TestAllProblems:
    def test_every_problem_of_a_line_is_reported(self) -> None:
        line = '{"prompt": "", "custom_id": 1, "temperature": 9, "top_p": 2}'
        names = [problem.split()[1] for problem in problems_of(line)]
        assert names == ["custom_id:", "prompt", "temperature:", "top_p:"]

    def test_a_duplicate_custom_id_names_both_lines(self) -> None:
        ids = ["x", "y", "a", "b", "c", "d", "a"]
        lines = [json.dumps({"prompt": "p", "custom_id": name}) for name in ids]
        assert problems_of("\n".join(lines)) == [":7: custom_id 'a' was already used on line 3"]

    def test_a_line_with_other_problems_still_uses_its_custom_id(self) -> None:
        lines = '{"prompt": "", "custom_id": "a"}\n{"prompt": "b", "custom_id": "a"}'
        assert problems_of(lines)[1:] == [":2: custom_id 'a' was already used on line 1"]

    def test_the_first_20_are_shown_in_order_of_lines_and_all_are_counted(self) -> None:
        line = '{"prompt": "", "custom_id": "a"}\n'
        with opened(line * 5000) as file, pytest.raises(PromptFileError) as caught:
            file.validate()
        shown = [int(problem.split(":")[1]) for problem in caught.value.problems]
        twice = [line for line in range(2, 11) for _ in range(2)]
        assert (shown, caught.value.problem_count) == ([1, *twice, 11], 9999)

    def test_a_refusal_says_that_nothing_was_stored(self) -> None:
        with opened("{}\n" * 25) as file, pytest.raises(PromptFileError) as caught:
            file.validate()
        assert caught.value.message.endswith("... and 5 more\n25 errors; nothing was stored")

    @pytest.mark.parametrize(
        ("content", "file_format"), [("", "jsonl"), ("\n \n", "txt"), ("prompt\n", "csv")]
    )
    def test_a_file_without_prompts_is_refused(self, content: str, file_format: str) -> None:
        assert problems_of(content, file_format) == [": holds no prompts; expected at least one"]

    @pytest.mark.parametrize("file_format", ["jsonl", "txt"])
    def test_a_line_that_is_too_long_is_refused_and_the_next_is_read(
        self, file_format: str
    ) -> None:
        content = b'\xef\xbb\xbf{"prompt": "' + b"x" * LONGEST_LINE_BYTES + b'"}\n\xff\n'
        assert problems_of(content, file_format) == [
            TOO_LONG,
            ":2: byte 0xff at position 1 is not UTF-8; expected a file saved as UTF-8",
        ]

    def test_a_line_that_is_too_long_by_spaces_is_refused(self) -> None:
        content = b'{"prompt": "a"}' + b" " * LONGEST_LINE_BYTES + b'{"prompt": "b"}'
        assert problems_of(content) == [TOO_LONG]

    def test_a_csv_record_that_is_too_long_ends_the_reading(self) -> None:
        line = b"words " * 1000 + b"\n"
        content = b'prompt\n"' + line * (LONGEST_LINE_BYTES // len(line) + 1)
        assert problems_of(content, "csv") == [
            ":2: the record is too long; expected at most 16 MiB (is a quote left open?)"
        ]

    def test_utf_16_is_named_once(self) -> None:
        assert problems_of('{"prompt": "a"}\n'.encode("utf-16")) == [
            ": the file is UTF-16; expected a file saved as UTF-8"
        ]


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(PromptFileError) as caught, PromptFile(name, **options) as file:
        file.validate()
    (problem,) = caught.value.problems
    return problem


class TestSources:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("p.jsonl", b'{"prompt": "a"}'),
            ("p.ndjson", b'{"prompt": "a"}'),
            ("p.json", b'{"prompt": "a"}'),
            ("P.TXT", b"a"),
            ("p.csv", b"prompt\na"),
            ("p.jsonl.gz", gzip.compress(b'{"prompt": "a"}', mtime=0)),
            ("p.txt.gz", gzip.compress(b"a", mtime=0)),
            ("p.CSV.GZ", gzip.compress(b"prompt\na", mtime=0)),
        ],
    )
    def test_the_extension_says_the_format(self, name: str, content: bytes) -> None:
        Path(name).write_bytes(content)
        with PromptFile(Path(name)) as file:
            assert [read.prompt for read in file.requests()] == ["a"]

    def test_a_named_format_goes_before_the_extension(self) -> None:
        Path("p.csv").write_text("prompt\n")
        with PromptFile("p.csv", file_format="txt") as file:
            assert file.validate().prompt_count == 1

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("p.xml", "the extension '.xml'"),
            ("p.gz", "a name without extension"),
            ("prompts", "a name without extension"),
        ],
    )
    def test_an_unknown_extension_is_refused_with_the_known_ones(
        self, name: str, given: str
    ) -> None:
        assert refusal(name) == (
            f"{name}: {given} says no format; expected one of "
            ".jsonl, .ndjson, .json, .txt, .csv (and .gz), or --input-format jsonl|txt|csv"
        )

    def test_an_unknown_format_is_refused_with_the_known_ones(self) -> None:
        assert refusal("p.jsonl", file_format="xml") == (
            "p.jsonl: unknown format 'xml'; expected --input-format jsonl|txt|csv"
        )

    def test_a_missing_file_is_refused(self) -> None:
        assert refusal("p.txt") == "p.txt: there is no such file"

    def test_a_directory_is_refused(self) -> None:
        Path("p.txt").mkdir()
        assert refusal("p.txt") == "p.txt: is a directory; expected a file"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file_is_refused(self) -> None:
        Path("p.txt").touch(mode=0o000)
        assert refusal("p.txt") == "p.txt: may not be read (permission denied)"

    @pytest.mark.parametrize("damage", [b"", b"x" * 9], ids=["cut short", "overwritten"])
    def test_a_damaged_gzip_file_is_refused(self, damage: bytes) -> None:
        whole = gzip.compress(b"a prompt\n" * 500)
        Path("p.txt.gz").write_bytes(whole[:-9] + damage)
        assert refusal("p.txt.gz").startswith("p.txt.gz: the gzip data is damaged or cut short (")

    def test_a_gz_name_on_other_content_is_refused(self) -> None:
        Path("p.txt.gz").write_text("a")
        assert refusal("p.txt.gz") == "p.txt.gz: the name ends in .gz but the content is not gzip"

    def test_standard_input_is_jsonl_gzipped_or_not(self) -> None:
        with PromptFile("-", stdin=io.BytesIO(gzip.compress(b'{"prompt": "a"}'))) as file:
            assert [read.prompt for read in file.requests()] == ["a"]

    def test_standard_input_is_kept_in_the_given_folder(self, folder: Path) -> None:
        assert problems_of('{"prompt": "a"}', temporary_folder=folder / "absent") == [
            ": cannot be kept in a temporary file: No such file or directory"
        ]

    def test_a_pipe_is_read_twice(self) -> None:
        os.mkfifo("pipe")
        writer = threading.Thread(target=Path("pipe").write_text, args=("a\nb\n",))
        writer.start()
        with PromptFile("pipe", file_format="txt") as file:
            file.validate()
            assert [read.prompt for read in file.requests()] == ["a", "b"]
        writer.join()

    def test_a_name_that_is_no_text_can_be_printed(self) -> None:
        assert refusal(os.fsdecode(b"\xff.txt")) == "\\udcff.txt: there is no such file"


class TestSecondPass:
    def test_a_file_that_went_bad_is_refused_at_its_first_bad_line(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        with PromptFile(path) as file:
            file.validate()
            path.write_text('{"prompt": "a"}\n{}\n')
            with pytest.raises(PromptFileError, match=r"p\.jsonl:2: prompt is missing"):
                list(file.requests())

    def test_a_file_that_changed_is_refused_at_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text("a\nb\n")
        with PromptFile(path) as file:
            file.validate()
            path.write_text("a\nb\nc\n")
            with pytest.raises(PromptFileError, match=r"p\.txt: changed while it was read"):
                list(file.requests())

    def test_requests_alone_validate_first(self) -> None:
        with opened('{"prompt": "a"}\n{}\n') as file, pytest.raises(PromptFileError):
            next(file.requests())


class TestDigest:
    @pytest.mark.parametrize(
        "content",
        [
            b'{"prompt": "\xc3\xa9"}\r\n{"prompt":"b","top_p":1}\r\n',
            b'\xef\xbb\xbf{"prompt": "\\u00e9"}\n\n{"top_p": 1.0, "prompt": "b"}',
            gzip.compress(b'{"prompt": "\xc3\xa9"}\n{"prompt": "b", "top_p": 1e0}\n', mtime=0),
        ],
    )
    def test_the_same_requests_have_the_same_digest(self, content: bytes) -> None:
        plain = '{"prompt": "é"}\n{"prompt": "b", "top_p": 1}\n'
        assert summary_of(content).digest == summary_of(plain).digest

    @pytest.mark.parametrize(
        "content",
        [
            '{"prompt": "b"}\n{"prompt": "a"}',
            '{"prompt": "a"}',
            '{"prompt": "a"}\n{"prompt": "b", "seed": 1}',
            '{"prompt": "a"}\n{"prompt": "b", "custom_id": "b"}',
            '{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}',
        ],
    )
    def test_other_requests_have_another_digest(self, content: str) -> None:
        assert summary_of(content).digest != summary_of('{"prompt": "a"}\n{"prompt": "b"}').digest


class TestMemory:
    MEASURE = """
import resource, sys
from jobs.prompts.file import PromptFile
with PromptFile(sys.argv[1]) as file:
    file.validate()
    for _ in file.requests():
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def peak_kib(self, path: Path, megabytes: int) -> int:
        filler = "x" * 2000
        with path.open("w") as file:
            for number in range(megabytes * 500):
                file.write(f'{{"custom_id": "{number}", "prompt": "{filler}"}}\n')
        command = [sys.executable, "-c", self.MEASURE, str(path)]
        root = Path(__file__).parents[3]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
        path.unlink()
        return int(done.stdout)

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        small = self.peak_kib(tmp_path / "small.jsonl", 1)
        large = self.peak_kib(tmp_path / "large.jsonl", 40)
        assert large - small < 25 * 1024
