"""Counting by fingerprint: whatever the log holds, the sums are those of a plain loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prebake.tables import QUERY_LOG, SKETCH_SIZE
from prebake.user import hash_user
from tasks.count import COLUMNS, COUNTS, DICTIONARIES, count, countable

EPOCH = datetime(2026, 3, 10, tzinfo=UTC)
# Some share their first eight bytes, as two of 2**64 would by chance.
KEYS = [bytes([high]) * 8 + bytes([low]) * 8 for high in (0, 127, 128, 255) for low in (0, 128, 255)]
SCHEMA = pa.schema(
    [
        (name, pa.dictionary(pa.int32(), QUERY_LOG.schema.field(name).type))
        if name in DICTIONARIES
        else QUERY_LOG.schema.field(name).remove_metadata()
        for name in COLUMNS
    ]
)
TOKENS = st.none() | st.integers(0, 10_000)
ROWS = st.fixed_dictionaries(
    {
        "fingerprint": st.none() | st.sampled_from(KEYS),
        "bypass": st.sampled_from([None, None, None, "choices"]),
        "tenant": st.sampled_from([None, "a", "b", "c"]),
        "user_hash": st.none() | st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1]),
        "prompt_tokens": TOKENS,
        "completion_tokens": TOKENS,
        "ts": st.integers(0, 86_399).map(lambda s: EPOCH + timedelta(seconds=s)),
    }
)


def log(*groups: list[dict[str, Any]]) -> pa.Table:
    rows = [[{"route": "faq", "scope": "shared", "turns": 1} | row for row in group] for group in groups]
    return pa.concat_tables([pa.Table.from_pylist(group, SCHEMA) for group in rows])


def looped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = []
    for key in sorted({r["fingerprint"] for r in rows if r["fingerprint"] and not r["bypass"]}):
        own = [r for r in rows if r["fingerprint"] == key and not r["bypass"]]
        known = [r for r in own if r["prompt_tokens"] is not None and r["completion_tokens"] is not None]
        tenants = {hash_user(r["tenant"], b"tenant") for r in own if r["tenant"]}
        counts.append(
            {
                "route": "faq",
                "scope": "shared",
                "fingerprint": key,
                "requests": len(own),
                "user_sketch": sorted({r["user_hash"] for r in own} - {None})[:SKETCH_SIZE],
                "tenant_sketch": sorted(tenants),
                "turns": 1,
                "prompt_tokens": sum(r["prompt_tokens"] for r in known),
                "completion_tokens": sum(r["completion_tokens"] for r in known),
                "counted": len(known),
                "first_seen": min(r["ts"] for r in own),
                "last_seen": max(r["ts"] for r in own),
            }
        )
    return counts


@settings(deadline=None)
@given(st.lists(st.lists(ROWS, max_size=40), min_size=1, max_size=3), st.integers(1, 5))
def test_counts_are_those_of_a_plain_loop_in_the_order_of_the_fingerprints(
    groups: list[list[dict[str, Any]]], slices: int
) -> None:
    whole = [countable(log(*groups), number, slices) for number in range(slices)]
    counted = [row for part in whole if part.num_rows for row in count(part).to_pylist()]
    assert counted == looped([row for group in groups for row in group])


def test_of_many_users_the_smallest_hashes_are_kept() -> None:
    rows = [ROW | {"user_hash": number % 100 - 50} for number in range(250)]
    (counted,) = count(countable(log(rows))).to_pylist()
    assert counted["user_sketch"] == list(range(-50, 14))


def test_counts_have_the_schema_that_is_written() -> None:
    assert count(countable(log([ROW]))).schema == COUNTS


def test_a_fingerprint_of_another_length_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid, match="width"):
        count(countable(log([ROW | {"fingerprint": b"short"}])))


ROW = {
    "fingerprint": KEYS[0],
    "bypass": None,
    "tenant": "a",
    "user_hash": 1,
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "ts": EPOCH,
}
