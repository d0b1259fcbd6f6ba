"""Faultless input for every target, which fuzzing starts from, and the words of each format."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence

DATA_BYTES = 29

JSONL = (
    b'{"prompt": "one"}\n'
    b'{"prompt": "two", "custom_id": "b", "temperature": 0.5, "stop": ["\\n", "x"], "seed": 7}\n'
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "three"}]}]}\n'
    b'{"custom_id": "r", "method": "POST", "url": "/v1/completions",'
    b' "body": {"model": "m", "prompt": ["four"], "max_tokens": 3, "n": 1}}\n'
)
CSV = b'prompt,custom_id,stop,seed\r\none,a,,\r\n"two, ""quoted""\nlines",b,"[""x""]",7\r\n'
TEXT = "\ufeffone\r\n\r\ntwo\u2028\U0001f600\n".encode()
SETTINGS_FILE = (
    b'database_url = "postgresql://u:p%40@h:5432/db?sslmode=require"\n'
    b'redis_url = "rediss://:p@h:6379/0"\nshard_size = 8\nlease_seconds = 2.5\n'
    b'device = "cpu"\nstores = "s"\nlog_format = "json"\n'
)
ENVIRONMENT = (
    b"TGP_HOME=h\0TGP_DATABASE_URL=postgresql+psycopg://[::1]:5432/db\0"
    b"TGP_REDIS_URL=redis+socket:///r.sock?virtual_host=1\0TGP_SHARD_SIZE=8\0"
    b"TGP_LEASE_SECONDS=1e1\0TGP_STORES=~/s\0TGP_CATALOGUE=c.toml\0TGP_DEVICE=auto"
)
CATALOGUE = (
    b'[models.a]\nhub_id = "t/m"\nrevision = "main"\ncontext_tokens = 9\n'
    b'[models."b.c-d"]\nfolder = "../x"\ndescription = "d"\n'
    b'[models.n]\nengine = "null"\nload_seconds = 0.5\ncrash_on = "x"\n'
)


def store_file() -> bytes:
    """A small safetensors file as the store writes it, but for the padding."""
    header = {
        "__metadata__": {"format": "pt"},
        "w.SCB": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "w.weight": {"dtype": "I8", "shape": [4, 3], "data_offsets": [16, 28]},
        "w.weight_format": {"dtype": "U8", "shape": [], "data_offsets": [28, 29]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(DATA_BYTES)


def tensor(name: str, dtype: str, shape: list[int], role: str) -> dict[str, object]:
    facts = {"name": name, "model_name": name, "dtype": dtype, "shape": shape, "role": role}
    return facts | {"is_parameter": name.endswith("weight")}


def linear(name: str) -> tuple[dict[str, object], ...]:
    return (
        tensor(f"{name}.weight", "I8", [4, 3], "int8"),
        tensor(f"{name}.SCB", "F32", [4], "scales"),
        tensor(f"{name}.weight_format", "U8", [], "format"),
    )


def block(name: str, kind: str, *tensors: dict[str, object]) -> dict[str, object]:
    return {"name": name, "kind": kind, "is_lookup": kind == "embedding", "tensors": tensors}


# The way to a place in a layout, and what to put there.
LAYOUT_EDITS = (
    b'["dtype", "I8"]',
    b'["ties", "lm_head.weight", "shared.weight"]',
    b'["ties", {}]',
    b'["blocks", 1, "tensors", 0, "shape", [64, 64]]',
    b'["blocks", 1, "tensors", 0, "shape", 0, 7]',
    b'["blocks", 2, "tensors", 1, "model_name", "decoder.x.weight"]',
    b'["blocks", 2, "tensors", 1, "model_name", ""]',
    b'["blocks", 0, "is_lookup", 1]',
    b'["blocks", 3, "is_lookup", true]',
    b'["blocks", 3, "kind", "encoder"]',
    b'["blocks", 1, "name", "decoder-009"]',
    b'["blocks", 1, "tensors", 0, "role", "plain"]',
    b'["blocks", 1, "tensors", 2, "role", "int8"]',
    b'["blocks", 2, "tensors", []]',
    b'["blocks", []]',
)


def manifest() -> bytes:
    origin = {"location": "x", "commit": None, "fingerprint": "f", "quantisation": {"a": 6.0}}
    file = {"bytes": 29, "sha256": "0" * 64}
    document = {
        "origin": origin | {"dtype": "auto", "format_version": 3},
        "total_bytes": 29,
        "layout": {
            "blocks": [
                block("embed", "embedding", tensor("e.weight", "F32", [2, 3], "plain")),
                block("d-0", "decoder", *linear("d.0.wo")),
            ],
            "dtype": "F32",
            "ties": {"head.weight": "e.weight"},
        },
        "files": dict.fromkeys(
            ("config.json", "embed.safetensors", "d-0.engine.safetensors"), file
        ),
        "made_with": {"torch": "2.13.0"},
    }
    return json.dumps(document).encode()


SEEDS: Mapping[str, Sequence[bytes]] = {
    "jsonl": (JSONL, *JSONL.splitlines(keepends=True)),
    "csv": (CSV,),
    "text": (TEXT,),
    "gzip": (gzip.compress(JSONL)[2:], CSV),
    "settings_file": (SETTINGS_FILE,),
    "settings_environment": (ENVIRONMENT, b"TGP_REDIS_URL=redis://:p@h:1/0", b"TGP_CONFIG=c.toml"),
    "catalogue": (CATALOGUE,),
    "store_header": (store_file(), store_file()[8:-DATA_BYTES]),
    "store_manifest": (manifest(),),
    "store_layout": (b"", *LAYOUT_EDITS, b"\n".join(LAYOUT_EDITS)),
    "message": (b"[[1], {}, {}]", b'[[], {"shard_id": 1}, {}]', b'[["1"], {}]'),
}

# What a mutation may put in: the formats' own words, and numbers at their edges.
WORDS = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"=", b"\n", b"\r", b"\0", b"\\", b"'", b"%", b"@"),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"-0.0", b"1" * 30),
    *(b"9223372036854775808", b"4294967296", b"\\ud800", b"\xed\xa0\x80", b"\xff", b"\x1b[31m"),
    *(b"../", b"/", b"~", b"[[[[[[[[", b'""', b"[]", b"{}", b'{"a":' * 8, b"\xef\xbb\xbf"),
    *(b'"prompt"', b'"messages"', b'"role"', b'"content"', b'"body"', b'"stop"', b'"seed"'),
    *(b"TGP_", b"_URL=", b"redis://", b"sqlite:///", b"postgresql://", b"://", b"[models."),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"I8"', b'"__metadata__"', b'"files"'),
    *(b'"layout"', b'"blocks"', b'"tensors"', b'"model_name"', b'"role"', b'"ties"', b'"kind"'),
)
