"""The night's page, from real tables."""

from __future__ import annotations

import struct

from prebake.settings import Plan, Prices, Settings
from storage.store import Store
from tasks.mine import mine
from tasks.plan import plan
from tasks.publish import collect
from tasks.report import NightPage, report
from tests.integration.tasks.conftest import DAY, NOW, Ask, Bake


def page(store: Store, settings: Settings, bake: Bake | None = None, **baked: object) -> NightPage:
    mine(store, settings)
    plan_id = plan(store, settings, DAY, now=NOW).plan_id
    while bake is not None and bake(plan_id, **baked):
        pass
    collect(store)
    return report(store, settings, plan_id, "run-1")


def test_the_page_says_what_was_mined_planned_baked_and_what_it_is_worth(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask("How do I return it?", ["ann", "bob", "cid"])
    ask("Who am I?")
    text = page(store, settings, bake).markdown
    assert text.startswith("# Night after 2026-03-10")
    assert "5 requests of the last day, 2 different ones" in text
    assert "2 candidates: bake 1, keep 0, skip 1" in text
    assert "1 answered, 0 cut off, 0 refused; 20 prompt and 512 completion tokens" in text
    assert "21 hits while the answers are good" in text
    assert "| skip | live: me | 1 | 2 |" in text
    assert "| How do I return it? | faq | 3 | 3 | 21.0 |" in text


def test_refusals_are_listed_with_their_reason(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    ask("How?")
    assert "| too long | 1 | How? |" in page(store, settings, bake, status="refused").markdown


def test_prompts_cannot_break_the_page(store: Store, settings: Settings, ask: Ask) -> None:
    ask("a | b\n# <script>alert(1)</script> " + "x" * 500)
    text = page(store, settings).markdown
    (row,) = [line for line in text.splitlines() if line.startswith("| a ")]
    assert row.replace("\\|", "").count("|") == 6
    assert "\\<script\\>" in row
    assert len(row) < 200


def test_a_model_without_a_price_is_named(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    unpriced = settings.model_copy(update={"prices": Prices()})
    assert "No price in `[prices.online]` for gpt" in page(store, unpriced).markdown


def test_the_table_has_a_row_for_each_decision_and_reason(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    ask("Why?")
    table = page(store, settings.model_copy(update={"plan": Plan(budget_answers=1)})).table
    assert [(row["decision"], row["reason"], row["candidates"]) for row in table] == [
        ("bake", "new", 1),
        ("skip", "budget", 1),
    ]


def test_the_picture_is_a_png_of_the_stated_size_even_for_an_empty_night(store: Store, settings: Settings) -> None:
    png = page(store, settings).png
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1280, 560)


def test_the_page_and_its_picture_are_kept_in_the_store(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    made = page(store, settings)
    kept = store.objects.read("reports/run-1.md").decode()
    assert kept.startswith(made.markdown)
    assert "(run-1.png)" in kept
    assert store.objects.read("reports/run-1.png") == made.png
