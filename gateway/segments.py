"""Parquet segments by day: what the gateway writes down for the night.

In: columns in the order of a table's schema. Out: files ``FOLDER/day=.../*.parquet`` that never change, under
names that no other process or thread takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.objects import Objects


class Segments:
    """One folder of segments. One thread writes."""

    def __init__(self, objects: Objects, folder: str, schema: pa.Schema) -> None:
        self._objects = objects
        self._folder = folder
        self._schema = schema
        self._names = (f"{os.getpid():x}-{os.urandom(4).hex()}-{number:06d}" for number in count())

    def write(self, at: datetime, columns: Iterable[Sequence[Any]]) -> None:
        """Write the columns as one segment of that day. Raises StorageError if disk or service refuse."""
        key = f"{self._folder}/day={at:%Y-%m-%d}/{at:%Y%m%dT%H%M%S}-{next(self._names)}.parquet"
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(arrays, schema=self._schema), sink, compression="zstd")
        self._objects.write(key, sink.getvalue().to_pybytes())
