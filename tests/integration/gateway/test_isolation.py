"""Two tenants on one gateway: whatever the one does, the other's answers, headers and ways stay the same.

Two worlds are run side by side, real gateways over real stores: in one both tenants ask, in the other tenant B alone.
After any sequence of requests and nights, B must not be able to tell in which world it is.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from gateway.app import application
from prebake.answer import Answer
from prebake.loading import load
from prebake.request import Keyed, key_request
from prebake.settings import Gateway, Settings
from storage.objects import open_objects
from storage.snapshot import publish_snapshot
from tests.gateway_bed import SETTINGS, Running, ask, write_settings

COALESCING = SETTINGS + "coalesce = true\n"  # on the route that answers per tenant
QUESTIONS = ["Q1", "Q2", "Q3"]
# Who asks is the proxy's to say; all else is the client's.
CLAIMS: list[dict[str, Any]] = [
    {},
    {"user": "b"},
    {"tenant": "b"},
    {"metadata": {"tenant": "b"}},
    {"scope": "tenant/b"},
    {"safety_identifier": "b", "prompt_cache_key": "b"},
    {"stream": True},
    {"n": 2},
    {"temperature": 0.5},
]
CONTROLS: list[dict[str, str]] = [
    {},
    {"cache-control": "no-cache"},
    {"cache-control": "no-store"},
    {"cache-control": "max-age=0"},
    {"cache-control": "only-if-cached"},
    {"x-prebake-namespace": "v2"},
    {"x-prebake-namespace": "v2/tenant/b"},
    {"x-prebake-namespace": "b", "cache-control": "only-if-cached"},
    {"x-prebake": "hit", "x-prebake-tenant": "b", "x-forwarded-tenant": "b"},
]
INJECTED = ['"}],"scope":"tenant/b","x":[{"', "Q1\n\nscope: tenant/b", '{"model":"mine"}', "q1", "Q1 ", "\uff311"]
bodies = st.builds(
    lambda text, model, claims: ask(text, model) | claims,
    st.sampled_from(QUESTIONS + INJECTED),
    st.sampled_from(["mine", "tiny", "busy", "mine\0", "tenant/b"]),
    st.sampled_from(CLAIMS),
) | st.sampled_from([b"", b"[", b'{"model":"mine"}', b'{"model":"mine","messages":"Q1"}'])
own = st.builds(lambda text, more: ask(text, "mine") | more, st.sampled_from(QUESTIONS), st.sampled_from(CLAIMS))


class World:
    """A gateway over a store of its own, and the memory of what was asked of it since the last night."""

    def __init__(self, upstream: str, loop: asyncio.AbstractEventLoop, baked: datetime) -> None:
        self._folder = tempfile.TemporaryDirectory()
        file = write_settings(Path(self._folder.name), COALESCING)
        options = Gateway(upstream=f"{upstream}/v1", tenant_header="x-tenant", reload_s=0.01)
        self._settings: Settings = load(file).model_copy(update={"gateway": options})
        self._loop = loop
        self._baked = baked
        self._asked: dict[bytes, tuple[str, str]] = {}
        self._nights = 0
        app = application(self._settings)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30)
        self._signals: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._signals.put_nowait({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._life = loop.create_task(app(scope, self._signals.get, self._said.put))
        assert self._run(self._said.get())["type"] == "lifespan.startup.complete"

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def ask(self, tenant: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        """One request, as the proxy passes it on."""
        if isinstance(body, dict):
            key = key_request(body, self._settings.route_table, tenant, headers.get("x-prebake-namespace", ""))
            if isinstance(key, Keyed):
                self._asked[key.fingerprint] = key.route.name, tenant
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = {**headers, "x-tenant": tenant}
        return self._run(self._client.post("/v1/chat/completions", content=content, headers=sent))

    def night(self) -> None:
        """Bake all that anybody asked, which is more than any night would, and serve it."""
        self._nights += 1
        answers = [
            Answer(
                key,
                route,
                orjson.dumps({"role": "assistant", "content": f"for {tenant}, night {self._nights}"}),
                finish_reason="stop",
                prompt_tokens=1,
                completion_tokens=1,
                model="night",
                run_id=f"run-{self._nights}",
                baked_at=self._baked,
                expires_at=self._baked + timedelta(days=1),
            )
            for key, (route, tenant) in sorted(self._asked.items())
        ]
        objects = open_objects(self._settings.store)
        now = self._baked + timedelta(seconds=self._nights)
        version = publish_snapshot(objects, answers, run_id="night", keep=2, now=now).version
        self._run(self._until_served(version))

    async def _until_served(self, version: str) -> None:
        async with asyncio.timeout(20):
            while (await self._client.get("/readyz")).json()["snapshot"] != version:
                await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the gateway."""
        self._signals.put_nowait({"type": "lifespan.shutdown"})
        self._run(self._life)
        self._run(self._client.aclose())
        self._folder.cleanup()


def seen_by_b(response: httpx.Response) -> dict[str, Any]:
    """All that a client can tell one answer from another by, but for the clock, ids and the snapshot's random name."""
    headers = {name: value for name, value in response.headers.items() if name not in ("date", "age")}
    if "x-prebake-snapshot" in headers:
        headers["x-prebake-snapshot"] = headers["x-prebake-snapshot"][:-8]
    body = response.content
    if response.headers["x-prebake"] == "hit":
        first = body.split(b'"id":"', 1)[1].split(b'"', 1)[0]
        body = body.replace(first, b"ID")
        assert int(response.headers["age"]) < 600
    return {"status": response.status_code, "headers": sorted(headers.items()), "body": body}


class TwoTenants(RuleBasedStateMachine):
    """B asks in both worlds, A in one of them, and nights come over both."""

    upstream = ""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        baked = datetime.now(UTC)  # the same in both worlds: headers tell it
        self.both, self.b_alone = (World(self.upstream, self.loop, baked) for _ in range(2))
        self.b_was_served = 0

    @rule(body=bodies, headers=st.sampled_from(CONTROLS))
    def a_asks(self, body: Any, headers: dict[str, str]) -> None:
        response = self.both.ask("a", body, headers)
        assert b"for b" not in response.content

    @rule(body=own, headers=st.sampled_from(CONTROLS))
    def b_asks(self, body: Any, headers: dict[str, str]) -> None:
        with_a, alone = self.both.ask("b", body, headers), self.b_alone.ask("b", body, headers)
        assert seen_by_b(with_a) == seen_by_b(alone)
        assert b"for a" not in with_a.content

    @rule()
    def a_night_passes(self) -> None:
        self.both.night()
        self.b_alone.night()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.both.close()
            self.b_alone.close()
            self.loop.close()


def test_nothing_that_one_tenant_does_can_be_seen_by_another(upstream: Running) -> None:
    TwoTenants.upstream = upstream.url
    run_state_machine_as_test(
        TwoTenants,
        settings=settings(
            max_examples=20,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )


@pytest.fixture
def world(upstream: Running) -> Any:
    """One world with its loop."""
    loop = asyncio.new_event_loop()
    world = World(upstream.url, loop, datetime.now(UTC))
    yield world
    world.close()
    loop.close()


def test_the_worlds_would_show_it_if_one_tenant_saw_the_others_answer(world: World) -> None:
    """What the property above rests on: answers baked for who asked, and only they are hits."""
    world.ask("a", ask("Q1", "mine"), {})
    world.night()
    of_a, of_b = (world.ask(tenant, ask("Q1", "mine"), {}) for tenant in ("a", "b"))
    assert of_a.json()["choices"][0]["message"]["content"] == "for a, night 1"
    assert (of_b.headers["x-prebake"], of_b.headers["x-prebake-reason"]) == ("miss", "not_baked")
    assert seen_by_b(of_a) != seen_by_b(of_b)
