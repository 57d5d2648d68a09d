"""Bake: the plan's prompts become answers. In: a plan's shards, taken by lease. Out: parts that the ledger counts.

Prompts flow into the engine over the borders of shards, so that the batch never drains; answers are written beside
(``tasks/bake_parts.py``). A kill loses the seconds since the last flush, a polite stop not even the tokens of answers
that were not finished. Memory: the prompts in flight, one shard of plan rows, and a few flushes of answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson
import pyarrow.compute as pc

from capacity.notices import watch
from engine import Completion, Engine, Partial, Prompt, Status, open_engine
from prebake.answer import says_something
from prebake.errors import SettingsError
from prebake.progress import Progress, Silent
from prebake.routes import Route
from prebake.settings import Settings
from prebake.stop import Stop
from storage.store import Store
from tasks.bake_metrics import serve_metrics
from tasks.bake_parts import PartWriter, Shard, read_fingerprints, read_partials
from tasks.bake_pulse import PulseTaker
from tasks.purse import Purse

_WAIT_S: Final = 1.0
_LATER: Final = "later"
_CARRIED: Final = ("day", "plan_id", "fingerprint", "route", "scope", "prompt")


@dataclass(frozen=True)
class BakeReport:
    """What one bake did. ``seconds`` and ``gpu_usd`` include the engine's loading, ``tokens_per_s`` (completion) not.

    ``unpaid`` prompts were left because the budget could not pay their worst case, ``late`` ones because the answers
    had to be ready; ``resumed_tokens`` were generated before a stop and not again, ``restarted`` answers were, because
    to go on would not have been exact; ``engine_restarts``: times the engine died and was started anew.
    """

    answers: int = 0
    truncated: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    tokens_per_s: float = 0.0
    gpu_usd: float = 0.0
    shards: int = 0
    unpaid: int = 0
    late: int = 0
    resumed_tokens: int = 0
    restarted: int = 0
    engine_restarts: int = 0


def bake(
    store: Store,
    settings: Settings,
    plan_id: str,
    *,
    run_id: str,
    owner: str,
    engine: Engine | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> BakeReport:
    """Bake all of the plan that is not baked yet, together with any other worker that bakes it at the same time.

    Returns when the plan is done, by whomever, or when the budget is spent. ``engine``: one that is loaded already
    (it stays open); None: the settings' own, loaded only if there is anything to bake. Raises Interrupted when
    ``stop`` was requested, by a signal or by the cloud's notice: no prompt begins any more, those that run go on for as
    long as the stop allows, and what was finished is kept. Raises SettingsError, EngineError, StorageError too.
    """
    progress, stop = progress or Silent(), stop or Stop()
    capacity = settings.capacity
    with ExitStack() as stack:
        stack.enter_context(watch(stop, capacity.cloud, margin_s=capacity.margin_s, rebalance=capacity.rebalance))
        writer = stack.enter_context(PartWriter(store, settings.engine, plan_id, owner, stop))
        pulse = stack.enter_context(PulseTaker(store.ledger, settings, writer, stop, plan_id, run_id, owner))
        purse = stack.enter_context(Purse(store.ledger, settings, plan_id, run_id, owner, pulse.tally))
        stack.enter_context(serve_metrics(settings.engine, pulse.take))
        stack.enter_context(progress.watch(pulse.take))
        baking = _Baking(store, settings, plan_id, run_id, writer, purse, stop, pulse)
        return baking.run(lambda: engine or _opened(stack, settings, stop))


def _opened(stack: ExitStack, settings: Settings, stop: Stop) -> Engine:
    engine = open_engine(settings.engine, stop)
    stack.callback(engine.close)
    return engine


@dataclass(frozen=True)
class _Order:
    """One prompt on its way: the plan's row and what the engine is asked."""

    shard: Shard
    row: dict[str, Any]
    route: Route
    prompt: Prompt
    worst_s: float


class _Baking:
    """One bake while it runs."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        plan_id: str,
        run_id: str,
        writer: PartWriter,
        purse: Purse,
        stop: Stop,
        pulse: PulseTaker,
    ) -> None:
        self._store, self._settings = store, settings
        self._plan_id, self._run_id = plan_id, run_id
        self._writer, self._stop, self._pulse, self._tally = writer, stop, pulse, pulse.tally
        self._purse = purse
        self._orders: dict[bytes, _Order] = {}
        self._held: _Order | None = None
        self._baked_s = 0.0
        self._ask_again_s = 0.0

    def run(self, open_engine: Callable[[], Engine]) -> BakeReport:
        """Bake until the plan is done, the budget is spent or somebody asks to stop."""
        feed = self._feed()
        while not self._stop.requested and (order := next(feed, None)):
            if order != _LATER:
                self._held = order
                break
            self._stop.wait(_WAIT_S)
        if self._held is not None and self._purse.pays(self._held.worst_s):
            self._bake(open_engine(), feed)
        self._writer.close()
        self._stop.check()
        return self._report()

    def _bake(self, engine: Engine, feed: Iterator[_Order | Literal["later"]]) -> None:
        self._model = engine.model
        self._pulse.engine_ready(engine)
        started = time.monotonic()
        self._kept_s = started
        more = True
        try:
            while not self._stop.at_once and (more or engine.in_flight):
                more = self._fill(engine, feed)
                if not engine.in_flight and more:
                    self._stop.wait(_WAIT_S)  # others hold the last shards
                for completion in engine.step() if engine.in_flight else ():
                    self._finish(completion)
                self._keep_partials(engine)
                self._writer.check()
        finally:  # whatever went wrong: what there is can be gone on from
            if engine.in_flight:
                self._salvage(engine)
        self._baked_s = time.monotonic() - started

    def _fill(self, engine: Engine, feed: Iterator[_Order | Literal["later"]]) -> bool:
        """Top up the engine; returns whether there may be more to come."""
        while engine.in_flight < engine.capacity:
            if self._stop.requested:
                return False
            if time.monotonic() < self._ask_again_s:
                return True
            order = self._held or next(feed, None)
            if order is None:
                return False
            if order == _LATER:
                self._ask_again_s = time.monotonic() + _WAIT_S
                return True
            self._held = order
            if not self._purse.pays(order.worst_s):
                return False
            self._held = None
            self._admit(engine, order)
        return True

    def _admit(self, engine: Engine, order: _Order) -> None:
        if order.shard.lost:
            return
        again = order.prompt.key in self._orders  # its shard was lost and came back before the answer did
        self._orders[order.prompt.key] = order
        if not again:
            self._purse.promise(order.worst_s)
            engine.add(order.prompt)

    def _finish(self, completion: Completion) -> None:
        order = self._orders.pop(completion.key)
        self._purse.promise(-order.worst_s)
        completion = _unless_empty(completion)
        self._tally.count(completion)
        self._writer.put(order.shard, self._answer(order, completion))

    def _keep_partials(self, engine: Engine) -> None:
        """From time to time, if set so: stop all, keep what there is of each answer, and go on from there."""
        every_s = self._settings.engine.partials_s
        if not every_s or not engine.in_flight or time.monotonic() - self._kept_s < every_s:
            return
        for order, partial in self._salvage(engine):
            self._admit(engine, replace(order, prompt=replace(order.prompt, partial=partial)))
        self._writer.flush_partials()
        self._kept_s = time.monotonic()

    def _salvage(self, engine: Engine) -> list[tuple[_Order, Partial | None]]:
        """Stop all that is in flight; returns what is unfinished, with what there is of it."""
        unfinished = []
        for completion in engine.salvage():
            if completion.status is not Status.PARTIAL:
                self._finish(completion)
                continue
            order = self._orders.pop(completion.key)
            self._purse.promise(-order.worst_s)
            if completion.partial is not None and completion.partial.token_ids:
                self._writer.put_partial(order.shard, completion.key, completion.partial)
            unfinished.append((order, completion.partial))
        return unfinished

    def _answer(self, order: _Order, completion: Completion) -> dict[str, Any]:
        now = datetime.now(UTC)
        return {
            **{name: order.row[name] for name in _CARRIED},
            "run_id": self._run_id,
            "shard_id": order.shard.lease.shard_id,
            "status": completion.status.value,
            "finish_reason": completion.finish_reason,
            "message": None if completion.message is None else orjson.dumps(completion.message).decode(),
            "error": completion.error,
            "model": self._model,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "mean_logprob": completion.mean_logprob,
            "engine_s": completion.engine_s,
            "baked_at": now,
            "expires_at": now + order.route.ttl,
        }

    def _feed(self) -> Iterator[_Order | Literal["later"]]:
        """The prompts of the plan, shard after shard; 'later' while others hold the last ones, who may die."""
        plan = self._store.plan.scan()
        while (shard := self._writer.take()) or self._writer.others():
            if shard is None:
                yield _LATER
                continue
            wanted = (
                (pc.field("plan_id") == self._plan_id)
                & (pc.field("shard_id") == shard.lease.shard_id)
                & (pc.field("decision") == "bake")
            )
            columns = [*_CARRIED, "request", "position"]
            rows = plan.to_table(columns, wanted).sort_by("position")
            done = self._writer.patiently(read_fingerprints, self._store, shard.lease)
            shard.partials = self._writer.patiently(read_partials, self._store, self._plan_id, shard.lease.shard_id)
            left = [row for row in rows.to_pylist() if row["fingerprint"] not in done]
            self._writer.expect(shard, len(left))
            for row in left:
                yield self._order(shard, row, shard.partials.get(row["fingerprint"]))

    def _order(self, shard: Shard, row: dict[str, Any], partial: Partial | None) -> _Order:
        try:
            route = self._settings.route_table[row["route"]]
        except KeyError:
            raise SettingsError(
                f"plan {self._plan_id}: no route is called {row['route']!r} any more; plan again with these settings"
            ) from None
        night = route.night
        max_tokens = orjson.loads(row["request"])["params"].get("max_tokens", night.max_tokens)
        prompt = Prompt(row["fingerprint"], row["request"], night.max_tokens, night.temperature, partial)
        return _Order(shard, row, route, prompt, self._purse.worst_s(row["request"].encode(), max_tokens))

    def _report(self) -> BakeReport:
        left, tally = self._pulse.ask(), self._tally
        return BakeReport(
            answers=tally.answered,
            truncated=tally.truncated,
            refused=tally.refused,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            seconds=round(self._purse.spent_s, 3),
            tokens_per_s=round(tally.completion_tokens / self._baked_s, 1) if self._baked_s else 0.0,
            gpu_usd=self._purse.usd(),
            shards=self._writer.finished,
            unpaid=left.answers - left.rows if self._held is not None else 0,
            resumed_tokens=tally.resumed_tokens,
            restarted=tally.restarted,
            engine_restarts=self._pulse.engine_restarts,
        )


def _unless_empty(completion: Completion) -> Completion:
    """The completion, refused where it says nothing: an empty answer must never be given to anybody."""
    if completion.message is None or says_something(completion.message):
        return completion
    return replace(completion, status=Status.REFUSED, message=None, error="the model said nothing")
