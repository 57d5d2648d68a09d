"""A hit that arrives in one piece is answered by the connection itself: all is as it is the ordinary way."""

from __future__ import annotations

import socket

import orjson
import pytest

from tests.gateway_bed import Running, ask
from tests.integration.gateway.conftest import CAPITAL, PARIS

HIT = orjson.dumps(ask(CAPITAL))
MISS = orjson.dumps(ask("Never asked before"))


def request(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def replies(
    gateway: Running, *pieces: bytes, expected: int, in_turn: bool = False
) -> list[tuple[dict[str, str], bytes]]:
    """Headers and body of so many answers on one connection, in the order in which they come.

    ``in_turn``: a piece is sent when the one before it is answered.
    """
    host, port = gateway.url.removeprefix("http://").split(":")
    found = []
    with socket.create_connection((host, int(port)), timeout=20) as connection, connection.makefile("rb") as reader:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = list(pieces)
        while len(found) < expected:
            while waiting:
                connection.sendall(waiting.pop(0))
                if in_turn:
                    break
            assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = {}
            while line := reader.readline().strip().decode():
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            found.append((headers, reader.read(int(headers["content-length"]))))
        if found[-1][0].get("connection") == "close":
            assert reader.read() == b""
    return found


def text(reply: tuple[dict[str, str], bytes]) -> str:
    content: str = orjson.loads(reply[1])["choices"][0]["message"]["content"]
    return content


def test_answers_to_hits_and_misses_in_one_piece_come_in_the_order_of_the_requests(gateway: Running) -> None:
    asked = [HIT, HIT, MISS, HIT, MISS, HIT]
    found = replies(gateway, b"".join(map(request, asked)), expected=len(asked))
    assert [headers["x-prebake"] for headers, _ in found] == ["hit" if body is HIT else "miss" for body in asked]
    assert [text(reply) == PARIS for reply in found] == [body is HIT for body in asked]


@pytest.mark.parametrize("cut", [10, 60, len(request(HIT)) - len(HIT), len(request(HIT)) - 5])
def test_in_two_pieces_it_is_the_same_answer_and_the_next_is_too(gateway: Running, cut: int) -> None:
    whole = request(HIT)
    at_once, in_pieces, after = replies(gateway, whole, whole[:cut], whole[cut:], whole, expected=3)
    assert text(at_once) == text(in_pieces) == text(after) == PARIS
    assert at_once[0].keys() == in_pieces[0].keys() == after[0].keys()
    assert {**at_once[0], "date": "", "age": ""} == {**in_pieces[0], "date": "", "age": ""}


@pytest.mark.parametrize(
    "last", [request(HIT, "Connection: close"), request(HIT, version="1.0")], ids=["close", "HTTP/1.0"]
)
def test_a_connection_that_is_to_be_closed_is_closed_after_the_answer(gateway: Running, last: bytes) -> None:
    found = replies(gateway, request(HIT) + last, expected=2)
    assert [text(reply) for reply in found] == [PARIS, PARIS]
    assert [headers.get("connection") for headers, _ in found] == [None, "close"]


def test_a_body_in_chunks_is_a_hit_too(gateway: Running) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (7, HIT[:7], len(HIT) - 7, HIT[7:])
    assert [text(reply) for reply in replies(gateway, head + chunks, request(HIT), expected=2)] == [PARIS, PARIS]


def test_a_request_behind_a_head_that_was_a_hits_is_what_its_own_body_asks(gateway: Running) -> None:
    other = HIT.replace(b"France", b"Frence")
    asked = [HIT, HIT, other, HIT, other, HIT]
    found = replies(gateway, *map(request, asked), expected=len(asked), in_turn=True)
    assert [headers["x-prebake"] for headers, _ in found] == ["hit" if body is HIT else "miss" for body in asked]
    assert [text(reply) == PARIS for reply in found] == [body is HIT for body in asked]
    assert len({body for headers, body in found if headers["x-prebake"] == "hit"}) == 4  # each has an id of its own


def test_the_same_bytes_do_not_outlive_what_the_request_asks_of_the_cache(gateway: Running) -> None:
    asked = [[], ["Cache-Control: no-cache"], [], ["Cache-Control: max-age=0"], []]
    found = replies(gateway, *(request(HIT, *lines) for lines in asked), expected=len(asked), in_turn=True)
    assert [headers["x-prebake"] for headers, _ in found] == ["hit", "bypass", "hit", "miss", "hit"]
