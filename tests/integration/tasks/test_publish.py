"""Publishing real parts into a real answers table and a real LMDB snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from prebake.answer import Answer
from prebake.errors import Interrupted, StorageError
from prebake.lookup import AnswerStore
from prebake.progress import Advance, Silent
from prebake.routes import Route
from prebake.settings import Plan, Settings
from prebake.stop import Stop
from prebake.verdicts import answer_digest
from storage.store import Store
from storage.verdicts import approve, block, read_verdicts, unblock
from tasks.mine import mine
from tasks.plan import plan
from tasks.publish import PublishReport, publish, servable
from tests.integration.tasks.conftest import DAY, NOW, Ask, Bake


def planned(store: Store, settings: Settings, **options: object) -> str:
    mine(store, settings)
    return plan(store, settings, DAY, now=NOW, **options).plan_id


def published(store: Store, settings: Settings, after: timedelta = timedelta(hours=1)) -> PublishReport:
    return publish(store, settings, run_id="run", now=NOW + after)


def served(store: Store) -> Iterator[AnswerStore]:
    return AnswerStore.open(Path(store.objects.local_path("snapshots")))


def with_route(settings: Settings, **values: object) -> Settings:
    route = Route(**({"name": "faq", "scope": "shared", "fold": "text"} | values))
    return settings.model_copy(update={"routes": (route,)})


def test_what_was_baked_is_served_and_stands_in_the_answers_table(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    key = ask("How?")
    bake(planned(store, settings))
    report = published(store, settings)
    assert (report.parts, report.rows, report.answers) == (1, 1, 1)
    with served(store) as answers:
        answer = answers.get(key, NOW)
        assert answer is not None
        assert answer.message == {"role": "assistant", "content": "so: How?"}
        assert answers.version == report.snapshot
    assert store.answers.scan().count_rows() == 1


def test_what_is_blocked_is_in_no_snapshot_until_it_is_unblocked(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    key = ask("How?")
    bake(planned(store, settings))
    block(store.objects, [key], now=NOW)
    assert published(store, settings).answers == 0
    unblock(store.objects, [key])
    assert published(store, settings).answers == 1


def test_an_approval_is_forgotten_when_no_snapshot_can_serve_its_answer_any_more(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    key, never = ask("How?"), bytes(16)
    bake(planned(store, settings))
    published(store, settings)
    with served(store) as answers:
        first = answer_digest(answers.get(key, NOW))
    approve(store.objects, {key: first, never: first}, now=NOW)
    bake(planned(store, settings, redo=True), text="else", baked_at=NOW + timedelta(hours=2))
    published(store, settings, timedelta(hours=3))
    with served(store) as answers:
        second = answer_digest(answers.get(key, NOW))
    # The first answer is replaced, but a rollback would serve it; what was never answered is gone.
    assert second != first
    assert {name: each.answer for name, each in read_verdicts(store.objects).approved.items()} == {key.hex(): first}
    published(store, settings, timedelta(days=7, minutes=1))  # the first has expired, the second has not
    assert not read_verdicts(store.objects).approved
    approve(store.objects, {key: second}, now=NOW)
    published(store, settings, timedelta(days=7, minutes=2))
    assert read_verdicts(store.objects).approved[key.hex()].answer == second


def test_publishing_twice_adds_nothing_twice(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    ask("How?")
    bake(planned(store, settings))
    published(store, settings)
    again = published(store, settings)
    assert (again.parts, again.rows, again.answers) == (0, 0, 1)
    assert store.answers.scan().count_rows() == 1


def test_parts_of_a_night_that_is_not_finished_are_served_already(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    settings = settings.model_copy(update={"plan": Plan(shard_size=1)})
    ask("One?")
    ask("Two?")
    bake(planned(store, settings), finish=False)
    assert published(store, settings).answers == 1


def test_the_newest_answer_of_a_fingerprint_is_served(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    key = ask("How?")
    bake(planned(store, settings), text="old")
    published(store, settings)
    bake(planned(store, settings, redo=True), text="new", baked_at=NOW + timedelta(minutes=5))
    published(store, settings)
    with served(store) as answers:
        assert answers.get(key, NOW).message["content"] == "new: How?"


@pytest.mark.parametrize("status", ["refused", "truncated"])
def test_an_answer_that_failed_does_not_push_out_an_older_good_one(
    store: Store, settings: Settings, ask: Ask, bake: Bake, status: str
) -> None:
    key = ask("How?")
    bake(planned(store, settings), text="old")
    bake(planned(store, settings, redo=True), status=status, baked_at=NOW + timedelta(minutes=5))
    published(store, settings)
    with served(store) as answers:
        assert answers.get(key, NOW).message["content"] == "old: How?"


def test_answers_cut_off_by_the_length_limit_are_served_only_where_the_route_says_so(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask("How?")
    bake(planned(store, settings), status="truncated")
    assert published(store, settings).answers == 0
    assert published(store, with_route(settings, serve_truncated=True)).answers == 1


def test_refused_prompts_and_expired_answers_are_not_served(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    settings = settings.model_copy(update={"plan": Plan(shard_size=1)})
    ask("One?")
    ask("Two?")
    plan_id = planned(store, settings)
    bake(plan_id, status="refused")
    bake(plan_id, good_for=timedelta(minutes=30))
    assert published(store, settings, timedelta(minutes=29)).answers == 1
    assert published(store, settings, timedelta(minutes=31)).answers == 0


def test_answers_of_a_route_that_is_off_or_gone_are_not_served(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask("How?")
    bake(planned(store, settings))
    assert published(store, with_route(settings, enabled=False)).answers == 0
    assert published(store, with_route(settings, name="renamed")).answers == 0


def test_a_damaged_part_stops_the_publish_and_what_was_served_stays(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    key = ask("How?")
    bake(planned(store, settings))
    before = published(store, settings)
    plan_id = planned(store, settings, redo=True)
    bake(plan_id, text="new")
    (part,) = store.ledger.parts(plan_id)
    store.objects.write(part.key, store.objects.read(part.key)[:-9])
    with pytest.raises(StorageError, match="the part is damaged"):
        published(store, settings)
    with served(store) as answers:
        assert answers.version == before.snapshot
        assert answers.get(key, NOW) is not None


class StopsAtThird(Silent):
    """Asks to stop when the third answer is on its way into the snapshot."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.passed = 0

    @contextmanager
    def track(self, what: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's signature
        yield self.advance if what == "publish" else lambda _units: None

    def advance(self, units: int) -> None:
        self.passed += units
        if self.passed == 3:
            self.stop.request("SIGTERM")


def test_a_stop_while_the_snapshot_is_built_leaves_the_one_before_and_the_next_publish_goes_on(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    before = published(store, settings)
    for number in range(20):
        ask(f"Question {number}?")
    bake(planned(store, settings))
    stop = Stop()
    progress = StopsAtThird(stop)
    with pytest.raises(Interrupted):
        publish(store, settings, run_id="run", now=NOW, progress=progress, stop=stop)
    assert progress.passed == 3
    with served(store) as answers:
        assert answers.version == before.snapshot
    assert published(store, settings).answers == 20


def test_servable_answers_come_in_the_order_of_their_fingerprints(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    for number in range(20):
        ask(f"Question {number}?")
    bake(planned(store, settings))
    published(store, settings)
    keys = [answer.fingerprint for answer in servable(store, settings, NOW) if isinstance(answer, Answer)]
    assert len(keys) == 20
    assert keys == sorted(keys)


def test_a_store_without_answers_publishes_an_empty_snapshot(store: Store, settings: Settings) -> None:
    assert published(store, settings).answers == 0
