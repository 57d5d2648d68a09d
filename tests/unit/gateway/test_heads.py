"""Heads that came before: only one whole request whose length its head announces is remembered, and found again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.heads import Heads

HEADERS = [(b"host", b"x"), (b"content-length", b"2")]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


def test_a_head_is_found_with_another_body_of_its_length() -> None:
    heads = Heads()
    assert heads.find(HEAD + b"{}") is None
    heads.remember(HEAD + b"{}", HEADERS, b"{}")
    head = heads.find(HEAD + b"[]")
    assert head is not None
    assert head.headers == HEADERS
    assert (HEAD + b"[]")[head.body_start :] == b"[]"


@given(st.binary(max_size=12))
def test_nothing_but_a_whole_request_is_found(rest: bytes) -> None:
    heads = Heads()
    heads.remember(HEAD + b"{}", HEADERS, b"{}")
    assert (heads.find(HEAD + rest) is not None) == (len(rest) == 2)
    assert heads.find(rest) is None
    assert heads.find(rest + HEAD + b"{}") is None or not rest


@pytest.mark.parametrize(
    ("piece", "headers", "body"),
    [
        (HEAD + b"{}" + HEAD + b"{}", HEADERS, b"{}"),
        (HEAD + b"{", HEADERS, b"{}"),
        (HEAD + b"2\r\n{}\r\n0\r\n\r\n", [(b"transfer-encoding", b"chunked")], b"{}"),
        (HEAD + b"{}", [*HEADERS, (b"transfer-encoding", b"chunked")], b"{}"),
        (HEAD + b"{}", [(b"content-length", b"02")], b"{}"),
        (b"", [], b""),
    ],
    ids=["two requests", "cut", "chunks", "two lengths", "another spelling", "nothing"],
)
def test_what_is_not_one_request_of_the_length_that_it_announces_is_not_remembered(
    piece: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    heads = Heads()
    heads.remember(piece, headers, body)
    assert heads.find(piece) is None


def test_memory_is_bounded() -> None:
    heads = Heads()
    for number in range(3000):
        heads.remember(b"%d" % number + HEAD + b"{}", HEADERS, b"{}")
    assert sum(heads.find(b"%d" % number + HEAD + b"{}") is not None for number in range(3000)) <= 1000
