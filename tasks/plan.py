"""Plan: what the night will bake. In: the daily counts of a window, and the answers there are. Out: the plan table, one
row with a decision and its reason for each candidate, and the shards of what is to be baked in the ledger.

Memory: DuckDB's limit (``mine.memory_gb``) for counts and texts, some 600 bytes of Python per candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from hashlib import sha256
from itertools import count
from typing import Any, Final

import duckdb
import orjson
import pyarrow as pa

from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from prebake.tables import SKETCH_SIZE
from storage.scratch import open_scratch
from storage.store import Store
from tasks.decide import Candidate, Verdict, choose, judge, recency_weights
from tasks.mine import local_files
from tasks.order import order, prefix_key, shared_blocks
from tasks.publish import blocked_keys, collect

_BATCH: Final = 10_000
_MAX_NUM_SEQS: Final = 256  # vLLM's own default on most machines


@dataclass(frozen=True)
class Decided:
    """How many candidates got this decision for this reason."""

    decision: str
    reason: str
    candidates: int


@dataclass(frozen=True)
class PlanReport:
    """What was planned; hits, dollars and GPU seconds are of what is to be baked.

    ``one_offs``: fingerprints asked too rarely to be candidates, which have no row in the plan. ``continued``: the
    plan was made by an earlier call and is not finished.
    """

    plan_id: str
    day: date
    continued: bool
    decided: tuple[Decided, ...]
    one_offs: int
    answers: int
    shards: int
    expected_hits: float
    value_usd: float
    cost_usd: float
    gpu_s: float


def plan(
    store: Store,
    settings: Settings,
    day: date,
    *,
    now: datetime,
    routes: Sequence[str] | None = None,
    redo: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PlanReport:
    """Decide what to bake from the window that ends with ``day``; answers are judged as of ``now`` (UTC).

    A plan of the same day, routes, ``redo`` and settings that is not all baked is gone on with: so a night that was
    killed bakes nothing twice and stays within its budget. Once it is baked, the next call makes a new plan.
    ``routes``: bake for these alone; ``redo``: bake again what is fresh. Raises StorageError where a table or the
    ledger refuse, Interrupted when ``stop`` was requested: then there is no plan yet.
    """
    progress, stop = progress or Silent(), stop or Stop()
    unpublished = collect(store, progress=progress, stop=stop)[0] > 0
    plan_id, continued = _find_plan(store, settings, day, routes, redo=redo, unpublished=unpublished)
    with open_scratch(settings) as connection:
        one_offs = _merge(connection, store, settings, day)
        if not continued:
            _fetch_texts(connection, store, progress, stop)
            verdicts = _decide(connection, store, settings, now, routes, redo, progress, stop)
            stop.check()
            _write(connection, store, settings, day, plan_id, verdicts)
        connection.register("plan", store.plan.scan())
        shards = connection.execute(_SHARDS_SQL, {"plan_id": plan_id}).fetchall()
        store.ledger.add_shards(plan_id, dict(shards))
        decided = [Decided(*row) for row in connection.execute(_DECIDED_SQL, {"plan_id": plan_id}).fetchall()]
        totals = connection.execute(_TOTALS_SQL, {"plan_id": plan_id}).fetchall()[0]
    return PlanReport(plan_id, day, continued, tuple(decided), one_offs, totals[0], len(shards), *totals[1:])


_SHARDS_SQL: Final = """
    select shard_id, count(*) from plan where plan_id = $plan_id and decision = 'bake' group by shard_id
"""
_DECIDED_SQL: Final = """
    select decision, reason, count(*) as candidates from plan where plan_id = $plan_id
    group by all order by decision, candidates desc, reason
"""
_TOTALS_SQL: Final = """
    select count(*), coalesce(sum(expected_hits), 0), coalesce(sum(value_usd), 0), coalesce(sum(cost_usd), 0),
        coalesce(sum(gpu_s), 0)
    from plan where plan_id = $plan_id and decision = 'bake'
"""


def _find_plan(
    store: Store, settings: Settings, day: date, routes: Sequence[str] | None, *, redo: bool, unpublished: bool
) -> tuple[str, bool]:
    """The id of the plan to make, or to go on with (True).

    The id is the day, a digest of what was asked for, and the number of the attempt. The counts are no part of it: late
    rows must not turn a half-baked night into a second one.
    """
    asked = {
        "routes": sorted(routes or ()),
        "redo": redo,
        "settings": settings.model_dump(mode="json", include={"mine", "screen", "plan", "prices", "routes", "aliases"}),
        "model": settings.engine.model,
    }
    digest = sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]
    made = _plans(store, day)
    for attempt in count(1):
        plan_id = f"{day.isoformat()}-{digest}-{attempt}"
        if plan_id not in made:
            return plan_id, False
        if f"{day.isoformat()}-{digest}-{attempt + 1}" in made:
            continue
        state = store.ledger.progress(plan_id)
        if made[plan_id] > state.answers_done or (redo and unpublished):
            return plan_id, True
    raise AssertionError("unreachable")


def _plans(store: Store, day: date) -> dict[str, int]:
    """The day's plans and how many answers each wanted."""
    with duckdb.connect() as connection:
        connection.register("plan", store.plan.scan())
        rows = connection.execute(
            "select plan_id, count(*) filter (decision = 'bake') from plan where day = $day group by plan_id",
            {"day": day},
        ).fetchall()
    return dict(rows)


def _merge(connection: duckdb.DuckDBPyConnection, store: Store, settings: Settings, day: date) -> int:
    """Make the table ``often``, of those who may become candidates; returns how many fingerprints may not."""
    first = day - timedelta(days=settings.mine.window_days - 1)
    days = [counted for counted in store.daily_counts.days() if first <= counted <= day]
    weights = recency_weights(days, day)
    connection.register("counts", store.daily_counts.scan())
    connection.register(
        "weights",
        pa.table({"day": pa.array(weights, pa.date32()), "weight": pa.array(weights.values(), pa.float64())}),
    )
    least = min([2, *(route.min_count for route in settings.routes)])
    window = {"first": first, "last": day, "least": least}
    connection.execute(_OFTEN_SQL, window | {"all_weights": sum(weights.values()) or 1.0})
    (one_offs,) = connection.execute(_ONE_OFFS_SQL, window).fetchall()[0]
    return int(one_offs)


_OFTEN_SQL: Final = f"""
    create or replace temp table often as
    with recent as (
        select * from counts where day between $first and $last
    ), summed as (
        select
            fingerprint, sum(requests)::bigint as requests, sum(requests * weight) / $all_weights as daily_rate,
            sum(prompt_tokens) / nullif(sum(counted), 0) as prompt_tokens,
            sum(completion_tokens) / nullif(sum(counted), 0) as completion_tokens,
            max(day) as day, arg_max(first_seen, day) as first_seen
        from recent join weights using (day) group by fingerprint having sum(requests) >= $least
    ), people as (
        select
            fingerprint,
            least({SKETCH_SIZE}, len(list_distinct(flatten(list(user_sketch))))) as users,
            least({SKETCH_SIZE}, len(list_distinct(flatten(list(tenant_sketch))))) as tenants
        from recent semi join summed using (fingerprint) group by fingerprint
    )
    select summed.*, people.* exclude (fingerprint), recent.route, recent.scope, recent.turns
    from summed join people using (fingerprint) join recent using (fingerprint, day)
"""
_ONE_OFFS_SQL: Final = """
    select count(*) from (
        select fingerprint from counts where day between $first and $last
        group by fingerprint having sum(requests) < $least
    )
"""


def _fetch_texts(connection: duckdb.DuckDBPyConnection, store: Store, progress: Progress, stop: Stop) -> None:
    """Make the table ``candidate``: ``often`` with the text of each, as it was first asked on its newest day.

    What the log no longer holds is no candidate: there is nothing to ask the model.
    """
    connection.execute("create or replace temp table sample (fingerprint blob, request varchar, prompt varchar)")
    days = connection.execute("select distinct day from often order by day").fetchall()
    with progress.track("texts", len(days)) as advance:
        for (day,) in days:
            stop.check()
            with local_files(store, store.query_log, day) as files:
                if files:
                    connection.execute(_SAMPLE_SQL, {"files": list(map(str, files)), "day": day})
            advance(1)
    connection.execute(_CANDIDATE_SQL)


# Who asked in the same microsecond may have written it otherwise: the smallest text of them is always the same.
_SAMPLE_SQL: Final = """
    insert into sample
    select fingerprint, text.request, text.prompt from (
        select fingerprint, min({'request': log.request, 'prompt': log.prompt}) as text
        from read_parquet($files, hive_partitioning = false) as log
        join (select fingerprint, first_seen as ts from often where day = $day) using (fingerprint, ts)
        where log.bypass is null group by fingerprint
    )
"""
_CANDIDATE_SQL: Final = """
    create or replace temp table candidate as
    select row_number() over (order by fingerprint) as number, often.* exclude (day, first_seen), request, prompt
    from often join sample using (fingerprint)
"""


def _decide(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    settings: Settings,
    now: datetime,
    routes: Sequence[str] | None,
    redo: bool,
    progress: Progress,
    stop: Stop,
) -> list[Verdict]:
    """A verdict for each candidate, by its number."""
    (total,) = connection.execute("select count(*) from candidate").fetchall()[0]
    verdicts: list[Verdict] = []
    with progress.track("plan", total) as advance:
        for candidates in _candidates(connection, store, settings):
            stop.check()
            verdicts += [judge(candidate, settings, now=now, routes=routes, redo=redo) for candidate in candidates]
            advance(len(candidates))
    worthy = [number for number, verdict in enumerate(verdicts) if verdict.decision == "bake"]
    bought = choose([verdicts[number] for number in worthy], settings.plan)
    for number, yes in zip(worthy, bought, strict=True):
        if not yes:
            verdicts[number] = replace(verdicts[number], decision="skip", reason="budget")
    return verdicts


def _candidates(connection: duckdb.DuckDBPyConnection, store: Store, settings: Settings) -> Iterator[list[Candidate]]:
    known = {route.name: route for route in settings.routes}
    connection.register("answers", store.answers.scan())
    connection.register("blocked", blocked_keys(store.objects))
    truncated = [route.name for route in settings.routes if route.serve_truncated]
    reader = connection.sql(_PAST_SQL, params={"truncated": truncated}).to_arrow_reader(_BATCH)
    for batch in reader:
        rows: list[dict[str, Any]] = batch.to_pylist()
        yield [Candidate(known.get(row.pop("route")), **row) for row in rows]


_PAST_SQL: Final = """
    with past as (
        select
            fingerprint, arg_max(status, baked_at) as past_status, arg_max(model, baked_at) as past_model,
            arg_max(completion_tokens, baked_at) as past_completion_tokens,
            max(expires_at) filter (
                status = 'answered' or (status = 'truncated' and list_contains($truncated, route))
            ) as good_until
        from answers semi join candidate using (fingerprint) group by fingerprint
    )
    select
        route, requests, users, tenants, turns, daily_rate, prompt_tokens, completion_tokens, request,
        fingerprint in (from blocked) as blocked, past_status, past_model, past_completion_tokens, good_until
    from candidate left join past using (fingerprint) order by number
"""


def _write(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    settings: Settings,
    day: date,
    plan_id: str,
    verdicts: list[Verdict],
) -> None:
    """Add the plan's rows in one commit, those to bake in shards, in the order in which they are asked."""
    columns = {name: [getattr(verdict, name) for verdict in verdicts] for name in Verdict.__slots__}
    connection.register("verdict", pa.table({"number": pa.array(range(1, len(verdicts) + 1), pa.int64()), **columns}))
    if verdicts:
        connection.register("place", _places(connection, settings))
        shard = {"day": day, "plan_id": plan_id, "size": settings.plan.shard_size}
        store.plan.append(connection.sql(_PLAN_SQL, params=shard).to_arrow_reader(_BATCH), once=f"plan/{plan_id}")


def _places(connection: duckdb.DuckDBPyConnection, settings: Settings) -> pa.Table:
    """The place in the night, from 0, of each candidate that is baked. DuckDB sorts the texts, on disk if need be."""
    connection.create_function("prefix_key", prefix_key, ["varchar"], "varchar")
    numbers, shared, tokens = list[int](), list[int](), list[float]()
    before = ""
    for batch in connection.sql(_SORTED_SQL).to_arrow_reader(_BATCH):
        numbers += batch["number"].to_pylist()
        tokens += batch["completion_tokens"].to_pylist()
        for key in batch["key"].to_pylist():
            shared.append(shared_blocks(before, key))
            before = key
    found = order(shared, tokens, _at_once(settings))
    return pa.table(
        {
            "number": pa.array((numbers[i] for i in found), pa.int64()),
            "place": pa.array(range(len(found)), pa.int64()),
        }
    )


def _at_once(settings: Settings) -> int:
    """Answers that all machines together work on at once, as far as the settings say."""
    return int(settings.engine.args.get("max_num_seqs", _MAX_NUM_SEQS)) * settings.capacity.max_machines


_SORTED_SQL: Final = """
    select number, verdict.completion_tokens, prefix_key(request) as key
    from candidate join verdict using (number) where decision = 'bake' order by key, number
"""
# Sorted, so that a worker who asks for a shard reads the few row groups that have it and not the whole plan.
_PLAN_SQL: Final = """
    select
        $day as day, $plan_id as plan_id, fingerprint, route, scope, request, prompt, requests, users, tenants,
        expected_hits, value_usd, cost_usd, gpu_s, decision, reason,
        (place // $size)::int as shard_id, (place % $size)::int as position
    from candidate join verdict using (number) left join place using (number)
    order by place nulls last
"""
