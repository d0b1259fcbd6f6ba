"""Downloading a checkpoint from the Hugging Face hub, with progress."""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    # The HTTP client's base error: httpx or httpx2, as the hub library's version has it.
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm as hub_bar  # type: ignore[attr-defined]

from engine.interface import LoadInterruptedError, LoadProgress, ModelLoadError, ModelSource

_TOKENIZER_AND_CONFIG = ("*.json", "*.txt", "*.model", "*.jinja")


_SAFETENSORS = ("model*.safetensors",)


_PICKLES = ("pytorch_model*.bin",)


_LOOKUP_TIMEOUT_SECONDS = 10.0


def download_config(source: ModelSource) -> Path | None:
    """The folder of a hub model's config.json, which is small; None if the hub does not answer."""
    try:
        return Path(
            hf_hub_download(
                str(source.hub_id),
                "config.json",
                revision=source.revision,
                etag_timeout=_LOOKUP_TIMEOUT_SECONDS,
            )
        ).parent
    except (HTTPError, OSError, HFValidationError):
        return None  # download_snapshot has the words for it


def download_snapshot(
    source: ModelSource,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> Path:
    """The local folder of a hub model, downloading what is not there yet.

    Takes safetensors where the repository has any, else .bin; without a
    network, a snapshot that was downloaded before.

    Raises:
        ModelLoadError: The hub has no such model, or it cannot be reached and
            nothing was downloaded before.
        LoadInterruptedError: should_stop() turned true on the way.
    """
    try:
        patterns, total_bytes = _files_wanted(source)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelLoadError(_refusal(source, error)) from error
    except (HTTPError, OSError) as error:
        return _earlier_snapshot(source, error)
    try:
        folder = snapshot_download(
            str(source.hub_id),
            revision=source.revision,
            allow_patterns=list(patterns),
            tqdm_class=_reporting_bar(total_bytes, on_progress, should_stop),
        )
    except (HTTPError, OSError) as error:
        raise ModelLoadError(
            f"model {source.alias}: the download of {source.hub_id} broke off ({error}); "
            "submit or retry the job and it goes on where it stopped"
        ) from error
    return Path(folder)


def _files_wanted(source: ModelSource) -> tuple[tuple[str, ...], int]:
    """File name patterns to download and their bytes in all."""
    listing = HfApi().model_info(
        str(source.hub_id),
        revision=source.revision,
        files_metadata=True,
        timeout=_LOOKUP_TIMEOUT_SECONDS,
    )
    files = {file.rfilename: file.size or 0 for file in listing.siblings or ()}
    weights = _SAFETENSORS if _matching(files, _SAFETENSORS) else _PICKLES
    patterns = (*_TOKENIZER_AND_CONFIG, *weights)
    return patterns, sum(files[name] for name in _matching(files, patterns))


def _matching(names: dict[str, int], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]


def _earlier_snapshot(source: ModelSource, reason: Exception) -> Path:
    try:
        folder = snapshot_download(
            str(source.hub_id), revision=source.revision, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"model {source.alias}: the hub cannot be reached ({reason}) and {source.hub_id} was "
            "not downloaded before; check the network, or copy the model to this box and give "
            f'its path in the catalogue TOML: [models.{source.alias}] folder = "/path/to/it"'
        ) from error
    return Path(folder)


def _refusal(source: ModelSource, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f"model {source.alias}: {source.hub_id} is gated; accept its licence on the hub and "
            "set HF_TOKEN for the worker"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"model {source.alias}: {source.hub_id} has no revision {source.revision!r}; "
            "correct `revision` in the catalogue"
        )
    return (
        f"model {source.alias}: the hub has no model {source.hub_id!r} that this worker may read; "
        "correct `hub_id` in the catalogue, or set HF_TOKEN for a private one"
    )


def _reporting_bar(
    total_bytes: int, on_progress: Callable[[LoadProgress], None], should_stop: Callable[[], bool]
) -> type[Any]:
    """A progress bar class that reports bytes and draws nothing.

    The hub library asks for a class, so what it reports to comes by closure.
    Some of its versions keep two byte bars (received and written) for the
    same download: the one that is ahead is reported, so it never runs back.
    """
    furthest = 0

    class ReportingBar(hub_bar):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.update(file=io.StringIO(), disable=False)
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]
            self.counts_bytes = options.get("unit") == "B"
            self.counted = int(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            if should_stop():
                raise LoadInterruptedError
            self.counted += int(n or 0)
            if self.counts_bytes and self.counted > furthest:
                furthest = self.counted
                on_progress(
                    LoadProgress(
                        stage="download",
                        done=furthest,
                        total=max(total_bytes, furthest),
                        unit="bytes",
                    )
                )
            shown: bool | None = super().update(n)
            return shown

    return ReportingBar
