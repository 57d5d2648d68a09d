"""Explaining a request from its first asking to its answer: each step of the night adds what it knows."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from gateway.chat import Reason
from gateway.explain import WHY, Explanation, explain_fingerprint, explain_request
from gateway.reload import NoStore
from prebake.request import Bypass
from prebake.routes import Route
from prebake.settings import Settings
from prebake.verdicts import Withheld
from storage.store import Store
from storage.verdicts import approve, block
from tasks.mine import mine
from tasks.plan import plan
from tasks.publish import publish
from tests.integration.tasks.conftest import DAY, NOW, Ask, Bake

QUESTION = {"model": "gpt", "messages": [{"role": "user", "content": "How?"}]}
LATER = NOW + timedelta(hours=2)


def explained(store: Store, settings: Settings, body: Any = QUESTION, **options: Any) -> Explanation:
    return explain_request(store, settings, body, now=LATER, **options)


def with_route(settings: Settings, **values: Any) -> Settings:
    """The same store with another route; made anew, since settings remember their routes."""
    return Settings(store=settings.store, prices=settings.prices, routes=(Route(name="faq", **values),))


def night(store: Store, settings: Settings, bake: Bake) -> str:
    mine(store, settings)
    plan_id = plan(store, settings, DAY, now=NOW).plan_id
    bake(plan_id, model="qwen")
    publish(store, settings, run_id="run", now=NOW + timedelta(hours=1))
    return plan_id


def test_a_hit_has_route_key_answer_run_and_plan(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    key = ask("How?", ["ann", "bob", "cat"])
    plan_id = night(store, settings, bake)
    found = explained(store, settings, QUESTION | {"stream": True})
    assert (found.cache, found.reason, found.route, found.scope) == ("hit", None, "faq", "shared")
    assert found.fingerprint == key.hex() == sha256((found.canonical or "").encode()).hexdigest()[:32]
    assert found.requests_logged == 3
    assert found.plan is not None
    assert (found.plan.plan_id, found.plan.decision, found.plan.reason) == (plan_id, "bake", "new")
    assert (found.plan.requests, found.plan.users, found.plan.tenants) == (3, 3, 1)
    answer = found.answer
    assert answer is not None
    assert (answer.run_id, answer.model, answer.message["content"]) == ("run", "qwen", "so: How?")
    assert (answer.age_s, answer.left_s) == (2 * 3600, 7 * 86400 - 2 * 3600)
    by_key = explain_fingerprint(store, settings, key, now=LATER)
    assert (by_key.cache, by_key.route, by_key.scope, by_key.answer) == ("hit", "faq", "shared", answer)


def test_a_miss_says_what_the_plan_decided(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    ask("How?", ["ann", "ann"])
    ask("Once?", ["ann"])
    assert explained(store, settings).reason is NoStore.NO_SNAPSHOT
    night(store, settings, bake)
    found = explained(store, settings)
    assert (found.cache, found.reason) == ("miss", "not_baked")
    assert found.plan is not None
    assert (found.plan.decision, found.plan.reason) == ("skip", "below min_users")
    once = explained(store, settings, QUESTION | {"messages": [{"role": "user", "content": "Once?"}]})
    assert (once.reason, once.plan, once.requests_logged) == ("not_baked", None, 1)
    never = explained(store, settings, QUESTION | {"model": "other"})
    assert (never.reason, never.plan, never.requests_logged) == ("not_baked", None, 0)


def test_verdicts_are_shown_with_what_they_do(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    key = ask("How?")
    settings = with_route(settings, scope="shared", fold="text", approval=True)
    night(store, settings, bake)
    unread = explained(store, settings)
    assert (unread.cache, unread.reason) == ("miss", "unapproved")
    assert unread.answer is not None
    approve(store.objects, {key: unread.answer.digest}, now=NOW, note="read it")
    read = explained(store, settings)
    assert (read.cache, read.approved and read.approved.note) == ("hit", "read it")
    block(store.objects, [key], now=NOW, note="no more")
    blocked = explained(store, settings)
    assert (blocked.reason, blocked.blocked and blocked.blocked.note) == ("blocked", "no more")
    assert explain_fingerprint(store, settings, key, now=LATER).reason == "blocked"


def test_a_bypass_says_why(store: Store, settings: Settings) -> None:
    assert explained(store, settings, QUESTION | {"n": 2}).reason is Bypass.CHOICES
    assert explained(store, settings, QUESTION | {"stream": "yes"}).reason is Reason.DELIVERY
    assert explained(store, settings, ["no request"]).reason is Bypass.MALFORMED
    assert explained(store, settings, QUESTION, namespace="a b").reason is Bypass.NAMESPACE
    per_tenant = with_route(settings)
    assert explained(store, per_tenant).reason is Bypass.NO_TENANT
    assert explained(store, per_tenant, tenant="a", namespace="v2").scope == "namespace/v2/tenant/a"
    off = with_route(settings, scope="shared", enabled=False)
    assert explained(store, off).reason is Bypass.ROUTE_OFF


@pytest.mark.parametrize("reason", [*Bypass, *Withheld])
def test_each_reason_has_its_sentence(reason: Bypass | Withheld) -> None:
    assert WHY[reason]
