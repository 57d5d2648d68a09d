"""Builds ``near.mdb``, what a snapshot's near misses are found in. In: baked questions. Out: the file.

One LMDB file: a table of contents (format, embedding), an HNSW index for each group, and the questions by number.
Memory: the indexes of all groups, about 0.8 KB a question at 256 dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import numpy as np
import orjson

from prebake.errors import StorageError
from prebake.near import FORMAT, GROUP, META, QUESTION, Embedding, new_index

_BATCH: Final = 1000
_MAP_BYTES: Final = 2**40


class Question(NamedTuple):
    """A baked question: the key of its answer, the group it may be compared in, its text."""

    fingerprint: bytes
    group: bytes
    text: str


def build_near_index(file: Path, questions: Iterable[Question], embedding: Embedding) -> int:
    """Write the file; returns how many questions are in it. Raises StorageError if the disk refuses."""
    groups: dict[bytes, Any] = {}
    count, rest = 0, iter(questions)
    try:
        with lmdb.open(str(file), subdir=False, lock=False, sync=False, map_size=_MAP_BYTES) as environment:
            while batch := list(islice(rest, _BATCH)):
                vectors = embedding.embed([question.text for question in batch])
                _index(groups, batch, count, vectors, embedding.dimensions)
                with environment.begin(write=True) as transaction:
                    for number, question in enumerate(batch, count):
                        value = question.fingerprint + question.text.encode()
                        transaction.put(QUESTION + number.to_bytes(8, "big"), value, append=True)
                count += len(batch)
            with environment.begin(write=True) as transaction:
                for group, index in groups.items():
                    transaction.put(GROUP + group, bytes(index.save()))
                transaction.put(META, orjson.dumps({"format": FORMAT, "embedding": embedding.digest}))
            environment.sync(True)
    except (lmdb.Error, OSError) as error:
        raise StorageError(f"{file}: cannot be built here: {error}; free space or set TMPDIR") from error
    return count


def _index(groups: dict[bytes, Any], batch: list[Question], first: int, vectors: Any, dimensions: int) -> None:
    members: dict[bytes, list[int]] = {}
    for place, question in enumerate(batch):
        if vectors[place].any():
            members.setdefault(question.group, []).append(place)
    for group, places in members.items():
        index = groups.setdefault(group, None) or new_index(dimensions)
        index.add(np.asarray(places, np.uint64) + np.uint64(first), vectors[places])
        groups[group] = index
