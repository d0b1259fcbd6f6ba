"""A checkpoint's tensors by name, mapped from their files and never copied whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.interface import ModelLoadError


class StoreUnsupportedError(ModelLoadError):
    """The model cannot be made a store of in bounded memory; it may load all the same."""


def refuse_tensors(folder: Path, *, missing: Collection[str], misshapen: Collection[str]) -> None:
    """Refuse a checkpoint whose tensors are not those of its configuration.

    Args:
        folder: The checkpoint's folder.
        missing: Names of the architecture's tensors that the checkpoint lacks.
        misshapen: Names of those that it has in another shape.

    Raises:
        ModelLoadError: There are any.
    """
    for what, names in (("lacks", missing), ("has another shape for", misshapen)):
        if names:
            raise ModelLoadError(
                f"the checkpoint in {folder} {what} {len(names)} tensors of its own "
                f"architecture, {min(names)} first; config.json and weights do not belong "
                "together, copy or download the folder again"
            )


class CheckpointTensors:
    """Tensors of one or several files; each is a view of mapped memory.

    Mapped pages belong to the file, so they are no anonymous memory: the
    kernel drops them when it needs the room.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        """Open the safetensors files; .bin files are opened when a tensor is asked for.

        Raises:
            ModelLoadError: A safetensors file is damaged.
        """
        self._handles: dict[str, Any] = {}
        self._pickles: list[Path] = []
        for file in files:
            if file.suffix == ".safetensors":
                self._open_safetensors(file)
            else:
                self._pickles.append(file)

    def names(self) -> list[str]:
        """All tensors' names.

        Raises:
            ModelLoadError: A .bin file cannot be read.
            StoreUnsupportedError: A .bin file is of a form that cannot be mapped.
        """
        return [*self._handles, *self._unpickled]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, still on disk; reading it brings its pages in."""
        if name in self._handles:
            tensor: torch.Tensor = self._handles[name].get_tensor(name)
            return tensor
        return self._unpickled[name]

    def close(self) -> None:
        """Let go of the files; their memory is unmapped with the last tensor."""
        self._handles.clear()
        self.__dict__.pop("_unpickled", None)

    @cached_property
    def _unpickled(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor for file in self._pickles for name, tensor in _open_pickled(file).items()
        }

    def first_float_dtype(self) -> torch.dtype:
        """The dtype that transformers takes for a checkpoint whose configuration has none."""
        for name in self.names():
            if (tensor := self.tensor(name)).is_floating_point():
                return tensor.dtype
        return torch.float32

    def _open_safetensors(self, file: Path) -> None:
        try:
            handle: Any = safe_open(str(file), framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{file} is damaged or cut short ({error}); delete it and copy or download it again"
            ) from error
        self._handles.update(dict.fromkeys(handle.keys(), handle))


def _open_pickled(file: Path) -> Mapping[str, torch.Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise ModelLoadError(
            f"{file} is damaged or holds more than tensors, and code in a checkpoint is never "
            "run; use the model's safetensors files"
        ) from error
    except RuntimeError as error:
        # Files of torch before 1.6 are no zip archives.
        raise StoreUnsupportedError(f"{file} cannot be mapped: {error}") from error
    except (OSError, EOFError) as error:
        raise ModelLoadError(f"{file} cannot be read ({error}); copy it again") from error
    if not isinstance(state, dict):
        raise ModelLoadError(f"{file} holds no table of tensors; use the safetensors files")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
