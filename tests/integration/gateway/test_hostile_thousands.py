"""10,000 generated hostile requests: no 5xx of ours, no wrong hit, the memory stays flat, hits are still served.

8,000 are good requests with a few things wrong, 1,500 are made by schemathesis from the description of the API, 500
have heads that no client library would send.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from prebake.request import DEFAULTS, DELIVERY_FIELDS, fold_text
from tests.gateway_bed import ROOT, Running, answer_to, ask, gateway_server, publish, settings_of
from tests.openai_upstream import MARK

pytestmark = pytest.mark.slow

QUESTIONS = [f"What is the meaning of number {number}?" for number in range(20)]
WARM_UP, MUTATED, DESCRIBED, HEADS, AT_ONCE = 1000, 7000, 1500, 500, 16
GROWTH_MB = 10
KNOWN_PUT_IN = 9
DESCRIPTION = schemathesis.openapi.from_path(ROOT / "docs" / "openapi.yaml")
CHAT = "/v1/chat/completions"
POSTS = (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings")
VALUES = [
    "null", "true", "1", "0", "-0.0", "1e308", "1e999", "NaN", "-Infinity", "9" * 400, '""', '"x"', "[]", "{}", "[[]]",
    '{"a":null}', '"\\ud800"', '"\\u0000"', '"a\\r\\nx-evil: 1"', "[" * 150 + "]" * 150, '{"a":' * 90 + "1" + "}" * 90,
    '"' + "ü" * 500 + '"', "[1,", "tru", "'x'", "0x10", '{"type":"json_object"}',
]  # fmt: skip
NAMES = [
    "model", "messages", "stream", "stream_options", "temperature", "top_p", "n", "max_tokens", "seed", "stop", "tools",
    "tool_choice", "response_format", "logprobs", "user", "metadata", "modalities", "logit_bias", "surprise",
    "\\u006dodel",
]  # fmt: skip
HEADERS = [
    ("cache-control", "no-cache"), ("cache-control", "max-age=-1"), ("cache-control", "max-age=" + "9" * 50),
    ("cache-control", ",,;=\"'"), ("x-prebake-namespace", "a/b"), ("x-prebake-namespace", "x" * 500),
    ("x-tenant", "\xff"), ("content-type", "text/plain"), ("content-encoding", "gzip"), ("accept", "\xe9\t;"),
    ("x-prebake", "hit"), ("authorization", "Bearer " + "k" * 3000), ("range", "bytes=0-1"), ("if-none-match", "*"),
]  # fmt: skip
LINES = [b"POST /v1/chat/completions HTTP/1.1"] * 8 + [
    b"POST /v1/chat/completions HTTP/1.0", b"POST /v1/chat/completions HTTP/7.3", b"POST /v1/chat/completions",
    b"POST /v1/chat/completions?a=%0d%0aX-Evil:%201 HTTP/1.1", b"POST /v1/%0d%0aX-Evil:%201 HTTP/1.1",
    b"POST /v1/../v1/chat/completions HTTP/1.1", b"POST //v1/chat/completions HTTP/1.1", b"BREW /v1/models HTTP/1.1",
    b"POST /" + b"a" * 70_000 + b" HTTP/1.1", b"POST /v1/chat/completions\xff HTTP/1.1", b"\x00\x01\x02",
    b"POST http://other.example/v1/chat/completions HTTP/1.1",
]  # fmt: skip
HEAD_LINES = [
    b"X-A: a\rX-Evil: 1", b"X-A: a\nX-Evil: 1", b"X-A: a\x00b", b"X-A: a\r\n folded", b"X A: 1", b": 1", b"X-A",
    b"X-A: a\x7fb", b"X-A: a\x01b",
    b"X-A: " + b"a" * 70_000, b"\xff\xfe: 1", b"X-A: \xff\xfe", b"Content-Length: 5", b"Content-Length: -1",
    b"Content-Length: " + b"9" * 30, b"Content-Length: 0x10", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity", b"Expect: 100-continue", b"Expect: miracles",
    b"Upgrade: h2c", b"Connection: x-prebake-namespace, authorization", b"Host: a\r\nHost: b",
    b"X-Prebake-Namespace: a\r\nX-Prebake-Namespace: b", b"Cookie: " + b"a=b;" * 2000, b"X-B: 1\r\n" * 200 + b"X-C: 1",
]  # fmt: skip
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Hostile(NamedTuple):
    """A request that a client library can still send."""

    path: str
    body: bytes
    headers: list[tuple[str, str]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, upstream: Running) -> Iterator[Running]:
    """A gateway with a few answers that hostile requests may come near to; what grows once has grown."""
    folder = tmp_path_factory.mktemp("thousands")
    known = settings_of(folder)
    publish(folder, [answer_to(known, ask(question), f"answer to {fold_text(question)}") for question in QUESTIONS])
    with gateway_server(folder, upstream.url, tenant_header="x-tenant") as server:
        asyncio.run(storm(server, mutated(WARM_UP, seed=1)))
        yield server


def test_good_requests_with_a_few_things_wrong(target: Running) -> None:
    before = resident_mb(target)
    hits = asyncio.run(storm(target, mutated(MUTATED, seed=2)))
    assert hits > MUTATED / 10, "the requests must come near to what is stored, or they prove nothing"
    assert_unharmed(target, before)


def test_requests_made_from_the_description_of_the_api(target: Running) -> None:
    before = resident_mb(target)
    requests = described(DESCRIBED)
    assert len(requests) >= DESCRIBED
    assert asyncio.run(storm(target, requests)) > DESCRIBED / 20
    assert_unharmed(target, before)


def test_heads_that_no_library_would_send(target: Running) -> None:
    before = resident_mb(target)
    assert asyncio.run(storm_of_heads(target, HEADS)) > HEADS / 10
    assert_unharmed(target, before)


def mutated(count: int, *, seed: int) -> list[Hostile]:
    source = random.Random(seed)
    return [hostile(source) for _ in range(count)]


def hostile(source: random.Random) -> Hostile:
    """A good request with one to three things wrong, or none."""
    fields = [("model", '"tiny"'), ("messages", messages(source))]
    for _ in range(source.choice([0, 0, 0, 1, 1, 2])):
        fields.insert(source.randrange(len(fields) + 1), (source.choice(NAMES), source.choice(VALUES)))
    body = ("{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}").encode()
    if source.random() < 0.2:
        body = broken(source, body)
    headers = [source.choice(HEADERS) for _ in range(source.choice([0, 0, 1, 2]))]
    return Hostile(source.choice(POSTS) if source.random() < 0.1 else CHAT, body, headers)


def messages(source: random.Random) -> str:
    question = json.dumps(source.choice(QUESTIONS))
    role = source.choice(['"user"'] * 18 + ['"system"', "1", "null"])
    content = source.choice([question] * 60 + [f'[{{"type":"text","text":{question}}}]', *VALUES])
    message = f'{{"role":{role},"content":{content}}}'
    if source.random() < 0.1:  # one of the message's own keys twice
        message = f'{{"role":{role},"content":{content},"content":{json.dumps(source.choice(QUESTIONS))}}}'
    return source.choice([f"[{message}]"] * 18 + [f"[{message},{message}]", message, *VALUES[:4]])


def broken(source: random.Random, body: bytes) -> bytes:
    """Bytes cut off, doubled, or turned into others: seldom JSON, seldom UTF-8."""
    where = source.randrange(len(body))
    return source.choice(
        [
            body[:where],
            body[:where] + bytes([source.randrange(256)]) + body[where + 1 :],
            body + body,
            body[:where] + b"\xff\xfe\x00" + body[where:],
            b"\xef\xbb\xbf" + body,
            body.decode().encode("utf-16"),
        ]
    )


def described(count: int) -> list[Hostile]:
    """What schemathesis makes of the description, fitting it and not; each also with known questions put in."""
    operations = [DESCRIPTION[path]["POST"] for path in POSTS]
    fitting = [operation.as_strategy() for operation in operations]
    others = [operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) for operation in operations]
    requests: list[Hostile] = []

    for strategies in (fitting, others):

        @settings(
            max_examples=count // (1 + KNOWN_PUT_IN) // 2,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(strategies))
        def collect(case: schemathesis.Case) -> None:
            headers = [(name, str(value)) for name, value in (case.headers or {}).items()]
            requests.append(Hostile(case.path, encoded(case.body), headers))
            for question in QUESTIONS[:KNOWN_PUT_IN]:
                body = {**case.body, **ask(question)} if isinstance(case.body, dict) else ask(question)
                requests.append(Hostile(case.path, encoded(body), headers))

        collect()
    return requests


def encoded(body: Any) -> bytes:
    try:
        return json.dumps(body).encode()
    except TypeError:  # no body, or bytes
        return body if isinstance(body, bytes) else b""


async def storm(target: Running, requests: list[Hostile]) -> int:
    """Send them over a few kept connections and check each answer; returns how many were hits."""
    waiting = iter(requests)
    hits = 0

    async def send(session: aiohttp.ClientSession) -> None:
        nonlocal hits
        for sent in waiting:
            async with session.post(target.url + sent.path, data=sent.body, headers=sent.headers) as response:
                answer = await response.read()
                headers = {name.lower(): value for name, value in response.headers.items()}
                hits += check(sent, response.status, headers, answer)

    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        await asyncio.gather(*(send(session) for _ in range(AT_ONCE)))
    return hits


def check(sent: Hostile, status: int, headers: dict[str, str], answer: bytes) -> bool:
    """Whether it was a hit, and then one to exactly this question; a 5xx must be the upstream's own."""
    assert status < 500 or MARK[0].decode() in headers, (sent, status, answer)
    assert "x-evil" not in headers
    if headers.get("x-prebake") != "hit":
        return False
    assert not {("cache-control", "no-cache")}.intersection(sent.headers), sent
    assert not any(name == "x-prebake-namespace" and value for name, value in sent.headers), sent
    asked = json.loads(sent.body)  # of a key given twice the last counts
    question = question_of(asked)
    assert question in map(fold_text, QUESTIONS), sent
    assert asked["model"] == "tiny", sent
    assert all(changes_nothing(name, value) for name, value in asked.items()), sent
    assert content_of(answer) == f"answer to {question}", (sent, answer)
    return True


def question_of(asked: dict[str, Any]) -> str:
    """The one question that the request consists of, folded."""
    (message,) = asked["messages"]
    assert message.keys() == {"role", "content"}
    assert message["role"] == "user"
    content = message["content"]
    if isinstance(content, list):
        ((_, content),) = [(part["type"], part["text"]) for part in content if part["type"] == "text"]
    return fold_text(content)


def changes_nothing(name: str, value: Any) -> bool:
    """Whether a request with this field asks for what one without it asks for."""
    if name in ("model", "messages") or name in DELIVERY_FIELDS or value is None:
        return True
    default = DEFAULTS.get(name)
    same = value == default and isinstance(value, bool) == isinstance(default, bool)
    return same or (name, value) in [("tool_choice", "none"), ("stop", "")]


def content_of(answer: bytes) -> str:
    """The message's text, of a whole answer or of a streamed one."""
    if not answer.startswith(b"data:"):
        return str(json.loads(answer)["choices"][0]["message"]["content"])
    events = [line.removeprefix(b"data: ") for line in answer.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def storm_of_heads(target: Running, count: int) -> int:
    """Send so many broken heads, each on its own connection, and check all that comes back; returns the hits."""
    hits = 0
    source = random.Random(3)
    host, port = target.url.removeprefix("http://").split(":")
    waiting = iter(range(count))

    async def send() -> None:
        nonlocal hits
        for _ in waiting:
            question = source.choice(QUESTIONS)
            sent = head(source, json.dumps(ask(question)).encode())
            reader, writer = await asyncio.open_connection(host, int(port))
            reply = b""
            try:
                writer.write(sent)
                async with asyncio.timeout(30):
                    while piece := await reader.read(65536):
                        reply += piece
            except ConnectionError:
                pass  # closed on what we were still sending
            finally:
                writer.close()
            hits += check_reply(sent, reply, question)

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return hits


def head(source: random.Random, body: bytes) -> bytes:
    """A request that is whole by any reading of it: with broken lines in its head, and enough bytes after it."""
    lines = [b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body)]
    for _ in range(source.choice([0, 1, 1, 2])):
        lines.insert(source.randrange(len(lines) + 1), source.choice(HEAD_LINES))
    return b"\r\n".join([source.choice(LINES), *lines, b"", body]) + b"\r\n\r\n" * 20


def check_reply(sent: bytes, reply: bytes, question: str) -> bool:
    """Whether it was a hit, and then the right one; as ``check``, for bytes."""
    reply_head, _, answer = reply.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    assert not re.search(rb"^HTTP/1.1 5", reply, re.MULTILINE) or MARK[0] in reply_head, (sent[:300], reply)
    assert not re.search(rb"^x-evil", reply_head, re.MULTILINE | re.IGNORECASE), (sent[:300], reply)
    if b"x-prebake: hit" not in reply_head:
        return False
    assert content_of(answer) == f"answer to {fold_text(question)}", (sent[:300], reply)
    return True


def assert_unharmed(target: Running, before_mb: float) -> None:
    """The gateway has not grown and still has its answers."""
    assert resident_mb(target) < before_mb + GROWTH_MB
    for question in QUESTIONS:
        response = httpx.post(f"{target.url}{CHAT}", json=ask(question), timeout=20)
        assert response.headers["x-prebake"] == "hit"
        assert content_of(response.content) == f"answer to {fold_text(question)}"


def resident_mb(gateway: Running) -> float:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS"))
