"""The store mounted in a Python application: hits never reach it, everything else does, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gateway.middleware import Prebake
from prebake.loading import load
from prebake.lookup import AnswerStore
from prebake.request import Bypass
from tests.gateway_bed import SETTINGS, answer_to, ask, logged, publish, settings_of, wait_until, write_settings
from tests.openai_upstream import completion

CHAT = "/v1/chat/completions"
BAKED = "What does the middleware answer?"


async def chat(request: Request) -> Response:
    """The application's own answer: the request, and a model's words."""
    body = await request.json()
    if body.get("stream"):
        return StreamingResponse(iter([b"data: a\n\n", b"data: [DONE]\n\n"]), media_type="text/event-stream")
    return JSONResponse({**completion("tiny", "the application"), "asked": body}, headers={"x-app": "1"})


async def other(_request: Request) -> Response:
    """Another page of the application."""
    return PlainTextResponse("other")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one shared answer and one of a tenant."""
    folder = tmp_path_factory.mktemp("middleware")
    settings = settings_of(folder)
    mine = answer_to(settings, ask("Mine?", "mine"), "A's", tenant="a")
    publish(folder, [answer_to(settings, ask(BAKED), "the store"), mine])
    return folder


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[TestClient]:
    """The application with the middleware in front; the tenant is what its authentication left in the scope."""
    settings = load(write_settings(folder, SETTINGS + "[gateway]\nlog_flush_s = 0.1\n"))
    prebake = Middleware(Prebake, settings, tenant=lambda scope: dict(scope["headers"]).get(b"x-user", b"").decode())
    routes = [Route(CHAT, chat, methods=["POST"]), Route("/other", other)]
    with TestClient(Starlette(routes=routes, middleware=[prebake])) as client:
        yield client


def test_a_hit_is_answered_before_the_application(app: TestClient) -> None:
    response = app.post(CHAT, json=ask(BAKED))
    assert response.headers["x-prebake"] == "hit"
    answer = ChatCompletion.model_validate(response.json(), strict=True)
    assert answer.choices[0].message.content == "the store"
    streamed = app.post(CHAT, json=ask(BAKED, stream=True))
    assert "the store" in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_a_miss_is_the_applications_with_its_own_headers(app: TestClient) -> None:
    request: dict[str, Any] = ask("What else?", temperature=0.5)
    response = app.post(CHAT, json=request)
    assert response.json()["asked"] == request
    assert (response.headers["x-app"], response.headers["x-prebake"]) == ("1", "miss")
    assert app.post(CHAT, json=ask("What else?", stream=True)).text == "data: a\n\ndata: [DONE]\n\n"


def test_other_paths_are_not_touched(app: TestClient) -> None:
    response = app.get("/other")
    assert (response.text, "x-prebake" in response.headers) == ("other", False)
    assert app.get(CHAT).status_code == 405


def test_the_tenant_is_what_the_application_says(app: TestClient) -> None:
    request = ask("Mine?", "mine")
    outcomes = [app.post(CHAT, json=request, headers={"x-user": name}).headers["x-prebake"] for name in ("a", "b")]
    assert outcomes == ["hit", "miss"]
    assert app.post(CHAT, json=request).headers["x-prebake-reason"] == "no_tenant"


def test_requests_are_logged_for_the_next_night(app: TestClient, folder: Path) -> None:
    app.post(CHAT, json=ask("Log this"))
    wait_until(lambda: any("Log this" in row["body"] for row in logged(folder)))
    [row] = [row for row in logged(folder) if "Log this" in row["body"]]
    assert (row["cache"], row["status"], row["prompt_tokens"]) == ("miss", 200, 11)


def test_one_function_gives_the_answer_or_the_reason(folder: Path) -> None:
    settings = load(write_settings(folder))
    with AnswerStore.open(settings.store.root) as store:
        found = store.lookup(ask(BAKED), settings.route_table)
        assert found.answer is not None
        assert found.answer.message["content"] == "the store"
        assert store.lookup(ask("Mine?", "mine"), settings.route_table, tenant="a").cache == "hit"
        assert store.lookup(ask("Mine?", "mine"), settings.route_table, tenant="b").cache == "miss"
        assert store.lookup(ask("Mine?", "mine"), settings.route_table).key == Bypass.NO_TENANT
