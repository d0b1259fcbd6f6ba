"""A block of a store on disk: its files, and where each tensor is in one flat buffer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from engine.interface import ModelLoadError
from engine.layout.blocks import BlockLayout
from engine.store.checksum import total_of, word_sum
from engine.store.contents import ENGINE_ONLY
from engine.store.header import SUFFIX, TensorPlace, follow_one_another, places_in
from engine.store.manifest import StoreManifest, WrittenFile

# Between the data of a block's two files in one buffer, so that a tensor of the
# second is as well aligned there as on disk, for whatever kernel reads it.
SEGMENT_ALIGNMENT_BYTES = 64


# Bytes between two looks at should_stop(), and between two words of progress.
PIECE_BYTES = 2**23


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The tensors of one open file.

    Attributes:
        path: For messages.
        file: Open and unbuffered.
        data_start: Of the tensors in the file, in bytes.
        offset: Of the tensors in the block's flat buffer, in bytes.
        bytes: Of all its tensors.
        places: Of each.
        word_sum: Of its tensors' data, as the manifest has it; None if it does not.
    """

    path: Path
    file: BinaryIO
    data_start: int
    offset: int
    bytes: int
    places: tuple[TensorPlace, ...]
    word_sum: int | None = None

    def views(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each tensor as a view of this segment's bytes; uint8 [bytes], on any device."""
        return {
            place.name: data[place.offset : place.offset + place.bytes]
            .view(place.dtype)
            .view(place.shape)
            for place in self.places
        }

    def pieces(self) -> Iterator[tuple[int, int]]:
        """What to read in one go: the first byte, and how many."""
        for start in range(0, self.bytes, PIECE_BYTES):
            yield start, min(PIECE_BYTES, self.bytes - start)

    def check(self, sums: list[int]) -> None:
        """Hold what was read to the manifest.

        Args:
            sums: What read() returned for every piece.

        Raises:
            ModelLoadError: It is not what was written.
        """
        if self.word_sum is not None and total_of(sums) != self.word_sum:
            raise ModelLoadError(_damaged(self.path, "its checksum is wrong"))

    def read(self, start: int, target: torch.Tensor) -> int:
        """Fill a buffer, uint8 [n] on the CPU, with the bytes from there on.

        Returns:
            The piece's word sum, for check().

        Raises:
            ModelLoadError: They cannot be read, or the file has become shorter.
        """
        left = target.numpy().data
        position = self.data_start + start
        try:
            while left:
                # By position, so that several threads may read one file.
                count = os.preadv(self.file.fileno(), [left], position)
                if count == 0:
                    raise ModelLoadError(_damaged(self.path, "it ends too early"))
                left, position = left[count:], position + count
        except OSError as error:
            raise ModelLoadError(_damaged(self.path, error.strerror or str(error))) from error
        return word_sum(target.numpy(), start)


@dataclass(frozen=True, kw_only=True)
class StoredBlock:
    """A block whose files are open; nothing of its tensors is in memory.

    Attributes:
        name: As in the model's layout.
        segments: One per file, in the order they stand in a flat buffer.
    """

    name: str
    segments: tuple[Segment, ...]

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(segment.bytes for segment in self.segments)

    @property
    def buffer_bytes(self) -> int:
        """Of a flat buffer for them all: a few more, for alignment."""
        return max(segment.offset + segment.bytes for segment in self.segments)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each tensor by its name in the file, as a view of a flat buffer on any device."""
        views: dict[str, torch.Tensor] = {}
        for segment in self.segments:
            views |= segment.views(flat[segment.offset : segment.offset + segment.bytes])
        return views


def require_layout(block: StoredBlock, layout: BlockLayout) -> None:
    """Refuse a block whose files do not hold the tensors of its layout.

    Raises:
        ModelLoadError: A tensor is missing, left over, or of another shape or dtype.
    """
    found = {p.name: (p.shape, p.dtype) for segment in block.segments for p in segment.places}
    wanted = {tensor.name: (tensor.shape, tensor.dtype) for tensor in layout.tensors}
    differing = sorted(
        name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
    )
    if differing:
        paths = " and ".join(segment.path.name for segment in block.segments)
        raise ModelLoadError(
            f"{paths} and the manifest beside it do not agree on {differing[0]}; remove the "
            f"folder {block.segments[0].path.parent}, and `tgp-jobs prepare` makes it again"
        )


def open_block(folder: Path, name: str, manifest: StoreManifest, files: ExitStack) -> StoredBlock:
    """Open a block's files and read their headers.

    Args:
        folder: The store's.
        name: The block's.
        manifest: Says which files there are and how long they must be.
        files: Will close them.

    Raises:
        ModelLoadError: A file is missing, has another length or is damaged.
    """
    segments: list[Segment] = []
    offset = 0
    for file_name in (f"{name}{SUFFIX}", f"{name}.{ENGINE_ONLY}{SUFFIX}"):
        if file_name not in manifest.files:
            continue
        segment = _open_segment(folder / file_name, manifest.files[file_name], offset, files)
        segments.append(segment)
        end = offset + segment.bytes
        offset = end + -end % SEGMENT_ALIGNMENT_BYTES
    return StoredBlock(name=name, segments=tuple(segments))


def _open_segment(path: Path, written: WrittenFile, offset: int, files: ExitStack) -> Segment:
    length = written.bytes
    try:
        # Unbuffered: what is read goes straight to where it stays.
        file = files.enter_context(path.open("rb", buffering=0))
        found = path.stat().st_size
        if found != length:
            raise ModelLoadError(_damaged(path, f"it has {found} bytes and should have {length}"))
        header_bytes = int.from_bytes(file.read(8), "little")
        data_start = 8 + header_bytes
        if data_start > length:
            raise ModelLoadError(_damaged(path, "its header is longer than the file"))
        places = tuple(places_in(json.loads(file.read(header_bytes))))
    except OSError as error:
        raise ModelLoadError(_damaged(path, error.strerror or str(error))) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            _damaged(path, f"its header is no safetensors header: {error}")
        ) from error
    data_bytes = sum(place.bytes for place in places)
    if data_start + data_bytes != length or not follow_one_another(places):
        raise ModelLoadError(_damaged(path, "its header and its length do not belong together"))
    return Segment(
        path=path,
        file=file,
        data_start=data_start,
        offset=offset,
        bytes=data_bytes,
        places=places,
        word_sum=written.word_sum,
    )


def _damaged(path: Path, fault: str) -> str:
    return (
        f"{path} cannot be loaded ({fault}); `tgp-jobs prepare --verify` names every damaged file "
        "of a store, and `tgp-jobs prepare` makes a store again whose folder was removed"
    )
