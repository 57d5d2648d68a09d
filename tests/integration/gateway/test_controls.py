"""What each request may ask of the store: Cache-Control as HTTP means it, and a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from prebake.progress import Silent
from prebake.request import Keyed, key_request
from prebake.stop import Stop
from storage.store import open_store
from tasks.ingest import ingest
from tests.gateway_bed import (
    Running,
    answer_to,
    ask,
    gateway_server,
    logged,
    publish,
    settings_of,
    wait_until,
)
from tests.integration.gateway.conftest import CAPITAL, PARIS


def post(gateway: Running, body: dict[str, Any], path: str = "/chat/completions", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{gateway.url}/v1{path}", json=body, headers=sent, timeout=20)


def outcome(response: httpx.Response) -> tuple[int, str, str | None]:
    return response.status_code, response.headers["x-prebake"], response.headers.get("x-prebake-reason")


@pytest.mark.parametrize(
    ("directives", "expected"),
    [
        ("no-cache", (200, "bypass", "no_cache")),
        ("no-cache, only-if-cached", (504, "bypass", "no_cache")),
        ("max-age=60", (200, "miss", "too_old")),
        ("max-age=0", (200, "miss", "too_old")),
        ("max-age=nonsense", (200, "miss", "too_old")),
        ("max-age=14400", (200, "hit", None)),  # the answer was baked three hours ago
        ("no-store", (200, "hit", None)),
        ("only-if-cached", (200, "hit", None)),
        ("only-if-cached, max-age=60", (504, "miss", "too_old")),
        ("max-stale, no-transform", (200, "hit", None)),
    ],
)
def test_a_baked_answer_is_given_as_the_request_allows(
    gateway: Running, directives: str, expected: tuple[int, str, str | None]
) -> None:
    assert outcome(post(gateway, ask(CAPITAL), cache_control=directives)) == expected


def test_the_headers_of_a_hit_say_when_it_expires(gateway: Running) -> None:
    headers = post(gateway, ask(CAPITAL)).headers
    private, max_age = headers["cache-control"].split(", max-age=")
    assert private == "private"
    # Baked three hours ago and good for a day from now: HTTP counts max-age from the baking, as age does.
    assert int(max_age) == 27 * 3600
    assert 23 * 3600 < int(max_age) - int(headers["age"]) <= 24 * 3600


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ask("Never baked"), "not_baked"),
        (ask("Never baked", stream=True), "not_baked"),
        (ask(CAPITAL, n=2), "choices"),
        ({"model": "tiny", "messages": "none"}, "malformed"),
        (ask("x" * 5_000_000), "too_large"),
    ],
)
def test_only_if_cached_never_reaches_the_model(
    gateway: Running, upstream: Running, body: dict[str, Any], reason: str
) -> None:
    before = httpx.get(f"{upstream.url}/seen").json()["requests"]
    response = post(gateway, body, cache_control="only-if-cached")
    assert (response.status_code, response.headers["x-prebake-reason"]) == (504, reason)
    assert response.json()["error"]["code"] == "not_cached"
    assert httpx.get(f"{upstream.url}/seen").json()["requests"] == before


def test_only_if_cached_holds_for_all_of_the_api(gateway: Running) -> None:
    response = post(gateway, {"model": "tiny", "input": "x"}, "/embeddings", cache_control="only-if-cached")
    assert outcome(response) == (504, "bypass", "not_chat")


def test_openais_client_sends_the_controls_and_raises_its_own_error(gateway: Running) -> None:
    only = {"Cache-Control": "only-if-cached"}
    answer = gateway.client.chat.completions.create(**ask(CAPITAL), extra_headers=only)
    assert answer.choices[0].message.content == PARIS
    with pytest.raises(openai.InternalServerError, match="only-if-cached"):
        gateway.client.chat.completions.create(**ask("Never baked"), extra_headers=only)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one question answered in three partitions."""
    folder = tmp_path_factory.mktemp("namespaces")
    settings = settings_of(folder)
    publish(
        folder,
        [
            answer_to(settings, ask("Price?"), "10"),
            answer_to(settings, ask("Price?"), "12", namespace="v2"),
            answer_to(settings, ask("Price?", model="mine"), "8", tenant="a", namespace="v2"),
        ],
    )
    return folder


@pytest.fixture(scope="module")
def spaces(folder: Path, upstream: Running) -> Iterator[Running]:
    """A gateway over that store."""
    with gateway_server(folder, upstream.url, tenant_header="x-tenant") as server:
        yield server


def said(response: httpx.Response) -> str:
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def test_a_namespace_has_answers_of_its_own(spaces: Running) -> None:
    assert said(post(spaces, ask("Price?"))) == "10"
    assert said(post(spaces, ask("Price?"), x_prebake_namespace="")) == "10"
    assert said(post(spaces, ask("Price?"), x_prebake_namespace="v2")) == "12"
    assert outcome(post(spaces, ask("Price?"), x_prebake_namespace="v3")) == (200, "miss", "not_baked")


def test_a_namespace_never_leads_out_of_its_tenant(spaces: Running) -> None:
    mine = ask("Price?", model="mine")
    assert said(post(spaces, mine, x_prebake_namespace="v2", x_tenant="a")) == "8"
    assert outcome(post(spaces, mine, x_prebake_namespace="v2", x_tenant="b"))[1:] == ("miss", "not_baked")
    assert outcome(post(spaces, mine, x_prebake_namespace="v2"))[1:] == ("bypass", "no_tenant")
    for forged in ("v2/tenant/a", "shared", "namespace/v2/tenant/a"):
        assert outcome(post(spaces, mine, x_prebake_namespace=forged, x_tenant="b"))[1] != "hit"


@pytest.mark.parametrize("name", ["a b", "x" * 65, "naïve", 'x","scope":"shared', "../x", "v2/shared"])
def test_what_is_no_namespace_goes_to_the_model(spaces: Running, name: str) -> None:
    headers = [("x-prebake-namespace", name.encode())]
    response = httpx.post(f"{spaces.url}/v1/chat/completions", json=ask("Price?"), headers=headers)
    assert outcome(response) == (200, "bypass", "namespace")


def test_two_namespaces_are_none(spaces: Running) -> None:
    headers = [("x-prebake-namespace", "v2"), ("x-prebake-namespace", "v2")]
    response = httpx.post(f"{spaces.url}/v1/chat/completions", json=ask("Price?"), headers=headers)
    assert outcome(response) == (200, "bypass", "namespace")


def test_the_night_finds_a_namespace_in_the_log_and_nothing_of_what_was_not_to_be_stored(
    tmp_path: Path, upstream: Running
) -> None:
    """litellm#5917: a namespace in the request and none where the answer is kept made every lookup a miss."""
    with gateway_server(tmp_path, upstream.url, tenant_header="x-tenant") as gateway:
        post(gateway, ask("Open?"), x_prebake_namespace="v2")
        post(gateway, ask("Secret?"), cache_control="no-store")
        post(gateway, ask("Strange?"), x_prebake_namespace="a b")
        post(gateway, ask("Fresh?"), cache_control="no-cache")
        post(gateway, ask("Cached?"), cache_control="only-if-cached")
        post(gateway, ask("Mine?", model="mine"), x_prebake_namespace="v2", x_tenant="a")
        wait_until(lambda: len(logged(tmp_path)) == 4)
    settings = settings_of(tmp_path)
    with open_store(settings) as store:
        pattern = str(tmp_path / "prebake-store" / "gateway-log" / "**" / "*.parquet")
        report = ingest(store, settings, [pattern], preset="prebake", progress=Silent(), stop=Stop())
        rows = {row["prompt"]: row for row in store.query_log.scan().to_table().to_pylist()}
    assert report.passed_over == {"not answered": 1}  # only-if-cached
    assert rows.keys() == {"Open?", "Fresh?", "Mine?"}
    assert rows["Open?"]["scope"] == "namespace/v2/shared"
    assert rows["Mine?"]["scope"] == "namespace/v2/tenant/a"
    asked = [("Open?", "tiny", None, "v2"), ("Fresh?", "tiny", None, ""), ("Mine?", "mine", "a", "v2")]
    for prompt, model, tenant, namespace in asked:
        keyed = key_request(ask(prompt, model), settings.route_table, tenant, namespace)
        assert isinstance(keyed, Keyed)
        assert rows[prompt]["fingerprint"] == keyed.fingerprint
