"""Lines that look alike are told by their shape, and become what parsing each of them would have made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.routes import Route
from prebake.settings import Columns, Ingest, Settings
from storage.query_log import Arrivals, Requests
from tasks.logs.blocks import Lines
from tasks.logs.marks import Marks
from tasks.logs.presets import Entry, looks_at, preset_named
from tasks.logs.rows import Job, RowReader, job_of
from tasks.logs.shapes import Fit, Shapes

COLUMNS = Columns(time="at", prompt="in.text", user="who.id", tenant="who.team", prompt_tokens="n")
LATEST_US = 2_000_000_000_000_000
ROUTES = (
    Route(name="off", tenants=("ä",), enabled=False),
    Route(name="team", tenants=("acme",), fold="text"),
    Route(name="faq", scope="shared", max_temperature=0.5),
)
MANY = 100  # lines, enough to learn a shape from


def openai(time: Any, user: Any, text: Any, tenant: Any, tokens: Any, more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": 'Be "kind".'}, {"role": "user", "content": text}]
    return {
        "id": f"r{tokens}",
        "timestamp": time,
        "user": user,
        "model": "m",
        "temperature": 0.2,
        "seed": 3,
        "messages": messages,
        "metadata": {"tenant": tenant, "beside": more},
        "usage": {"prompt_tokens": tokens, "completion_tokens": 7, "total_tokens": tokens},
    }


def batch(time: Any, user: Any, text: Any, tenant: Any, tokens: Any, more: Any) -> dict[str, Any]:
    metadata = {"created": time, "tenant": tenant}
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "user": user, "metadata": metadata}
    return {"custom_id": str(tokens), "method": "POST", "url": f"/v1/{more or 'chat'}/completions", "body": body}


def litellm(time: Any, user: Any, text: Any, tenant: Any, tokens: Any, more: Any) -> dict[str, Any]:
    return {
        "request_id": f"r-{text}",
        "response": orjson.dumps({"content": text}).decode() if isinstance(text, str) else "{}",
        "status": more or "success",
        "startTime": time,
        "spend": 0.00001 * len(str(text)),
        "end_user": user,
        "team_id": tenant,
        "prompt_tokens": tokens,
        "proxy_server_request": {"model": "m", "messages": [{"role": "user", "content": text}]},
    }


def columns(time: Any, user: Any, text: Any, tenant: Any, tokens: Any, more: Any) -> dict[str, Any]:
    return {"at": time, "in": {"text": text}, "who": {"id": user, "team": tenant}, "n": tokens, "x": more, "model": "m"}


def langfuse(time: Any, user: Any, text: Any, tenant: Any, tokens: Any, more: Any) -> dict[str, Any]:
    usage = {"input": tokens, "output": 7, "total": tokens}
    row = {"id": f"r{tokens}", "startTime": time, "userId": user, "input": text, "output": more, "model": "m"}
    return {**row, "modelParameters": {"temperature": "0.2"}, "usage": usage, "metadata": {"tenant": tenant}}


def prebake(time: Any, user: Any, text: Any, tenant: Any, tokens: Any, more: Any) -> dict[str, Any]:
    row = {"request_id": f"r{tokens}", "ts": time, "status": 200, "tenant": tenant, "namespace": more, "cache": "miss"}
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "user": user}
    return {**row, "user_hash": len(str(user)), "prompt_tokens": tokens, "body": body}


LAYOUTS = {
    "openai": openai,
    "batch": batch,
    "litellm": litellm,
    "langfuse": langfuse,
    "columns": columns,
    "prebake": prebake,
}


def preset_of(layout: str) -> str:
    return "openai" if layout == "batch" else layout


def settings_of(layout: str) -> Settings:
    return Settings(routes=ROUTES, ingest=Ingest(preset=preset_of(layout), columns=COLUMNS))


def line(row: Any) -> bytes:
    return orjson.dumps(row) + b"\n"


def spaced_line(row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"  # as Python writes it: spaces, and nothing but ASCII


def shapes_of(layout: str) -> Shapes:
    wanted = COLUMNS if layout == "columns" else None
    return Shapes(preset_named(preset_of(layout), wanted), looks_at(preset_of(layout), wanted))


def fits(shapes: Shapes, *lines: bytes) -> list[Fit]:
    marks = Marks.of(b"".join(lines), 10**6)
    assert marks is not None
    return list(shapes.fits(marks))


def like(first: bytes, *others: bytes) -> list[int]:
    """Which of the other lines are of the shape of the first, from 0."""
    fit = fits(shapes_of("openai"), *[first] * MANY, *others)[0]
    return [number - MANY for number in fit.lines.tolist() if number >= MANY]


# The gateway's own lines have numbers of users and requests, which are no holes.
@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"prebake"}))
def test_lines_that_look_alike_are_told_without_parsing(layout: str) -> None:
    first = line(LAYOUTS[layout]("2026-03-10T12:00:00Z", "ann", "Where is my card?", "acme", 12, ""))
    other = line(LAYOUTS[layout]("2026-03-11T12:00:00.5+01:00", "bob", "Größe?\n“2”\\", "globex", 345, ""))
    (fit,) = fits(shapes_of(layout), *[first] * MANY, other)
    assert fit.lines.tolist() == list(range(MANY + 1))
    wanted = {"time": "2026-03-11T12:00:00.5+01:00", "user": "bob", "question": r"Größe?\n“2”\\", "tenant": "globex"}
    found = {name: hole[-1].as_py().decode() for name, hole in fit.holes.items()}
    assert {name: found[name] for name in wanted} == wanted
    assert found.get("prompt_tokens", "345") == "345"  # bodies as OpenAI takes them in batches have no counts


def test_what_a_layout_looks_at_but_does_not_keep_is_part_of_the_shape() -> None:
    good = line(litellm("2026-03-10", "ann", "Hi", "acme", 12, "success"))
    bad = line(litellm("2026-03-10", "ann", "Hi", "acme", 12, "failure"))
    (fit,) = fits(shapes_of("litellm"), *[good] * MANY, bad, good)
    assert MANY not in fit.lines
    assert MANY + 1 in fit.lines


@pytest.mark.parametrize(("name", "value"), [("model", "n"), ("temperature", 0.3), ("seed", 4), ("seed", "3")])
def test_a_line_of_another_model_or_with_other_parameters_is_of_another_shape(name: str, value: Any) -> None:
    row = openai("2026-03-10", "ann", "Hi", "acme", 12, "")
    assert like(line(row), line({**row, name: value}), line(row)) == [1]


@pytest.mark.parametrize("name", ["user", "timestamp"])
def test_of_a_name_written_twice_the_last_one_counts_as_in_json(name: str) -> None:
    twice = line(openai("2026-03-10", "ann", "Hi", "acme", 12, ""))
    twice = twice.replace(b"{", b'{"%b":"2026-01-01",' % name.encode(), 1)
    other = twice.replace(b"ann", b"bob").replace(b"2026-03-10", b"2026-03-11")
    assert like(twice, other, twice.replace(b"2026-01-01", b"2026-01-02")) == [0]
    (fit,) = fits(shapes_of("openai"), *[twice] * MANY, other)
    assert (fit.holes["time"][-1].as_py(), fit.holes["user"][-1].as_py()) == (b"2026-03-11", b"bob")


def test_a_log_whose_lines_all_look_different_is_soon_parsed_without_trying() -> None:
    calls = count()
    plain = preset_named("openai", None)

    def counted(row: dict[str, Any]) -> Entry:
        next(calls)
        return plain(row)

    shapes = Shapes(counted, looks_at("openai", None))
    row = openai("2026-03-10", "ann", "Hi", "acme", 12, "")
    for block in range(30):
        assert fits(shapes, *(line({**row, f"x{block:02}-{number:03}": 1}) for number in range(100, 400))) == []
    assert next(calls) < 500  # of 9,000 lines


class Sink:
    """Takes rows as DayFiles does, and counts them."""

    def __init__(self) -> None:
        self.rows: Counter[tuple[Any, ...]] = Counter()

    def add(self, requests: Requests, arrivals: Arrivals) -> None:
        texts = requests.texts
        request = list(
            zip(
                (requests.kinds[place] for place in requests.kind),
                requests.fingerprint.to_pylist(),
                texts.request.take(pa.array(requests.text)).to_pylist(),
                texts.prompt.take(pa.array(requests.text)).to_pylist(),
                strict=True,
            )
        )
        columns = (column.to_pylist() for column in arrivals[2:])
        rows = zip(arrivals.which.tolist(), arrivals.ts_us.tolist(), *columns, strict=True)
        self.rows.update((request[which], *rest) for which, *rest in rows)

    def finish(self) -> list[Any]:
        return []


def read(reader: RowReader, *lines: bytes) -> tuple[Any, ...]:
    """What becomes of the lines: rows, rejects with their lines, what is passed over and what is bypassed."""
    sink = Sink()
    tally = reader.read(Lines(1, b"".join(lines)), sink)  # type: ignore[arg-type]
    tally += reader.finish(sink)  # type: ignore[arg-type]
    assert tally.rows == sink.rows.total()
    return sink.rows, Counter(tally.rejects), tally.passed_over, tally.bypassed


@cache
def read_alone(layout: str, each: bytes) -> tuple[Any, ...]:
    return read(RowReader(job(layout)), each)


def read_one_by_one(layout: str, *lines: bytes) -> tuple[Any, ...]:
    rows, rejects, passed_over, bypassed = Counter[Any](), Counter[Any](), Counter[str](), Counter[str]()
    for number, each in enumerate(lines, 1):
        found = read_alone(layout, each)
        rows += found[0]
        rejects += Counter({(number, reason): times for (_, reason), times in found[1].items()})
        passed_over += found[2]
        bypassed += found[3]
    return rows, rejects, passed_over, bypassed


def job(layout: str) -> Job:
    return job_of(settings_of(layout), preset_of(layout), b"salt", LATEST_US)


PLAIN = {"time": "2026-03-10T12:00:00Z", "user": "ann", "text": "Hi", "tenant": "acme", "tokens": 12, "more": ""}
WILD: dict[str, list[Any]] = {
    "time": ["2026-03-10 12:00:01.25", "soon", "9999-01-01", 1_770_000_000, 1_770_000_000.25, -1, None],
    "user": ["Zoë", 'a"b', "a\\", "a\\\\", "", 12, None],
    "text": [" hi.", "Hi\n", 'say "hi"', "\\", "\\n", "Grüße", "", "(litellm_truncated 3)", "true", "[1]", "12", None],
    "tenant": ["globex", "", 7, None, "ä"],
    "tokens": [0, 10**17, 10**19, -1, 1.5, "7", None],
    "more": ["x", "chat", "failure", "mark 3", "😀"],
}
ODD_TEXTS = [
    *(rb"\x", rb"\ud800", rb"\u00e4", rb"\ud83d\ude00", rb"\/", rb"\\", rb"\\\"", b"\\", b"\\" * 3, b"\\" * 64),
    *(b"\t", b"\r", b"\xff", b""),
]


def plain_line(layout: str, **changed: Any) -> bytes:
    return line(LAYOUTS[layout](**{**PLAIN, **changed}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WILD.items() for value in values])
def test_a_value_of_another_kind_becomes_what_it_becomes_alone(layout: str, name: str, value: Any) -> None:
    lines = [plain_line(layout)] * MANY + [plain_line(layout, **{name: value}), plain_line(layout, tenant="globex")]
    assert read(RowReader(job(layout)), *lines) == read_one_by_one(layout, *lines)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("place", [b'"ann"', b'"Hi"', b'"acme"', b'"r12"', b'"2026-03-10T12:00:00Z"'])
def test_a_text_that_json_writes_oddly_or_not_at_all(layout: str, text: bytes, place: bytes) -> None:
    odd = plain_line(layout).replace(place, b'"%b"' % text)
    lines = [plain_line(layout)] * MANY + [odd, plain_line(layout)]
    assert read(RowReader(job(layout)), *lines) == read_one_by_one(layout, *lines)


@pytest.mark.parametrize("model", [b"null", b'""', b"5", b"[]"])
def test_lines_without_a_model_are_all_rejected(model: bytes) -> None:
    lines = [plain_line("openai").replace(b'"m"', model)] * MANY
    found = read(RowReader(job("openai")), *lines)
    assert found == read_one_by_one("openai", *lines)
    assert found[1].total() == MANY


@pytest.mark.parametrize("levels", [90, 200, 300, 1000, 2000])
@pytest.mark.parametrize("place", [b'"r12"', b'"stop"', b'"Hi"'])
def test_lines_that_are_nested_deeply(levels: int, place: bytes) -> None:
    nested = b"[" * levels + b"1" + b"]" * levels
    lines = [plain_line("openai").replace(b'"seed"', b'"stop":"stop","seed"').replace(place, nested)] * MANY
    assert read(RowReader(job("openai")), *lines) == read_one_by_one("openai", *lines)


# Most values are plain, so that a wild one is alone in its line: two would hide each other.
TIMES = st.sampled_from(["2026-03-10T12:00:00Z", "2026-03-11T12:00:00.25Z"]) | st.sampled_from(WILD["time"])
USERS = st.sampled_from(["ann", "bob"]) | st.sampled_from(WILD["user"]) | st.text(max_size=3)
TEXTS = st.sampled_from(["Hi", "Hello"]) | st.sampled_from(WILD["text"]) | st.text(max_size=4)
TENANTS = st.sampled_from(["acme", "globex"]) | st.sampled_from(WILD["tenant"])
TOKENS = st.sampled_from([1, 12]) | st.sampled_from(WILD["tokens"])
MORE = st.just("") | st.sampled_from(WILD["more"])
BYTES = st.sampled_from([b'"', b"\\", b"}", b"0", b"\\u00e4", b"\\ud800", b"\r", b""]) | st.binary(max_size=2)
CUTS = st.none() | st.none() | st.tuples(st.integers(0, 400), BYTES)


def cut(written: bytes, place: tuple[int, bytes] | None) -> bytes:
    """The line with a byte of it replaced; it stays one line."""
    if place is None:
        return written
    at, by = place[0] % (len(written) - 1), place[1].replace(b"\n", b"")
    return written[:at] + by + written[at + 1 :]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    rows=st.lists(st.tuples(TIMES, USERS, TEXTS, TENANTS, TOKENS, MORE, CUTS), min_size=1, max_size=12),
    end=st.sampled_from([b"\n", b"\r\n"]),
    write=st.sampled_from([line, spaced_line]),
)
def test_a_log_becomes_what_its_lines_become_one_by_one(
    layout: str, rows: list[tuple[Any, ...]], end: bytes, write: Callable[[Any], bytes]
) -> None:
    plain = write(LAYOUTS[layout]("2026-03-10T12:00:00Z", "ann", "Hi", "acme", 12, ""))
    lines = [plain] * MANY + [cut(write(LAYOUTS[layout](*values)), place) for *values, place in rows]
    lines = [each[:-1] + end for each in lines]
    assert read(RowReader(job(layout)), *lines) == read_one_by_one(layout, *lines)
