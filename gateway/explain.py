"""Explain: what the gateway does with a request, and why. In: a request or a fingerprint, the store. Out: one report.

It goes the gateway's own way, step by step, and adds what the tables know: who baked the answer, what the newest plan
decided about it. It serves nothing and changes nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import duckdb

from gateway.chat import Reason, delivery_is_ours
from gateway.reload import NoStore
from prebake.answer import Answer
from prebake.lookup import AnswerStore
from prebake.request import Bypass, canonical_request, key_request
from prebake.routes import Route
from prebake.settings import Settings
from prebake.verdicts import Approval, Block, Verdicts, Withheld, answer_digest
from storage.objects import Objects
from storage.snapshot import cache_folder, current, fetch_snapshot
from storage.store import Store
from storage.verdicts import read_verdicts

WHY: Final = {
    None: "a good answer is stored",
    Bypass.MALFORMED: "it is no chat request that can be read; the model will say what is wrong",
    Bypass.NO_ROUTE: "no route in the settings takes it",
    Bypass.ROUTE_OFF: "its route is switched off (enabled)",
    Bypass.NO_TENANT: "its route answers per tenant and nobody said which: give --tenant, or set scope",
    Bypass.NAMESPACE: "its namespace is too long, or of other letters than A-Z a-z 0-9 . _ : -",
    Bypass.SAMPLING: "its temperature is above the route's max_temperature",
    Bypass.CHOICES: "it asks for several answers (n)",
    Bypass.LOGPROBS: "it asks for log-probabilities",
    Bypass.NON_TEXT: "it has or wants more than text",
    Bypass.LIVE: "it asks for a search on the web",
    Reason.DELIVERY: "it wants the answer delivered in a way that only the model can do, or refuse",
    NoStore.NO_SNAPSHOT: "no snapshot was published yet: run `prebake nightly`",
    Reason.NOT_BAKED: "no answer is stored under this fingerprint, or it has expired",
    Withheld.BLOCKED: "it is blocked; `prebake unblock` lifts that",
    Withheld.UNAPPROVED: "its route serves only approved answers, and this one is not: `prebake approve`",
}


@dataclass(frozen=True)
class StoredAnswer:
    """The answer under the fingerprint. ``digest`` is what an approval stands for."""

    run_id: str
    model: str
    baked_at: datetime
    expires_at: datetime
    age_s: int
    left_s: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    digest: str
    message: dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """What the newest plan that had the fingerprint as a candidate decided about it."""

    plan_id: str
    decision: str
    reason: str
    requests: int
    users: int
    tenants: int


@dataclass(frozen=True)
class Explanation:
    """What the gateway does with a request: hit, miss or bypass, for which ``reason``, and ``why`` in a sentence.

    ``canonical`` is the JSON whose SHA-256 the fingerprint is; ``requests_logged`` counts the mined log, all days.
    ``answer`` is what the served snapshot has, given or not.
    """

    cache: str
    reason: str | None
    why: str
    route: str | None = None
    scope: str | None = None
    fingerprint: str | None = None
    canonical: str | None = None
    snapshot: str | None = None
    answer: StoredAnswer | None = None
    blocked: Block | None = None
    approved: Approval | None = None
    plan: Planned | None = None
    requests_logged: int = 0


def explain_request(
    store: Store, settings: Settings, body: Any, *, now: datetime, tenant: str | None = None, namespace: str = ""
) -> Explanation:
    """Explain a request by its parsed body. Raises StorageError where snapshot, verdicts or tables cannot be read."""
    if isinstance(body, dict) and not delivery_is_ours(body):
        return Explanation("bypass", Reason.DELIVERY, WHY[Reason.DELIVERY])
    key = key_request(body, settings.route_table, tenant, namespace)
    if isinstance(key, Bypass):
        return Explanation("bypass", key, WHY[key])
    canonical = canonical_request(body, settings.route_table, tenant, namespace)
    assert isinstance(canonical, bytes)  # noqa: S101 - it has a key
    found = _explain_key(store, settings, key.fingerprint, key.route, now)
    return replace(found, scope=key.scope, canonical=canonical.decode())


def explain_fingerprint(store: Store, settings: Settings, fingerprint: bytes, *, now: datetime) -> Explanation:
    """Explain what is known of a fingerprint: its route is that of its answer, or of the plan."""
    return _explain_key(store, settings, fingerprint, None, now)


def open_served(settings: Settings, objects: Objects) -> AnswerStore | None:
    """The snapshot that gateways serve, opened here too (fetched if it is in S3); None: none was published."""
    manifest = current(objects)
    if manifest is None:
        return None
    folder = cache_folder(settings.gateway.cache_dir, objects.uri)
    return AnswerStore.open(fetch_snapshot(objects, manifest.version, folder))


def _explain_key(
    store: Store, settings: Settings, fingerprint: bytes, route: Route | None, now: datetime
) -> Explanation:
    verdicts = read_verdicts(store.objects)
    scope, name, plan, logged = _tables(store, fingerprint)
    with ExitStack() as stack:
        served = open_served(settings, store.objects)
        if served is not None:
            stack.enter_context(served)
        answer = served.get(fingerprint, now) if served is not None else None
        name = route.name if route else answer.route if answer else name
        route = route or next((known for known in settings.routes if known.name == name), None)
        cache, reason = _outcome(served, verdicts, fingerprint, route, answer)
    return Explanation(
        cache,
        reason,
        WHY[reason],
        route=name,
        scope=scope,
        fingerprint=fingerprint.hex(),
        snapshot=served.version if served is not None else None,
        answer=_stored(answer, now) if answer else None,
        blocked=verdicts.blocked.get(fingerprint.hex()),
        approved=verdicts.approved.get(fingerprint.hex()),
        plan=plan,
        requests_logged=logged,
    )


def _outcome(
    served: AnswerStore | None, verdicts: Verdicts, fingerprint: bytes, route: Route | None, answer: Answer | None
) -> tuple[str, Bypass | NoStore | Reason | Withheld | None]:
    if route is not None and not route.enabled:
        return "bypass", Bypass.ROUTE_OFF
    if served is None:
        return "miss", NoStore.NO_SNAPSHOT
    if route is None:  # of a route that is gone, or never heard of: no request has this fingerprint now
        return "miss", Withheld.BLOCKED if fingerprint in verdicts.blocked_keys else Reason.NOT_BAKED
    withheld = verdicts.withhold(route, fingerprint, answer)
    if withheld is not None:
        return "miss", withheld
    return ("hit", None) if answer else ("miss", Reason.NOT_BAKED)


def _stored(answer: Answer, now: datetime) -> StoredAnswer:
    return StoredAnswer(
        answer.run_id,
        answer.model,
        answer.baked_at,
        answer.expires_at,
        int((now - answer.baked_at).total_seconds()),
        int((answer.expires_at - now).total_seconds()),
        answer.finish_reason,
        answer.prompt_tokens,
        answer.completion_tokens,
        answer_digest(answer),
        answer.message,
    )


def _tables(store: Store, fingerprint: bytes) -> tuple[str | None, str | None, Planned | None, int]:
    """Scope and route where the tables have them, the newest plan's row, and the requests of all mined days."""
    with duckdb.connect() as connection:
        connection.register("plan", store.plan.scan())
        connection.register("counts", store.daily_counts.scan())
        planned = connection.execute(_PLAN_SQL, [fingerprint]).fetchone()
        counted = connection.execute(_COUNTS_SQL, [fingerprint]).fetchone()
    scope, name, logged = counted or (None, None, 0)
    if planned is None:
        return scope, name, None, logged
    return planned[0], planned[1], Planned(*planned[2:]), logged


_PLAN_SQL: Final = """
    select scope, route, plan_id, decision, reason, requests, users, tenants from plan where fingerprint = ?
    order by day desc, plan_id desc limit 1
"""
_COUNTS_SQL: Final = """
    select any_value(scope), any_value(route), sum(requests)::bigint from counts where fingerprint = ?
    group by fingerprint
"""
