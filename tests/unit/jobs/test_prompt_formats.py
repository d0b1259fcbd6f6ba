"""The promises of our own formats: what is read from them, and every refusal word for word."""

from __future__ import annotations

import io
import json

import pytest

from jobs.prompts.file import PromptFile
from jobs.prompts.lines import numbered_lines
from jobs.prompts.parameters import PARAMETERS, ParameterError
from tests.unit.jobs.prompt_contents import Content, as_bytes, problems_of, request, requests_of

KNOWN = ", ".join(["prompt", "messages", "custom_id", *PARAMETERS])
COLUMNS = ", ".join(["prompt", "custom_id", *PARAMETERS])
NUL = "holds a NUL character, which the database cannot store; expected text without it"


class TestJsonLines:
    def test_a_line_is_a_prompt_with_its_custom_id_and_parameters(self) -> None:
        line = '{"prompt": "Hi", "custom_id": "a", "temperature": 1, "stop": "\\n", "seed": null}'
        parameters = {"temperature": 1.0, "stop": ["\n"]}
        assert requests_of(line) == [request(1, "Hi", custom_id="a", parameters=parameters)]

    @pytest.mark.parametrize("key", ["custom_id", "messages", "url", "body", "seed", "topic"])
    def test_a_null_key_counts_as_not_given(self, key: str) -> None:
        assert requests_of(json.dumps({"prompt": "Hi", key: None})) == [request(1, "Hi")]

    def test_a_line_may_be_a_chat(self) -> None:
        parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
        system = {"role": "system", "content": "Be brief."}
        (read,) = requests_of(
            json.dumps({"messages": [system, {"role": "user", "content": parts}]})
        )
        assert read.messages == [system, {"role": "user", "content": "Hi"}]

    @pytest.mark.parametrize(
        "extra",
        [{"cache_control": {"type": "ephemeral"}}, {"annotations": []}, {"id": 1, "index": None}],
    )
    def test_further_keys_of_a_text_part_change_nothing(self, extra: dict[str, object]) -> None:
        part = {"type": "text", "text": "Hi"} | extra
        (read,) = requests_of(json.dumps({"messages": [{"role": "user", "content": [part]}]}))
        assert read.messages == [{"role": "user", "content": "Hi"}]

    def test_empty_keys_of_a_message_change_nothing(self) -> None:
        message = {"role": "assistant", "content": "Hi"}
        empty: dict[str, object] = {
            "refusal": None,
            "tool_calls": [],
            "annotations": [],
            "audio": None,
            "name": "",
        }
        (read,) = requests_of(json.dumps({"messages": [message | empty]}))
        assert read.messages == [message]

    def test_blank_lines_are_skipped_and_counted(self) -> None:
        lines = b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n  \r\n\r\n{"prompt": "b"}'
        assert requests_of(lines) == [request(2, "a"), request(5, "b")]

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ('{"prompt": ""}', "prompt is empty; expected at least one character"),
            ('{"prompt": 7}', "prompt: 7 is not a string; expected a string"),
            ('{"prompt": null}', 'prompt is missing; expected {"prompt": "..."}'),
            ('{"prompt": ["a"]}', "prompt: a list of 1 is not a string; expected a string"),
            ("{}", 'prompt is missing; expected {"prompt": "..."}'),
            ('{"prompt": "a\\u0000"}', f"prompt {NUL}"),
            (
                '{"prompt": "\\ud800"}',
                "prompt holds half of a surrogate pair (\\ud800 to \\udfff); "
                "expected whole characters",
            ),
            (
                '{"prompt": "a", "custom_id": 7}',
                'custom_id: 7 is a number; expected a string such as "7"',
            ),
            (
                '{"prompt": "a", "custom_id": true}',
                "custom_id: true is not a string; expected a string",
            ),
            (
                '{"prompt": "a", "custom_id": ""}',
                "custom_id is empty; expected a string, or no custom_id",
            ),
            (
                json.dumps({"prompt": "a", "custom_id": "x" * 513}),
                "custom_id has 513 characters; expected at most 512",
            ),
            ('{"prompt": "a", "custom_id": "\\u0000"}', f"custom_id {NUL}"),
            (
                '{"prompt": "a", "temperature": 9}',
                "temperature: 9 is out of range; expected a number from 0 to 5",
            ),
            (
                '{"prompt": "a", "max_tokens": 9}',
                f"unknown parameter 'max_tokens' (did you mean 'max_new_tokens'?); known: {KNOWN}",
            ),
            (
                '{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}',
                "prompt and messages are both given; expected one of them",
            ),
            ('{"prompt": "a", "prompt": "b"}', "key 'prompt' stands twice; expected each key once"),
            ('{"prompt": "a", "top_p": NaN}', "NaN is not JSON; expected a number"),
            ('{"prompt": "a", "top_p": -Infinity}', "-Infinity is not JSON; expected a number"),
            ('"a"', "'a' is not an object; expected {\"prompt\": \"...\"}"),
            (
                '{"prompt": "a"',
                "not valid JSON at column 15: Expecting ',' delimiter; "
                'expected one object such as {"prompt": "..."}',
            ),
            (
                '{"prompt": "a"} {}',
                "more text follows the JSON value at column 16; expected one object per line",
            ),
            ('{"n": ' + "9" * 5000 + "}", "a number has too many digits; expected a shorter one"),
            ('{"a":' * 100_000, "the JSON is nested too deeply; expected a flat object"),
            (
                b'{"prompt": "\xe9"}',
                "byte 0xe9 at position 13 is not UTF-8; expected a file saved as UTF-8",
            ),
            (
                '{"prompt": "a", "min_new_tokens": 129}',
                "min_new_tokens: 129 is too many; expected at most max_new_tokens, 128",
            ),
        ],
    )  # fmt: skip
    def test_a_bad_line_is_refused_with_its_number(self, line: Content, problem: str) -> None:
        content = b'{"prompt": "fine"}\n' + as_bytes(line) + b"\n"
        assert problems_of(content) == [f":2: {problem}"]

    @pytest.mark.parametrize(
        ("messages", "problem"),
        [
            (
                [],
                "messages: a list of 0 is not usable; expected a list of at least one "
                'message such as {"role": "user", "content": "..."}',
            ),
            (["hi"], "messages[0]: 'hi' is not an object with role and content"),
            (
                [{"role": "robot", "content": "a"}],
                "messages[0].role: 'robot' is not a role; "
                "expected system, developer, user, assistant or tool",
            ),
            (
                [{"role": "user", "content": None}],
                "messages[0].content: null is not text; expected a string or text parts",
            ),
            (
                [{"role": "user", "content": "a", "tool_calls": [{"id": "x"}]}],
                "messages[0]: 'tool_calls' is not supported; expected role and content",
            ),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
                "messages[0].content[0]: a part of type 'image_url' is not supported; "
                'expected {"type": "text", "text": "..."}',
            ),
            (
                [{"role": "user", "content": [{"type": "text", "text": [{"type": "text"}]}]}],
                "messages[0].content[0].text: a list of 1 is not text; expected a string",
            ),
            ([{"role": "user", "content": "a\0"}], f"messages[0].content {NUL}"),
        ],
    )
    def test_a_bad_chat_is_refused_with_its_place(self, messages: object, problem: str) -> None:
        assert problems_of(json.dumps({"messages": messages})) == [f":1: {problem}"]

    def test_an_array_of_objects_is_refused_once(self) -> None:
        assert problems_of('[\n{"prompt": "a"},\n{"prompt": "b"}\n]') == [
            ":1: a JSON array; expected one JSON object per line (`jq -c '.[]'` makes them)"
        ]

    def test_a_jobs_maximum_counts_for_a_lines_minimum(self) -> None:
        line = '{"prompt": "a", "min_new_tokens": 20}'
        assert problems_of(line, job_parameters={"max_new_tokens": 10}) == [
            ":1: min_new_tokens: 20 is too many; expected at most max_new_tokens, 10"
        ]

    def test_a_bad_job_parameter_is_refused_before_the_file_is_read(self) -> None:
        with pytest.raises(ParameterError, match=r"^temperature: 9 is out of range"):
            PromptFile("absent.jsonl", job_parameters={"temperature": 9})


class TestLineEnds:
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
    @pytest.mark.parametrize(
        ("file_format", "lines"),
        [
            ("txt", [b"one", b"", b"two", b"three"]),
            ("jsonl", [b'{"prompt": "one"}', b"", b'{"prompt": "two"}', b'{"prompt": "three"}']),
            ("csv", [b"prompt", b"one", b"two", b'"three"']),
        ],
    )
    def test_a_line_ends_at_a_line_feed_a_carriage_return_or_both(
        self, file_format: str, lines: list[bytes], end: bytes
    ) -> None:
        for content in (end.join(lines), end.join([*lines, b""])):
            read = requests_of(content, file_format)
            assert [each.prompt for each in read] == ["one", "two", "three"]

    def test_each_line_of_a_file_may_end_in_its_own_way(self) -> None:
        content = b"one\rtwo\r\nthree\r\r\nfour\n"
        assert requests_of(content, "txt") == [
            request(1, "one"),
            request(2, "two"),
            request(3, "three"),
            request(5, "four"),
        ]

    def test_a_carriage_return_inside_quotes_belongs_to_the_cell(self) -> None:
        content = b'prompt\r"one\rtwo\r\nthree"\rfour\r'
        assert requests_of(content, "csv") == [
            request(2, "one\rtwo\r\nthree"),
            request(5, "four"),
        ]

    def test_lines_are_told_apart_wherever_a_block_of_the_file_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = b"one\rtwo\r\nlong line\rfour\r\nlonger line\r\nsix"
        monkeypatch.setattr("jobs.prompts.lines.LONGEST_LINE_BYTES", 6)
        for shift in range(7):
            lines = dict(numbered_lines(io.BytesIO(b"\n" + b"x" * shift + b"\r" + content)))
            assert [lines[3].strip(), lines[4].strip()] == [b"one", b"two"]
            assert [len(lines[5]) > 6, len(lines[7]) > 6] == [True, True]
            assert [lines[6].strip(), lines[8]] == [b"four", b"six"]


class TestText:
    def test_a_line_is_a_prompt_with_its_spaces(self) -> None:
        content = b"\xef\xbb\xbf one \r\n\n \t\r\ntwo\r"
        assert requests_of(content, "txt") == [request(1, " one "), request(4, "two")]

    def test_a_bad_line_is_refused_with_its_number(self) -> None:
        assert problems_of(b"fine\nbad \xff\na\0\n", "txt") == [
            ":2: byte 0xff at position 5 is not UTF-8; expected a file saved as UTF-8",
            f":3: prompt {NUL}",
        ]


class TestCsv:
    def test_a_record_is_a_request(self) -> None:
        content = (
            "custom_id,prompt,temperature,max_new_tokens,stop\r\n"
            'a,"Hi, ""you""\nthere",0.5,64,"[""x"", ""y""]"\r\n'
            "\r\n"
            ",Bye,,,END\r\n"
        )
        parameters = {"temperature": 0.5, "max_new_tokens": 64, "stop": ["x", "y"]}
        assert requests_of(content, "csv") == [
            request(2, 'Hi, "you"\nthere', custom_id="a", parameters=parameters),
            request(5, "Bye", parameters={"stop": ["END"]}),
        ]

    @pytest.mark.parametrize("index", ["", '""', "Unnamed: 0"])
    def test_a_first_column_of_row_numbers_is_passed_over(self, index: str) -> None:
        content = f"{index},prompt,custom_id,max_new_tokens\n0,one,a,8.0\n1,two,b,\n"
        assert requests_of(content, "csv") == [
            request(2, "one", custom_id="a", parameters={"max_new_tokens": 8}),
            request(3, "two", custom_id="b"),
        ]

    @pytest.mark.parametrize("header", ["prompt,", "prompt,,seed", ",,prompt"])
    def test_a_column_without_a_name_elsewhere_is_refused(self, header: str) -> None:
        problem = f"unknown column ''; known: {COLUMNS}"
        assert problems_of(f"{header}\na,b,c\n", "csv") == [f":1: {problem}"]

    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            (
                "a,b",
                "2 cells; expected 3 as in the header "
                "(a cell that holds a comma or a quote needs quotes around it)",
            ),
            (",1,a", "prompt is empty; expected at least one character"),
            ("a,9,", "temperature: 9 is out of range; expected a number from 0 to 5"),
            ("a,x,", "temperature: 'x' is not a number; expected a number from 0 to 5"),
            (
                '"a"b,,',
                "not valid CSV: ',' expected after '\"'; "
                "expected quotes inside a quoted cell to be doubled",
            ),
            (
                "a",
                "1 cell; expected 3 as in the header "
                "(a cell that holds a comma or a quote needs quotes around it)",
            ),
            (b"\xff,,", "byte 0xff at position 1 is not UTF-8; expected a file saved as UTF-8"),
        ],
    )
    def test_a_bad_record_is_refused_and_the_next_is_read(
        self, record: Content, problem: str
    ) -> None:
        head = b"prompt,temperature,custom_id\n"
        content = head + as_bytes(record) + b"\nfine,,\n,,\n"
        assert problems_of(content, "csv") == [
            f":2: {problem}",
            ":4: prompt is empty; expected at least one character",
        ]

    @pytest.mark.parametrize(
        ("header", "problems"),
        [
            (
                "text",
                [
                    f"unknown column 'text'; known: {COLUMNS}",
                    "the header has no column 'prompt'; expected one",
                ],
            ),
            (
                "prompt,temprature",
                [f"unknown column 'temprature' (did you mean 'temperature'?); known: {COLUMNS}"],
            ),
            ("prompt, prompt", ["column 'prompt' stands twice; expected each column once"]),
        ],
    )
    def test_a_bad_header_is_the_only_problem(self, header: str, problems: list[str]) -> None:
        expected = [f":1: {problem}" for problem in problems]
        assert problems_of(f"{header}\n,\n,\n", "csv") == expected

    def test_a_quote_left_open_is_named_where_it_opens(self) -> None:
        assert problems_of('prompt\nfine\n"open\nmore\n', "csv") == [
            ":3: a quote is left open to the end of the file; expected a closing quote"
        ]

    def test_a_bad_byte_inside_quotes_does_not_split_the_record(self) -> None:
        assert problems_of(b'prompt\n"one\n\xff\nthree"\nfine\n', "csv") == [
            ":2: byte 0xff at position 1 is not UTF-8; expected a file saved as UTF-8"
        ]

    def test_a_long_prompt_fits_in_a_cell(self) -> None:
        prompt = "word " * 100_000
        assert requests_of(f"prompt\n{prompt}\n", "csv") == [request(2, prompt)]
