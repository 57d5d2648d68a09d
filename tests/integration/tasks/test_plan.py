"""Planning on real tables and a real ledger: from counts and earlier answers to shards."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from prebake.errors import Interrupted
from prebake.prices import TokenPrice
from prebake.routes import Route
from prebake.settings import Plan, Settings
from prebake.stop import Stop
from storage.store import Store
from storage.verdicts import block
from tasks.mine import mine
from tasks.plan import PlanReport, plan
from tasks.publish import collect
from tests.integration.tasks.conftest import DAY, NOW, Ask, Bake


def rows(store: Store, plan_id: str) -> dict[str, dict[str, object]]:
    found = store.plan.scan().to_table().to_pylist()
    return {row["prompt"]: row for row in found if row["plan_id"] == plan_id}


def verdicts(store: Store, report: PlanReport) -> dict[str, tuple[str, str]]:
    return {prompt: (row["decision"], row["reason"]) for prompt, row in rows(store, report.plan_id).items()}


def make(store: Store, settings: Settings, **options: object) -> PlanReport:
    mine(store, settings)
    return plan(store, settings, DAY, **({"now": NOW} | options))


def with_plan(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"plan": Plan(**values)})


def with_route(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(
        update={"routes": (Route(**({"name": "faq", "scope": "shared", "fold": "text"} | values)),)}
    )


def test_each_candidate_gets_a_decision_and_its_reason(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How do I return it?")
    ask("Only I ask this", ["ann", "ann"])
    ask("Mail me at ann@example.org", ["ann", "bob"])
    ask("What is the weather like?", ["ann", "bob"])
    ask("And then?", before=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    ask("Call it", tools=[{"type": "function", "function": {"name": "f"}}])
    ask("Nobody asks again", ["ann"])

    report = make(store, settings)

    assert verdicts(store, report) == {
        "How do I return it?": ("bake", "new"),
        "Only I ask this": ("skip", "below min_users"),
        "Mail me at ann@example.org": ("skip", "personal: e-mail address"),
        "What is the weather like?": ("skip", "live: weather"),
        "And then?": ("skip", "conversation"),
        "Call it": ("skip", "tools"),
    }
    assert (report.one_offs, report.answers, report.shards) == (1, 1, 1)
    assert {(d.decision, d.reason): d.candidates for d in report.decided}["bake", "new"] == 1


def test_days_merge_into_one_candidate_and_users_are_counted_once(store: Store, settings: Settings, ask: Ask) -> None:
    for back in range(3):
        ask("How?", ["ann", "bob"], day=DAY - timedelta(days=back), tenant=f"tenant {back}")
    ask("Long ago?", ["ann", "bob"], day=DAY - timedelta(days=settings.mine.window_days))
    ask("Tomorrow's log?", ["ann", "bob"], day=DAY + timedelta(days=1))

    report = make(store, settings)

    row = rows(store, report.plan_id)["How?"]
    assert (row["requests"], row["users"], row["tenants"]) == (6, 2, 3)
    assert rows(store, report.plan_id).keys() == {"How?"}


def test_a_shared_prompt_is_baked_once_users_of_enough_tenants_have_asked_on_whatever_days(
    store: Store, settings: Settings, ask: Ask
) -> None:
    settings = with_route(settings, min_tenants=2)
    ask("One tenant's secret?", [f"user {number}" for number in range(9)], tenant="a")
    ask("Everybody's?", ["ann", "bob"], tenant="a")
    ask("Everybody's?", ["cat"], tenant="b", day=DAY - timedelta(days=1))
    ask("Nobody says who", ["ann", "bob"], tenant=None)
    assert verdicts(store, make(store, settings)) == {
        "One tenant's secret?": ("skip", "below min_tenants"),
        "Everybody's?": ("bake", "new"),
        "Nobody says who": ("skip", "below min_tenants"),
    }


def test_the_text_is_request_and_prompt_of_one_row_the_first_of_the_newest_day(
    store: Store, settings: Settings, ask: Ask
) -> None:
    ask("Zebra", day=DAY - timedelta(days=1))
    ask("ZEBRA", ["ann"], at_s=60)
    ask("zebra?", ["bob"], at_s=30)
    ask("zebra!", ["cid"], at_s=30)

    planned = rows(store, make(store, settings).plan_id)

    assert planned.keys() == {"zebra!"}
    assert '"content":"zebra!"' in str(planned["zebra!"]["request"])


def test_what_has_left_the_log_since_it_was_counted_is_no_candidate(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    mine(store, settings)
    store.query_log.replace_days(store.query_log.scan().schema.empty_table(), [DAY])
    report = plan(store, settings, DAY, now=NOW)
    assert (report.decided, report.answers) == ((), 0)


def test_value_is_what_the_online_model_would_cost_and_cost_is_what_the_night_does(
    store: Store, settings: Settings, ask: Ask
) -> None:
    ask("How?", ["ann", "bob", "cid"], tokens=(1000, 100))
    row = rows(store, make(store, settings).plan_id)["How?"]
    assert row["expected_hits"] == pytest.approx(3 * 7)  # three a day for the seven days it lives
    assert row["value_usd"] == pytest.approx(21 * (1000 * 1 + 100 * 4) / 1e6)
    gpu = settings.prices.gpu
    assert row["gpu_s"] == pytest.approx(gpu.seconds(1000, 100))
    assert row["cost_usd"] == pytest.approx(gpu.usd(row["gpu_s"]))


def test_what_costs_more_at_night_than_it_saves_is_not_baked(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    cheap = {"*": TokenPrice(input_usd_per_million=1e-6, output_usd_per_million=1e-6)}
    settings = settings.model_copy(update={"prices": settings.prices.model_copy(update={"online": cheap})})
    assert verdicts(store, make(store, settings)) == {"How?": ("skip", "not worth it")}


@pytest.mark.parametrize("budget", ["budget_usd", "budget_gpu_s", "budget_answers"])
def test_a_budget_of_nothing_bakes_nothing_and_says_so(store: Store, settings: Settings, ask: Ask, budget: str) -> None:
    ask("How?")
    report = make(store, with_plan(settings, **{budget: 0}))
    assert verdicts(store, report) == {"How?": ("skip", "budget")}
    assert store.ledger.progress(report.plan_id).shards == 0


def test_the_budget_goes_to_what_is_asked_most(store: Store, settings: Settings, ask: Ask) -> None:
    for number in range(6):
        ask(f"Question {number}?", [f"user {n}" for n in range(2 + number)])
    report = make(store, with_plan(settings, budget_answers=2))
    baked = {prompt for prompt, (decision, _) in verdicts(store, report).items() if decision == "bake"}
    assert baked == {"Question 4?", "Question 5?"}


def in_order(store: Store) -> list[dict[str, object]]:
    found = [row for row in store.plan.scan().to_table().to_pylist() if row["decision"] == "bake"]
    return sorted(found, key=lambda row: (row["shard_id"], row["position"]))


def test_shards_hold_neighbours_and_are_known_to_the_ledger(store: Store, settings: Settings, ask: Ask) -> None:
    for number in range(5):
        for system in ("You sell shoes. ", "You sell hats. "):
            ask(f"Question {number}?", before=[{"role": "system", "content": system * 10}])
    report = make(store, with_plan(settings, shard_size=4))

    planned = in_order(store)
    systems = ["shoes" in str(row["request"]) for row in planned]
    assert systems in (sorted(systems), sorted(systems, reverse=True))
    assert [(row["shard_id"], row["position"]) for row in planned] == [(n // 4, n % 4) for n in range(10)]
    progress = store.ledger.progress(report.plan_id)
    assert (progress.shards, progress.answers) == (3, 10)


def test_the_longest_answers_of_a_small_night_are_asked_first_within_their_prefix(
    store: Store, settings: Settings, ask: Ask
) -> None:
    for number, tokens in enumerate((40, 300, 5)):
        ask(f"Question {number}?", tokens=(20, tokens))
        ask(f"Question {number}?", tokens=(20, 2 * tokens), before=[{"role": "system", "content": "Be kind. " * 20}])
    make(store, settings)
    asked = [("kind" in str(row["request"]), row["prompt"]) for row in in_order(store)]
    assert asked == [
        (True, "Question 1?"),
        (True, "Question 0?"),
        (True, "Question 2?"),
        (False, "Question 1?"),
        (False, "Question 0?"),
        (False, "Question 2?"),
    ]


def test_the_rows_of_a_shard_lie_together_so_that_a_worker_need_not_read_the_whole_plan(
    store: Store, settings: Settings, ask: Ask
) -> None:
    for number in range(9):
        ask(f"Question {number}?", tokens=(20, 5 + 7 * number % 9))
    make(store, with_plan(settings, shard_size=2))
    places = [(row["shard_id"], row["position"]) for row in store.plan.scan().to_table().to_pylist()]
    assert places == sorted(places)


def test_a_fresh_answer_is_kept_and_one_that_expires_before_the_next_night_is_baked_anew(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    settings = with_plan(settings, shard_size=1)
    ask("Long lived?")
    ask("Short lived?")
    first = make(store, settings)
    bake(first.plan_id)
    bake(first.plan_id, good_for=timedelta(hours=30))
    assert verdicts(store, make(store, settings)) == {
        "Long lived?": ("keep", "fresh"),
        "Short lived?": ("bake", "expires"),
    }


def test_a_short_time_to_live_does_not_bake_twice_in_one_night(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    settings = with_route(settings, ttl=timedelta(hours=20))
    ask("How?")
    bake(make(store, settings).plan_id, good_for=timedelta(hours=20))
    assert verdicts(store, make(store, settings, now=NOW + timedelta(hours=1))) == {"How?": ("keep", "fresh")}
    assert verdicts(store, make(store, settings, now=NOW + timedelta(hours=24))) == {"How?": ("bake", "expires")}


def test_what_a_person_has_blocked_is_not_baked_again_even_when_all_is(
    store: Store, settings: Settings, ask: Ask
) -> None:
    ask("How?")
    wrong = ask("Wrong?")
    block(store.objects, [wrong], now=NOW)
    for redo in (False, True):
        assert verdicts(store, make(store, settings, redo=redo)) == {
            "How?": ("bake", "new"),
            "Wrong?": ("skip", "blocked"),
        }


def test_redo_bakes_what_is_fresh_again_once_for_each_time_it_is_asked(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask("How?")
    bake(make(store, settings).plan_id)
    plans = set()
    for _ in range(2):
        report = make(store, settings, redo=True)
        assert verdicts(store, report)["How?"][0] == "bake"
        plans.add(report.plan_id)
        assert len(bake(report.plan_id)) == 1
        collect(store)  # as publish does
    assert len(plans) == 2


@pytest.mark.parametrize(("status", "reason"), [("refused", "refused before"), ("truncated", "cut off before")])
def test_what_failed_before_with_the_same_model_is_not_tried_again_until_the_model_changes(
    store: Store, settings: Settings, ask: Ask, bake: Bake, status: str, reason: str
) -> None:
    ask("How?")
    engine = settings.engine.model_copy(update={"model": "small"})
    settings = settings.model_copy(update={"engine": engine})
    bake(make(store, settings).plan_id, status=status, model="small")
    assert verdicts(store, make(store, settings)) == {"How?": ("skip", reason)}
    larger = settings.model_copy(update={"engine": engine.model_copy(update={"model": "large"})})
    assert verdicts(store, make(store, larger)) == {"How?": ("bake", "new")}


def test_an_answer_cut_off_is_tried_again_when_the_route_allows_longer_ones(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask("How?")
    bake(make(store, settings).plan_id, status="truncated")
    longer = with_route(settings, night={"max_tokens": 1024})
    assert verdicts(store, make(store, longer)) == {"How?": ("bake", "new")}


def test_routes_that_were_not_chosen_or_are_off_are_skipped_with_that_reason(
    store: Store, settings: Settings, ask: Ask
) -> None:
    ask("How?")
    assert verdicts(store, make(store, settings, routes=["other"])) == {"How?": ("skip", "route not chosen")}
    assert verdicts(store, make(store, with_route(settings, enabled=False))) == {"How?": ("skip", "route off")}
    assert verdicts(store, make(store, with_route(settings, name="renamed"))) == {"How?": ("skip", "route off")}


def test_a_night_that_was_killed_goes_on_with_its_plan_even_when_late_rows_came(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    settings = with_plan(settings, shard_size=1, budget_answers=2)
    for number in range(4):
        ask(f"Question {number}?")
    first = make(store, settings)
    baked = bake(first.plan_id)
    ask("A late one?", ["ann", "bob", "cid"])

    second = make(store, settings, now=NOW + timedelta(minutes=10))

    assert replace(second, continued=False, one_offs=first.one_offs) == first
    assert second.continued
    assert not set(bake(second.plan_id)) & set(baked)
    assert bake(second.plan_id) == []
    third = make(store, settings)
    assert third.plan_id != first.plan_id
    assert [row["decision"] for row in rows(store, third.plan_id).values()].count("keep") == 2


def test_shards_the_ledger_never_heard_of_are_told_on_the_next_call(
    store: Store, settings: Settings, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("How?")
    with monkeypatch.context() as patched:
        patched.setattr(type(store.ledger), "add_shards", _die)
        with pytest.raises(KeyboardInterrupt):
            make(store, settings)
    assert make(store, settings).continued
    assert sum(1 for _ in store.plan.scan().to_table().to_pylist()) == 1
    assert store.ledger.take_shard(make(store, settings).plan_id, "test", 60) is not None


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_empty_log_makes_a_plan_of_nothing(store: Store, settings: Settings) -> None:
    report = make(store, settings)
    assert (report.decided, report.answers, report.shards) == ((), 0, 0)


def test_a_stop_leaves_no_plan(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    mine(store, settings)
    stop = Stop()
    stop.request("SIGTERM")
    with pytest.raises(Interrupted):
        plan(store, settings, DAY, now=NOW, stop=stop)
    assert store.plan.version() is None
