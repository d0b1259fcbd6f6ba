"""What tests of the engine share: loading a folder, asking it, editing a copy of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engine.interface import (
    Engine,
    GenerationRequest,
    GenerationResult,
    LoadProgress,
    ModelSource,
    RequestList,
    SamplingParameters,
)
from engine.load import load_engine

NEW_TOKENS = 10
# Longest first, as the engine runs them: bitsandbytes looks at a batch as a whole.
RAGGED_PROMPTS = (
    "The worker claims a shard in the database and renews its lease while it works on",
    "Every prompt is written to the database before",
    "The queue holds",
    "A",
)


def never() -> bool:
    return False


def ignore(_progress: LoadProgress) -> None:
    pass


def load(folder: Path, alias: str = "tiny", **options: Any) -> Engine:
    source = ModelSource(
        alias=alias, folder=folder, context_tokens=options.pop("context_tokens", None)
    )
    return load_engine(source, on_progress=ignore, should_stop=never, device="cpu", **options)


def request(key: int, prompt: Any, **parameters: Any) -> GenerationRequest:
    options = {"max_new_tokens": NEW_TOKENS, **parameters}
    return GenerationRequest(key=key, prompt=prompt, parameters=SamplingParameters(**options))


def run(engine: Engine, requests: list[GenerationRequest]) -> dict[int, GenerationResult]:
    batches = engine.generate(RequestList(requests), should_stop=never)
    return {result.key: result for batch in batches for result in batch.results}


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, **values: Any) -> None:
    stored = json.loads(path.read_text()) if path.is_file() else {}
    stored.update(values)
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))
