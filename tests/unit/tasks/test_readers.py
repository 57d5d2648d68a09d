"""A file that is not packed is cut into blocks where it lies; the blocks are those that reading it would give."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.errors import StorageError
from tasks.logs import readers
from tasks.logs.blocks import Lines, Reject, Span
from tasks.logs.readers import read_blocks

LONGEST = 20


def expected(content: bytes) -> tuple[dict[int, bytes], set[int]]:
    """The lines that are read by their numbers, and the numbers of those that are too long."""
    lines = dict(enumerate(content.splitlines(keepends=True), 1))
    long = {number for number, line in lines.items() if len(line.removesuffix(b"\n")) > LONGEST}
    return {number: line for number, line in lines.items() if number not in long}, long


@given(
    content=st.lists(st.integers(0, 60)), end=st.sampled_from([b"", b"\n"]), bom=st.booleans(), size=st.integers(3, 40)
)
def test_every_line_is_in_one_block_under_its_number(content: list[int], end: bytes, bom: bool, size: int) -> None:
    written = b"\n".join(b"x" * length for length in content) + end
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", size)
        file = Path(folder) / "log.jsonl"
        file.write_bytes((b"\xef\xbb\xbf" if bom else b"") + written + b"more, which came later")
        length = file.stat().st_size - len(b"more, which came later")
        advanced: list[int] = []
        lines: dict[int, bytes] = {}
        long: set[int] = set()
        blocks = read_blocks(file, length, max_row_bytes=LONGEST, columns=None, advance=advanced.append)
        for block in blocks:
            if isinstance(block, Reject):
                long.add(block.line)
            else:
                assert isinstance(block, Span | Lines)
                lines |= enumerate(block.data.splitlines(keepends=True), block.first)
    read, too_long = expected(written)
    # What ends within a block is judged by the reader of its rows.
    assert long <= too_long
    assert {number: line for number, line in lines.items() if number not in too_long} == read


def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"{}\n" * 10)
    (span,) = read_blocks(file, 30, max_row_bytes=LONGEST, columns=None, advance=lambda _: None)
    assert isinstance(span, Span)
    file.write_bytes(b"{}\n")
    with pytest.raises(StorageError, match=r"log\.jsonl: was cut while it was read"):
        _ = span.data
