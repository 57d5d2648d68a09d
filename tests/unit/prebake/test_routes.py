"""The first route that fits takes the request; what clients invent does not fill the memory."""

from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from pydantic import ValidationError

from prebake import routes as module
from prebake.request import Keyed, key_request
from prebake.routes import Route, Routes

ASK = [{"role": "user", "content": "hi"}]


def name(routes: Routes, model: str = "gpt", tenant: str | None = None, messages: list[object] | None = None) -> str:
    route = routes.match(model, tenant, ASK if messages is None else messages)
    return route.name if route else "none"


def test_the_first_route_that_fits_takes_the_request() -> None:
    routes = Routes([Route(name="gpt", models=("gpt-*",)), Route(name="any"), Route(name="never")], {})
    assert [name(routes, model) for model in ("gpt-4", "qwen", "GPT-4")] == ["gpt", "any", "any"]


def test_a_route_of_named_tenants_takes_no_other_and_not_the_nameless() -> None:
    routes = Routes([Route(name="acme", tenants=("acme", "acme-*"))], {})
    assert [name(routes, tenant=t) for t in ("acme", "acme-eu", "acmex", "", None)] == ["acme", "acme"] + ["none"] * 3


def test_a_route_may_ask_for_a_text_in_the_system_prompt() -> None:
    routes = Routes([Route(name="shop", system_contains="shop assistant"), Route(name="rest")], {})
    system = {"role": "system", "content": "You are a shop assistant."}
    parts = {"role": "developer", "content": [{"type": "text", "text": "shop assistant"}]}
    said_by_user = {"role": "user", "content": "You are a shop assistant."}
    assert name(routes, messages=[system, *ASK]) == "shop"
    assert name(routes, messages=[parts, *ASK]) == "shop"
    assert name(routes, messages=[said_by_user]) == "rest"


@pytest.mark.parametrize(
    "message", [None, 5, "system", {}, {"role": "system"}, {"role": "system", "content": [None, {"text": 5}, {}]}]
)
def test_messages_of_any_shape_fit_or_not_and_never_fail(message: object) -> None:
    assert name(Routes([Route(name="shop", system_contains="x")], {}), messages=[message]) == "none"


def test_the_first_alias_that_fits_names_the_model() -> None:
    routes = Routes([], {"small": ["*-mini", "nano"], "large": ["gpt-*"]})
    assert [routes.alias(model) for model in ("gpt-mini", "nano", "gpt-4", "qwen")] == [
        "small",
        "small",
        "large",
        "qwen",
    ]


def test_a_route_is_found_by_name() -> None:
    routes = Routes([Route(name="a"), Route(name="b")], {})
    assert routes["b"].name == "b"
    assert [route.name for route in routes] == ["a", "b"]
    with pytest.raises(KeyError):
        routes["c"]


def test_invented_names_and_prompts_do_not_fill_the_memory() -> None:
    routes = Routes([Route(name="any", scope="shared")], {})
    for number in range(module._MOST_REMEMBERED + 10):
        assert isinstance(key_request({"model": f"m{number}", "messages": ASK}, routes), Keyed)
    assert isinstance(key_request({"model": "m" * 1_000_000, "messages": ASK}, routes), Keyed)
    assert len(routes._candidates) <= module._MOST_REMEMBERED
    assert len(routes.templates) <= 512
    assert max(map(len, routes.templates)) <= 16_384


@pytest.mark.parametrize(
    "wrong",
    [{"name": "Has Space"}, {"name": "a", "scope": "all"}, {"name": "a", "ttl": timedelta(0)}, {"name": "a", "x": 1}],
)
def test_a_route_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Route(**wrong)  # type: ignore[arg-type]


def test_tenants_can_only_be_counted_where_they_share() -> None:
    assert Route(name="faq", scope="shared", min_tenants=2).min_tenants == 2
    with pytest.raises(ValidationError, match="nothing would be baked"):
        Route(name="faq", min_tenants=2)


def test_routes_that_were_used_can_be_sent_to_another_process() -> None:
    routes = Routes([Route(name="gpt", fold="text")], {"gpt": ("gpt-*",)})
    body = {"model": "gpt-4", "messages": ASK}
    found = key_request(body, routes, "acme")
    assert isinstance(found, Keyed)
    assert routes.templates
    assert key_request(body, pickle.loads(pickle.dumps(routes)), "acme") == found
