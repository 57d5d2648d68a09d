"""Formats and compression: a log file as blocks of rows, in bounded memory.

In: a file on local disk: JSONL, CSV or Parquet; plain, gzip or zstd, told by its first bytes. Out: blocks of whole
rows, and a Reject for whatever lies between them that is none. A file that is cut or damaged gives all that lies
before the damage. At most two blocks and one row are in memory (Parquet: one batch, and what Arrow holds of it).
"""

from __future__ import annotations

import csv
import itertools
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from prebake.errors import StorageError
from prebake.progress import Advance
from tasks.logs.blocks import Batch, Block, Lines, Reject, Rows, Span, too_long
from tasks.logs.files import raw_chunks

BLOCK_BYTES: Final = 4 * 2**20
_BLOCK_ROWS: Final = 8192
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_PARQUET: Final = b"PAR1"
_BOM: Final = b"\xef\xbb\xbf"
# What is fed to a decompressor at once bounds what may come out: zstd packs 128 KiB into 4 bytes, gzip 1 KiB into 1.
_ZSTD_FEED: Final = 1024
_GZIP_FEED: Final = 16 * 1024


class _DamagedError(Exception):
    """The bytes end or break here; the message says how."""


def read_blocks(
    file: Path, size: int, *, max_row_bytes: int, columns: tuple[str, ...] | None, advance: Advance
) -> Iterator[Block | Reject]:
    """The rows of the first ``size`` bytes of a file.

    ``columns`` are the only ones to read of a Parquet file (None: all); ``advance`` hears of bytes read.
    Raises StorageError if the file is refused.
    """
    head = next(raw_chunks(file, min(size, 4096), 4096), b"")
    if not head:
        return iter(())
    if head.startswith(_PARQUET) or file.suffix == ".parquet":
        return _parquet(file, size, columns, advance)
    chunks = _chunks(_counted(raw_chunks(file, size, BLOCK_BYTES), advance), head)
    start = next(chunks, b"")
    chunks = itertools.chain([start.removeprefix(_BOM)], chunks)
    kind = _kind(file, start)
    if kind == "array":
        return iter([Reject(1, "a JSON array, expected one object per line; convert it: jq -c '.[]' FILE")])
    if kind == "csv":
        return _csv(chunks, max_row_bytes)
    if _is_packed(head):
        return _lines(chunks, max_row_bytes)
    return _spans(file, len(_BOM) if start.startswith(_BOM) else 0, size, max_row_bytes, advance)


def _kind(file: Path, start: bytes) -> str:
    """By the name's endings; where they say nothing, by the first character."""
    first = start.removeprefix(_BOM).lstrip()[:1]
    if first == b"[":
        return "array"
    endings = {ending.lower() for ending in file.suffixes[-2:]}
    if endings & {".jsonl", ".ndjson", ".json"}:
        return "jsonl"
    if ".csv" in endings:
        return "csv"
    return "jsonl" if first in (b"{", b"") else "csv"


def _counted(chunks: Iterator[bytes], advance: Advance) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


def _chunks(raw: Iterator[bytes], head: bytes) -> Iterator[bytes]:
    """The file's content in pieces of about BLOCK_BYTES. Raises _DamagedError."""
    if head.startswith(_GZIP):
        return _gathered(_decompressed(_fed(raw, _GZIP_FEED), partial(zlib.decompressobj, wbits=31)))
    if head.startswith(_ZSTD):
        return _gathered(_decompressed(_fed(raw, _ZSTD_FEED), zstandard.ZstdDecompressor().decompressobj))
    return raw


def _is_packed(head: bytes) -> bool:
    return head.startswith((_GZIP, _ZSTD))


def _fed(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def _decompressed(chunks: Iterator[bytes], new_decoder: Callable[[], Any]) -> Iterator[bytes]:
    """The content of one or more compressed streams, one after the other."""
    decoder = None
    for chunk in chunks:
        while chunk:
            if decoder is None or decoder.eof:
                chunk = chunk if decoder is None else chunk.lstrip(b"\0")  # padding of tapes and blocks
                if not chunk:
                    break
                decoder = new_decoder()
            try:
                yield decoder.decompress(chunk)
            except (zlib.error, zstandard.ZstdError) as error:
                raise _DamagedError(f"the compressed file is damaged here: {error}") from None
            chunk = decoder.unused_data
    if decoder is not None and not decoder.eof:
        raise _DamagedError("the compressed file is cut here, its end is missing")


def _gathered(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    try:
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    except _DamagedError:
        yield b"".join(parts)
        raise
    yield b"".join(parts)


def _spans(file: Path, start: int, size: int, max_row_bytes: int, advance: Advance) -> Iterator[Span | Reject]:
    """The blocks of whole lines of a file that is not packed, behind its first ``start`` bytes, by their places."""
    buffer = bytearray(BLOCK_BYTES)
    letters = np.frombuffer(buffer, np.uint8)
    line, begin, dropping = 1, start, False
    for at, read in _filled(buffer, file, start, size):
        ends = int(np.count_nonzero(letters[:read] == ord("\n")))  # six times as fast as count()
        if dropping and ends:
            begin = at + buffer.find(b"\n", 0, read) + 1
            line, ends, dropping = line + 1, ends - 1, False
        if ends:
            end = at + buffer.rfind(b"\n", 0, read) + 1
            yield Span(line, file, begin, end - begin)
            line, begin = line + ends, end
        if not dropping and at + read - begin > max_row_bytes:
            yield Reject(line, too_long(max_row_bytes))
            dropping = True
        advance(read)
    if not dropping and begin < size:
        yield Span(line, file, begin, size - begin)


def _filled(buffer: bytearray, file: Path, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Fill the buffer with one piece of the file after the other; gives each one's place and length."""
    try:
        with file.open("rb", buffering=0) as handle:
            handle.seek(start)
            while start < size and (read := handle.readinto(memoryview(buffer)[: size - start])):
                yield start, read
                start += read
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {error.strerror}") from error


def _lines(chunks: Iterator[bytes], max_row_bytes: int) -> Iterator[Lines | Reject]:
    """Blocks of whole lines; a line that is too long is dropped while it is read."""
    line, rest, dropping = 1, b"", False
    try:
        for chunk in chunks:
            if dropping:
                end = chunk.find(b"\n")
                if end < 0:
                    continue
                chunk, line, dropping = chunk[end + 1 :], line + 1, False
            end = chunk.rfind(b"\n") + 1
            if end:
                block = rest + chunk[:end] if rest else chunk[:end]
                yield Lines(line, block)
                line += block.count(b"\n")
                rest = chunk[end:]
            else:
                rest += chunk
            if len(rest) > max_row_bytes:
                yield Reject(line, too_long(max_row_bytes))
                rest, dropping = b"", True
    except _DamagedError as damage:
        yield Reject(line, str(damage))
        return
    if rest:
        yield Lines(line, rest)


def _csv(chunks: Iterator[bytes], max_row_bytes: int) -> Iterator[Rows | Reject]:
    """Rows under the names of the first row; fields that are empty are left out."""
    csv.field_size_limit(max_row_bytes)
    lines = _CsvLines(_lines(chunks, max_row_bytes), max_row_bytes)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    rows: list[tuple[int, dict[str, Any]]] = []
    size = 0
    while True:
        first = lines.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Reject(first, f"not valid CSV: {error}")
            continue
        if not fields:
            continue
        if header is None:
            header = fields
            continue
        reason = _wrong(fields, header)
        if reason:
            yield Reject(first, reason)
            continue
        rows.append((first, {name: value for name, value in zip(header, fields, strict=True) if value}))
        size += sum(map(len, fields))
        if size > BLOCK_BYTES or len(rows) >= _BLOCK_ROWS:
            yield Rows(rows)
            rows, size = [], 0
    yield Rows(rows)
    yield from lines.rejects


def _wrong(fields: list[str], header: list[str]) -> str | None:
    if len(fields) != len(header):
        return f"{len(fields)} fields, expected {len(header)} as in the first line"
    if not all(field.isascii() or field.isprintable() or _is_text(field) for field in fields):
        return "not valid UTF-8"
    return None


def _is_text(field: str) -> bool:
    try:
        field.encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8 came in as lone surrogates
        return False
    return True


class _CsvLines:
    """The lines that csv.reader asks for, and the number of the last one."""

    def __init__(self, blocks: Iterator[Lines | Reject], max_row_bytes: int) -> None:
        self.number = 0
        self.rejects: list[Reject] = []
        self._max_row_bytes = max_row_bytes
        self._lines = self._each(blocks)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    def _each(self, blocks: Iterator[Lines | Reject]) -> Iterator[str]:
        for block in blocks:
            if isinstance(block, Reject):
                self.rejects.append(block)
                continue
            for number, line in enumerate(block.data.splitlines(keepends=True), block.first):
                self.number = number
                if len(line) > self._max_row_bytes:
                    self.rejects.append(Reject(number, too_long(self._max_row_bytes)))
                else:
                    yield line.decode("utf-8", "surrogateescape")


def _parquet(file: Path, size: int, columns: tuple[str, ...] | None, advance: Advance) -> Iterator[Batch | Reject]:
    """Batches of rows; a row group that is damaged is one reject, the others are read."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        yield Reject(1, f"not a whole Parquet file: {_first_line(error)}")
        return
    with parquet:
        names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
        row = 1
        for group in range(parquet.num_row_groups):
            behind = row + parquet.metadata.row_group(group).num_rows
            try:
                for batch in parquet.iter_batches(_BLOCK_ROWS, row_groups=[group], columns=names):
                    yield Batch(row, _in_microseconds(batch))
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                yield Reject(row, f"damaged from here to row {behind - 1}: {_first_line(error)}")
            row = behind
            advance(size // parquet.num_row_groups)


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Python's datetime holds no nanoseconds."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            cast = pc.cast(batch.column(place), pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(place, field.name, cast)
    return batch


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
