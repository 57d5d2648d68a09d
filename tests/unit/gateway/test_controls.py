"""What a request says of the cache, as HTTP means it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.controls import NONE, Controls, read_controls

OTHERS = [(b"host", b"x"), (b"authorization", b"Bearer sk"), (b"content-type", b"application/json")]


def controls(*values: bytes) -> Controls:
    return read_controls([*OTHERS, *((b"cache-control", value) for value in values)])


def test_a_request_that_says_nothing_asks_for_nothing() -> None:
    assert read_controls(OTHERS) is NONE
    assert read_controls([]) is NONE


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([b"no-cache"], Controls(no_cache=True)),
        ([b"No-Store"], Controls(no_store=True)),
        ([b"only-if-cached"], Controls(only_if_cached=True)),
        ([b"max-age=60"], Controls(max_age_s=60)),
        ([b' MAX-AGE = "60" ,, only-if-cached'], Controls(max_age_s=60, only_if_cached=True)),
        ([b"no-cache, no-store", b"max-age=0"], Controls(no_cache=True, no_store=True, max_age_s=0)),
        ([b"max-age=60, max-age=5", b"max-age=99"], Controls(max_age_s=5)),
        ([b"max-age=99999999999999999999999"], Controls(max_age_s=9_999_999_999)),
        ([b"max-stale=5, no-transform, x-no-cache, stale-if-error"], Controls()),
        ([b""], Controls()),
    ],
)
def test_directives_are_read_as_http_writes_them(values: list[bytes], found: Controls) -> None:
    assert controls(*values) == found


@pytest.mark.parametrize("age", [b"", b"x", b"-1", b"1.5", b"\xb2", b"5 6", b"1e3"])
def test_an_age_that_is_no_number_is_the_youngest_one(age: bytes) -> None:
    assert controls(b"max-age=" + age).max_age_s == 0
    assert controls(b"max-age").max_age_s == 0


def test_a_namespace_is_read_as_it_came_and_two_are_joined_to_none() -> None:
    name = (b"x-prebake-namespace", b"v2")
    assert read_controls([*OTHERS, name]).namespace == "v2"
    assert read_controls([name, name]).namespace == "v2,v2"


@given(st.lists(st.tuples(st.sampled_from([b"cache-control", b"x-prebake-namespace", b"accept"]), st.binary())))
@example([(b"cache-control", b'max-age="' * 9)])
def test_no_header_is_too_strange_to_be_read(headers: list[tuple[bytes, bytes]]) -> None:
    assert isinstance(read_controls(headers), Controls)
