"""Replays requests through a gateway with OpenAI's own client and counts what came of each.

In: request bodies with their tenants, in the order they were asked. Out: hits, misses, tokens and dollars saved.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard
from openai import APIError, AsyncOpenAI

from prebake.prices import online_price
from prebake.settings import Settings

CONCURRENCY = 16
_ALONE = 100  # hits that are asked once more, one after the other


@dataclass(frozen=True)
class Asked:
    """One request as a client sent it."""

    body: dict[str, Any]
    tenant: str | None


@dataclass
class Tally:
    """What came of the requests; times are seconds from sending to the whole answer, tokens are those of the hits.

    ``hit_s`` are of some of the hits, asked once more by themselves: beside a model and fifteen other requests on the
    same cores, the client waits for them and not for the gateway.
    """

    requests: int = 0
    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    errors: int = 0
    first_error: str = ""
    tokens_saved: int = 0
    usd_saved: float = 0.0
    hit: list[Asked] = field(default_factory=list)
    hit_s: list[float] = field(default_factory=list)
    miss_s: list[float] = field(default_factory=list)


def read_held_back(file: Path) -> Iterator[Asked]:
    """The requests of one of make_log's files."""
    with zstandard.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = orjson.loads(line)
            yield Asked(row["body"], row["tenant"])


def replay(base_url: str, asked: Iterable[Asked], settings: Settings, advance: Callable[[int], None]) -> Tally:
    """Ask everything, some at once; ``base_url`` is the gateway's with /v1. Failed requests are counted, not raised."""
    return asyncio.run(_replay(base_url, asked, settings, advance))


async def _replay(base_url: str, asked: Iterable[Asked], settings: Settings, advance: Callable[[int], None]) -> Tally:
    tally = Tally()
    source = iter(asked)
    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        async def ask_on() -> None:
            for request in source:
                await _ask(client, request, settings, tally)
                advance(1)

        await asyncio.gather(*(ask_on() for _ in range(CONCURRENCY)))
        alone = Tally()
        for request in tally.hit[:_ALONE]:
            await _ask(client, request, settings, alone)
        tally.hit_s = alone.hit_s
    return tally


async def _ask(client: AsyncOpenAI, asked: Asked, settings: Settings, tally: Tally) -> None:
    fields = {name: value for name, value in asked.body.items() if name not in ("model", "messages", "stream")}
    header = settings.gateway.tenant_header
    headers = {header: asked.tenant} if header and asked.tenant else {}
    tally.requests += 1
    started = time.perf_counter()
    try:
        response = await client.chat.completions.with_raw_response.create(
            model=asked.body["model"], messages=asked.body["messages"], extra_body=fields, extra_headers=headers
        )
        completion = response.parse()
    except APIError as error:
        tally.errors += 1
        tally.first_error = tally.first_error or f"{type(error).__name__}: {error}"
        return
    seconds = time.perf_counter() - started
    outcome = response.headers.get("x-prebake", "miss")
    if outcome != "hit":
        tally.misses += outcome == "miss"
        tally.bypasses += outcome == "bypass"
        tally.miss_s.append(seconds)
        return
    tally.hits += 1
    tally.hit.append(asked)
    tally.hit_s.append(seconds)
    if usage := completion.usage:
        tally.tokens_saved += usage.total_tokens
        if price := online_price(settings.prices.online, asked.body["model"]):
            tally.usd_saved += price.usd(usage.prompt_tokens, usage.completion_tokens)
