"""Publishing what near misses are found in: a real embedding, a real index, and the thresholds beside the snapshot."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from prebake.lookup import AnswerStore
from prebake.manifest import NEAR, Manifest
from prebake.near import Embedding, NearIndex, group_of
from prebake.routes import Route
from prebake.settings import Near, Settings
from storage.store import Store
from tasks.mine import mine
from tasks.near import near_questions
from tasks.plan import plan
from tasks.publish import publish
from tests.integration.tasks.conftest import DAY, NOW, Ask, Bake
from tests.static_embedding import save_embedding

RESET = "How do I reset the password?"
PARAPHRASE = "How can I reset the password?"
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A route that bakes conversations too and serves near hits, as far as 700 judged pairs of one similarity allow."""
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("asked,near,same\n" + f"{RESET},{PARAPHRASE},true\n" * 700)
    near = Near(model=str(save_embedding(tmp_path / "embedding")), pairs=str(pairs))
    return with_near(settings.model_copy(update={"near": near}), "serve")


def with_near(settings: Settings, near: str) -> Settings:
    (route,) = settings.routes
    return settings.model_copy(update={"routes": (Route(**(route.model_dump() | {"near": near, "multi_turn": True})),)})


def baked(store: Store, settings: Settings, bake: Bake, **options: object) -> None:
    mine(store, settings)
    bake(plan(store, settings, DAY, now=NOW).plan_id, **options)


def published(store: Store, settings: Settings) -> tuple[Path, Manifest]:
    """The new snapshot's folder and what its manifest says."""
    publish(store, settings, run_id="run", now=LATER)
    with AnswerStore.open(Path(settings.store.root), verify=True) as answers:
        return answers.folder, answers.manifest


def test_a_publish_writes_an_index_that_finds_the_baked_question_and_the_threshold_it_earned(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    key = ask(RESET)
    ask("How do I close the account?")
    baked(store, settings, bake)
    folder, manifest = published(store, settings)
    embedding = Embedding(settings.near.model)
    asked, near = embedding.embed([PARAPHRASE, RESET])
    threshold = manifest.near["faq"]
    assert threshold.similarity == pytest.approx(float(asked @ near), abs=1e-6)
    assert (threshold.pairs, threshold.accepted, threshold.wrong) == (700, 700, 0)
    index = NearIndex.open(folder, manifest, embedding)
    assert index is not None
    body = {"model": "gpt", "messages": [{"role": "user", "content": PARAPHRASE}]}
    found = index.nearest(group_of(body, settings.route_table, "shop") or b"", PARAPHRASE)
    index.close()
    assert found is not None
    assert (found.fingerprint, found.question, found.difference) == (key, RESET, None)
    assert found.similarity == pytest.approx(threshold.similarity, abs=1e-3)  # the index holds half precision


def test_a_route_that_only_records_has_an_index_and_no_threshold(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask(RESET)
    baked(store, settings, bake)
    _, manifest = published(store, with_near(settings, "record"))
    assert NEAR in manifest.files
    assert manifest.near == {}


def test_where_no_route_wants_near_misses_nothing_is_written_and_no_embedding_is_needed(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask(RESET)
    baked(store, settings, bake)
    bare = with_near(settings, "off").model_copy(update={"near": Near(model="/nowhere")})
    _, manifest = published(store, bare)
    assert (manifest.answers, NEAR in manifest.files, manifest.near) == (1, False, {})


def test_only_single_questions_with_a_good_answer_in_words_are_compared(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    key = ask(RESET)
    ask("And then?", before=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    tools = [{"type": "function", "function": {"name": "light", "parameters": {}}}]
    ask("Turn on the light", tools=tools, tool_choice="none")
    baked(store, settings, bake)
    publish(store, settings, run_id="run", now=LATER)
    assert store.answers.scan().count_rows() == 3
    (found,) = near_questions(store, settings, LATER)
    assert (found.fingerprint, found.text) == (key, RESET)
    assert list(near_questions(store, settings, NOW + timedelta(days=8))) == []  # expired


def test_an_answer_that_was_cut_off_is_near_to_nothing(store: Store, settings: Settings, ask: Ask, bake: Bake) -> None:
    ask(RESET)
    baked(store, settings, bake, status="truncated")
    publish(store, settings, run_id="run", now=LATER)
    assert store.answers.scan().count_rows() == 1
    assert list(near_questions(store, settings, LATER)) == []


def test_a_question_whose_key_is_another_under_todays_settings_is_left_out(
    store: Store, settings: Settings, ask: Ask, bake: Bake
) -> None:
    ask(RESET)
    baked(store, settings, bake)
    publish(store, settings, run_id="run", now=LATER)
    (route,) = settings.routes
    newer = route.model_copy(update={"knowledge": "2026-11"})
    assert list(near_questions(store, settings.model_copy(update={"routes": (newer,)}), LATER)) == []
