"""Write the example's query log: real questions, simulated arrivals.

The texts are real (examples/data). Who asks when is simulated: the rhythm of the day and of the week, tenants and
users, popularity and its drift, one-off prompts, conversations. The token counts are simulated too: four characters to
a token. The same arguments give the same bytes. In: a folder. Out: ``log/YYYY-MM-DD.jsonl.zst`` for each day but the
last, and ``held-back.jsonl.zst`` for the last: each line a chat request with its time, tenant and token counts (the
layout of ingest's preset ``openai``).

    python -m examples.make_log demo
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import orjson
import typer
import zstandard

from examples.corpus import HERE, OUT_OF_SCOPE, ROUTES, SYSTEM, RouteName, answers, questions
from examples.prompts import OneOffs, Popularity, now_or_here, personal, surface
from prebake import loading
from prebake.request import Keyed, key_request
from prebake.settings import Settings

END_DAY: Final = date(2026, 10, 30)
SEED: Final = 20261030
ROUTE_SHARE: Final[Mapping[RouteName, float]] = {"banking": 0.6, "assistant": 0.4}

# Shares of all requests; the rest are prompts that come back, as they were first written or after a surface change.
ONE_OFF: Final = 0.30
CONVERSATION: Final = 0.08
PERSONAL: Final = 0.015
NOW_OR_HERE: Final = 0.02
SURFACE: Final = 0.35  # of the prompts that come back

MODELS: Final = ("help-desk-1", "help-desk-1", "help-desk-1-2026-09")
TEMPERATURE: Final[Mapping[RouteName, float]] = {"banking": 0.0, "assistant": 0.2}
MAX_TOKENS: Final = 48
CHARACTERS_PER_TOKEN: Final = 4

# Requests per hour of the UTC day, relative: offices for the bank, mornings and evenings for the assistant.
_HOURS: Final[Mapping[RouteName, tuple[float, ...]]] = {
    "banking": (2, 1, 1, 1, 1, 2, 4, 8, 14, 18, 19, 18, 17, 17, 18, 17, 15, 14, 13, 12, 10, 7, 5, 3),
    "assistant": (3, 2, 1, 1, 2, 5, 12, 16, 12, 8, 7, 7, 9, 8, 7, 7, 9, 13, 17, 19, 18, 14, 9, 5),
}
_WEEKDAYS: Final[Mapping[RouteName, tuple[float, ...]]] = {
    "banking": (1.15, 1.1, 1.05, 1.05, 1.1, 0.7, 0.5),
    "assistant": (1.0, 0.95, 0.95, 1.0, 1.05, 1.2, 1.1),
}


@dataclass(frozen=True)
class Tenant:
    """A customer of the service: its name, its share of the route's requests, how many users it has."""

    name: str
    share: float
    users: int


TENANTS: Final[Mapping[RouteName, tuple[Tenant, ...]]] = {
    "banking": (Tenant("harbour-bank", 0.55, 1600), Tenant("acorn-bank", 0.3, 900), Tenant("tern-bank", 0.15, 400)),
    "assistant": (Tenant("home-hub", 0.7, 1100), Tenant("office-mate", 0.3, 500)),
}


@dataclass(frozen=True)
class Asked:
    """One request of the log."""

    at: datetime
    tenant: str
    body: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int

    def line(self) -> bytes:
        """The request as one line of JSON."""
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        row = {"timestamp": self.at.isoformat(), "tenant": self.tenant, "body": self.body, "usage": usage}
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True)
class Summary:
    """What was written, and how many hits are possible at most on the day held back."""

    requests: int
    users: int
    tenants: int
    first_day: date
    last_day: date
    log: tuple[Path, ...]
    held_back: Path
    held_back_requests: int
    ceiling_hit_rate: float  # share of the last day's requests whose fingerprint was seen in the window before it


def make_log(
    folder: Path, *, days: int = 30, requests: int = 50_000, seed: int = SEED, end_day: date = END_DAY
) -> Summary:
    """Write the log of ``days`` UTC days up to ``end_day`` into the folder; the last day is held back in its own file.

    Raises ValueError for less than two days or less than one request a day.
    """
    if days < 2 or requests < days:
        raise ValueError(f"a log needs 2 days and 1 request a day at least, got {days} days and {requests} requests")
    asked = list(simulate(days=days, requests=requests, seed=seed, end_day=end_day))
    by_day: dict[date, list[Asked]] = {end_day - timedelta(days=back): [] for back in reversed(range(days))}
    for request in asked:
        by_day[request.at.date()].append(request)
    last = by_day.pop(end_day)
    log = tuple(_write(folder / "log" / f"{day}.jsonl.zst", rows) for day, rows in by_day.items())
    return Summary(
        requests=len(asked),
        users=len({(request.tenant, request.body["user"]) for request in asked}),
        tenants=len({request.tenant for request in asked}),
        first_day=min(by_day),
        last_day=end_day,
        log=log,
        held_back=_write(folder / "held-back.jsonl.zst", last),
        held_back_requests=len(last),
        ceiling_hit_rate=ceiling_hit_rate(asked, end_day, loading.load(HERE / "prebake.toml")),
    )


def simulate(*, days: int, requests: int, seed: int, end_day: date) -> Iterator[Asked]:
    """The requests in the order of their times."""
    random = Random(seed)
    first = datetime.combine(end_day, datetime.min.time(), UTC) - timedelta(days=days - 1)
    askers = {route: _Asker(route, days, random) for route in ROUTES}
    times: list[tuple[datetime, RouteName]] = []
    for route in ROUTES:
        share = requests - len(times) if route == ROUTES[-1] else round(requests * ROUTE_SHARE[route])
        times += [(at, route) for at in _arrivals(route, first, days, share, random)]
    for at, route in sorted(times):
        yield askers[route].ask(at, (at - first).days)


def ceiling_hit_rate(asked: Iterable[Asked], last_day: date, settings: Settings) -> float:
    """The share of the last day's requests whose fingerprint was asked in the settings' window before that day."""
    first_day = last_day - timedelta(days=settings.mine.window_days)
    seen: set[bytes] = set()
    last: list[bytes | None] = []
    for request in asked:
        day = request.at.date()
        if first_day <= day <= last_day:
            keyed = key_request(request.body, settings.route_table, request.tenant)
            fingerprint = keyed.fingerprint if isinstance(keyed, Keyed) else None
            if day == last_day:
                last.append(fingerprint)
            elif fingerprint is not None:
                seen.add(fingerprint)
    return sum(fingerprint in seen for fingerprint in last) / len(last) if last else 0.0


class _Asker:
    """The users of one route: says who asks what."""

    def __init__(self, route: RouteName, days: int, random: Random) -> None:
        self._route: RouteName = route
        self._random = random
        self._popularity = Popularity(route, days, random)
        self._one_offs = OneOffs(route, self._popularity, random)
        self._answers = answers(route)
        self._intents = {question.text: question.intent for question in questions(route)}

    def ask(self, at: datetime, day: int) -> Asked:
        random = self._random
        tenant = random.choices(TENANTS[self._route], [tenant.share for tenant in TENANTS[self._route]])[0]
        # The square makes some users ask far more than others.
        user = f"{tenant.name}-user-{int(tenant.users * random.random() ** 2):04}"
        talk = self._talk(day)
        body: dict[str, Any] = {
            "model": random.choice(MODELS),
            "messages": [{"role": "system", "content": SYSTEM[self._route]}, *talk],
            "temperature": TEMPERATURE[self._route],
            "max_tokens": MAX_TOKENS,
            "user": user,
        }
        if random.random() < 0.5:
            body["stream"] = True
        _vary(body, random)
        answer = self._answer(talk[-1]["content"])
        return Asked(at, tenant.name, body, _tokens(*(m["content"] for m in body["messages"])), _tokens(answer))

    def _talk(self, day: int) -> list[dict[str, Any]]:
        """The messages after the system prompt: one question, or a conversation of two or three."""
        talk: list[dict[str, Any]] = []
        if self._random.random() < CONVERSATION:
            for _ in range(self._random.choice((1, 1, 2))):
                question = self._popularity.draw(day, self._random)
                talk.append({"role": "user", "content": question})
                talk.append({"role": "assistant", "content": self._answer(question)})
            return [*talk, {"role": "user", "content": self._popularity.draw(day, self._random)}]
        return [{"role": "user", "content": self._prompt(day)}]

    def _prompt(self, day: int) -> str:
        random = self._random
        kind = random.random()
        if kind < PERSONAL:
            return personal(self._route, random)
        if kind < PERSONAL + NOW_OR_HERE:
            return now_or_here(self._route, random)
        if kind < PERSONAL + NOW_OR_HERE + ONE_OFF:
            return self._one_offs.draw(day, random)
        text = self._popularity.draw(day, random)
        return surface(text, random) if random.random() < SURFACE else text

    def _answer(self, text: str) -> str:
        sorry = answers("assistant")[OUT_OF_SCOPE]
        return self._answers.get(self._intents.get(text, OUT_OF_SCOPE), sorry)


def _vary(body: dict[str, Any], random: Random) -> None:
    """A few callers want what no store can give: variety, several choices, log-probabilities, another model."""
    kind = random.random()
    if kind < 0.015:
        body["temperature"] = 1.0
    elif kind < 0.02:
        body |= {"n": 3, "temperature": 0.3}  # several choices of the likeliest text make no sense, vLLM refuses them
    elif kind < 0.023:
        body["logprobs"] = True
    elif kind < 0.03:
        body["model"] = "other-model"


def _arrivals(route: RouteName, first: datetime, days: int, requests: int, random: Random) -> list[datetime]:
    """That many times of a Poisson process whose rate follows the hour, the weekday and a slow growth.

    Given their number, the times of a Poisson process are independent draws from its normalised rate (Kingman, "Poisson
    Processes", 1993, section 2.4).
    """
    rates = []
    for day in range(days):
        weekday = _WEEKDAYS[route][(first + timedelta(days=day)).weekday()]
        level = weekday * (1 + 0.2 * day / days) * random.lognormvariate(0, 0.06)
        rates += [level * hour for hour in _HOURS[route]]
    hours = random.choices(range(len(rates)), cum_weights=list(accumulate(rates)), k=requests)
    return [first + timedelta(milliseconds=int((hour + random.random()) * 3_600_000)) for hour in hours]


def _tokens(*texts: str) -> int:
    """Simulated: four characters to a token, as a rule of thumb for English, and four tokens around each message."""
    return sum(4 + len(text) // CHARACTERS_PER_TOKEN for text in texts)


def _write(file: Path, rows: Iterable[Asked]) -> Path:
    """Under another name first, so that a file of this name is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(zstandard.ZstdCompressor(level=9).compress(b"".join(row.line() for row in rows)))
    return partial.replace(file)


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    days: Annotated[int, typer.Option(min=2, help="Days of log; the last is held back.")] = 30,
    requests: Annotated[int, typer.Option(min=2, help="Requests over all days.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Another seed, another log.")] = SEED,
) -> None:
    """Write the example's query log. The questions are real, who asks when is simulated."""
    summary = make_log(out, days=days, requests=requests, seed=seed)
    typer.echo(json.dumps(asdict(summary), indent=2, default=str))


if __name__ == "__main__":
    typer.run(main)
