"""Count: the requests of one day by fingerprint. In: columns of the query log. Out: rows of the daily counts.

Arrow reads 16-byte fingerprints as dictionaries, one for each row group; their values are sorted into groups once, and
all sums are then numpy's over group numbers. No text is ever read. Memory: ``BYTES_PER_ROW`` for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prebake.tables import DAILY_COUNTS, FINGERPRINT, SKETCH_SIZE, TIME
from prebake.user import hash_user

COLUMNS: Final = (
    "fingerprint",
    "bypass",
    "route",
    "scope",
    "tenant",
    "turns",
    "user_hash",
    "prompt_tokens",
    "completion_tokens",
    "ts",
)
DICTIONARIES: Final = ("fingerprint", "bypass", "route", "scope", "tenant")  # to be read as such
BYTES_PER_ROW: Final = 400  # columns, sorting and counts, where every request is another one

# The daily counts without their day; routes and scopes stay dictionaries on their way into the file.
COUNTS: Final = pa.schema(
    [
        field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in DICTIONARIES[1:] else field
        for field in DAILY_COUNTS.schema
        if field.name != "day"
    ]
)

_TENANT_KEY: Final = b"tenant"  # tenants stand by their names in the log; this only spreads them evenly

_SIXTEEN: Final = pa.binary(16)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def countable(log: pa.Table, number: int = 0, slices: int = 1) -> pa.Table:
    """The rows that are counted: never bypassed, and in this slice (from 0) of the fingerprint space."""
    if log["bypass"].null_count < log.num_rows or log["fingerprint"].null_count:
        log = log.filter(pc.and_(pc.is_null(log["bypass"]), pc.is_valid(log["fingerprint"])))
    if slices > 1:
        chunks = [
            pa.array(_slices(keys.dictionary, slices)[keys.indices] == number) for keys in log["fingerprint"].chunks
        ]
        log = log.filter(pa.chunked_array(chunks, pa.bool_()))
    return log


def count(log: pa.Table) -> pa.Table:
    """One row of ``COUNTS`` for each fingerprint of the countable rows, in the order of the fingerprints.

    What follows from the fingerprint (route, scope, turns) is taken from its first row. Raises pa.ArrowInvalid for a
    fingerprint that does not have 16 bytes.
    """
    groups, fingerprints = _group(log["fingerprint"].chunks)
    size = len(fingerprints)
    requests = np.bincount(groups, minlength=size)
    once = (requests == 1)[groups]
    first = np.empty(size, np.int64)
    first[groups[::-1]] = np.arange(len(groups) - 1, -1, -1)
    known = _both(log["prompt_tokens"], log["completion_tokens"])
    seen_us = log["ts"].cast(pa.int64()).to_numpy()
    first_us, last_us = seen_us[first], seen_us[first]
    np.minimum.at(first_us, groups, seen_us)
    np.maximum.at(last_us, groups, seen_us)
    return pa.table(
        {
            **{name: log[name].take(pa.array(first)) for name in ("route", "scope")},
            "fingerprint": fingerprints,
            "requests": requests,
            "user_sketch": _sketches(groups, once, size, log["user_hash"]),
            "tenant_sketch": _sketches(groups, once, size, _tenant_hashes(log["tenant"])),
            "turns": log["turns"].take(pa.array(first)),
            "prompt_tokens": _sums(groups, size, log["prompt_tokens"], known),
            "completion_tokens": _sums(groups, size, log["completion_tokens"], known),
            "counted": requests if known is None else np.bincount(groups[known], minlength=size),
            "first_seen": pa.array(first_us).cast(TIME),
            "last_seen": pa.array(last_us).cast(TIME),
        },
        COUNTS,
    )


def _group(chunks: Sequence[pa.DictionaryArray]) -> tuple[Ints, pa.Array]:
    """The group number of each row, and the groups' fingerprints in order."""
    values = pa.concat_arrays([keys.dictionary for keys in chunks]).cast(_SIXTEEN)
    order, new = _sorted(_halves(values))
    numbers = np.empty(len(values), np.int64)
    numbers[order] = np.cumsum(new) - 1
    starts = np.cumsum([0, *(len(keys.dictionary) for keys in chunks)])
    groups = np.concatenate(
        [numbers[start:][keys.indices.to_numpy()] for start, keys in zip(starts, chunks, strict=False)]
    )
    firsts = order[new]
    used = np.zeros(len(firsts), np.bool_)
    used[groups] = True
    if not used.all():  # dictionaries keep what was filtered out
        groups, firsts = (np.cumsum(used) - 1)[groups], firsts[used]
    return groups, values.take(pa.array(firsts)).cast(FINGERPRINT)


def _sorted(halves: npt.NDArray[np.uint64]) -> tuple[Ints, Bools]:
    """The places of the 128-bit numbers in their order, and which of these begin another number."""
    high, low = np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])
    order = np.argsort(high)
    alike, other = _neighbours(high[order]), ~_neighbours(low[order])
    if np.any(alike & other):  # two fingerprints share 64 bits: for once sort by all 128
        order = np.lexsort((low, high))
        alike, other = _neighbours(high[order]), ~_neighbours(low[order])
    return order, np.concatenate([[True], ~alike | other])


def _neighbours(values: npt.NDArray[Any]) -> Bools:
    """Whether each value but the first is like the one before it."""
    return np.asarray(values[1:] == values[:-1])


def _halves(values: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint64]:
    """Fingerprints as pairs of numbers that sort as the bytes do."""
    numbers = np.frombuffer(values.buffers()[1], ">u8").reshape(-1, 2)
    return numbers[values.offset : values.offset + len(values)].astype(np.uint64)


def _slices(fingerprints: pa.Array, slices: int) -> Ints:
    """The slice of each fingerprint; what sorts earlier is in an earlier slice."""
    return (_halves(fingerprints.cast(_SIXTEEN))[:, 0] >> np.uint64(32)).astype(np.int64) * slices >> 32


def _both(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Bools | None:
    """Where both are known; None: everywhere."""
    if not one.null_count and not other.null_count:
        return None
    return np.asarray(pc.and_(pc.is_valid(one), pc.is_valid(other)).to_numpy())


def _sums(groups: Ints, size: int, values: pa.ChunkedArray, known: Bools | None) -> Ints:
    """The sum of the known values of each group, exact below 2**53."""
    if known is None:
        return np.bincount(groups, values.to_numpy(), size).astype(np.int64)
    return np.bincount(groups[known], values.filter(pa.array(known)).to_numpy(), size).astype(np.int64)


def _tenant_hashes(tenants: pa.ChunkedArray) -> pa.ChunkedArray:
    def hashes(names: pa.DictionaryArray) -> pa.Array:
        known = pa.array([hash_user(name, _TENANT_KEY) for name in names.dictionary.to_pylist()], pa.int64())
        return known.take(names.indices)

    return pa.chunked_array([hashes(names) for names in tenants.chunks], pa.int64())


def _sketches(groups: Ints, once: Bools, size: int, hashes: pa.ChunkedArray) -> pa.ListArray:
    """The smallest distinct hashes of each group, in order, at most ``SKETCH_SIZE``; ``once``: rows alone in theirs."""
    if hashes.null_count:
        known = hashes.is_valid().to_numpy()
        groups, once, hashes = groups[known], once[known], hashes.drop_null()
    values = hashes.to_numpy()
    single, again = np.flatnonzero(once), np.flatnonzero(~once)  # a group of one row needs no sorting
    pairs, found = _distinct_pairs(groups[again], values[again])
    sizes = np.bincount(pairs, minlength=size)
    places = np.arange(len(pairs)) - (np.cumsum(sizes) - sizes)[pairs]
    if len(sizes) and sizes.max() > SKETCH_SIZE:
        small = np.flatnonzero(places < SKETCH_SIZE)
        pairs, found, places = pairs[small], found[small], places[small]
        sizes = np.minimum(sizes, SKETCH_SIZE)
    sizes[groups[single]] = 1
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    sketch = np.empty(offsets[-1], np.int64)
    sketch[offsets[groups[single]]] = values[single]
    sketch[offsets[pairs] + places] = found
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(sketch))


def _distinct_pairs(groups: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Each group and value that stand together, once, in order: one number, group and rank of the value, is sorted."""
    if not len(groups):
        return groups, values
    encoded = pa.array(values).dictionary_encode()
    distinct = encoded.dictionary.to_numpy()
    order = np.argsort(distinct)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    bits = len(order).bit_length()
    keys = groups << bits | ranks[encoded.indices.to_numpy()]
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return keys >> bits, distinct[order][keys & ((1 << bits) - 1)]
