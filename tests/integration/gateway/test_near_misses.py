"""Near misses: noted with the baked question nearest to them, served only where a threshold was earned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pyarrow.parquet as pq
import pytest

from prebake.loading import load
from prebake.manifest import NEAR, Threshold
from prebake.near import Embedding, group_of, question_of
from prebake.settings import Settings
from storage.catalog import connect
from storage.near_index import Question, build_near_index
from storage.objects import open_objects
from storage.snapshot import publish_snapshot
from storage.store import open_store
from tests.gateway_bed import Running, answer_to, ask, gateway_server, wait_until, write_settings
from tests.static_embedding import save_embedding

SETTINGS = """
[near]
model = "embedding"
pairs = "pairs.csv"

[[routes]]
name = "faq"
scope = "shared"
fold = "text"
models = ["tiny"]
near = "{near}"

[[routes]]
name = "private"
models = ["mine"]
near = "record"

[[routes]]
name = "quiet"
models = ["busy", "dear"]
scope = "shared"
"""
RESET = "How do I reset the password?"
PARAPHRASE = "How can I reset the password?"
MERGE = "merge main into develop"
DARK = "How do I turn on dark mode?"
SURE = Threshold(similarity=0.8, max_error=0.01, confidence=0.95, pairs=1000, accepted=900, wrong=0)


def publish_near(folder: Path, near: str, threshold: Threshold | None, embedding: Embedding) -> Settings:
    """Publish a store with questions and answers, and what finds near ones."""
    settings = load(write_settings(folder, SETTINGS.format(near=near)))
    asked: list[tuple[dict[str, Any], str | None, str]] = [
        (ask(RESET), None, "By mail."),
        (ask(RESET, messages=system("Be brief.", RESET)), None, "Mail."),
        (ask(RESET, "mine"), "a", "A's secret way"),
        (ask(MERGE), None, "git checkout develop; git merge main"),
        (ask(DARK), None, "In the menu."),
        (ask(RESET, "dear"), None, "dear"),
    ]
    questions = [
        Question(
            answer_to(settings, body, "x", tenant=tenant).fingerprint,
            group_of(body, settings.route_table, tenant) or b"",
            question_of(body) or "",
        )
        for body, tenant, _ in asked
    ]

    def beside(extras: Path) -> dict[str, Any]:
        build_near_index(extras / NEAR, questions, embedding)
        return {"near": {"faq": threshold} if threshold else {}}

    publish_snapshot(
        open_objects(settings.store),
        [answer_to(settings, body, text, tenant=tenant) for body, tenant, text in asked],
        run_id="run-1",
        keep=3,
        now=datetime.now(UTC),
        beside=beside,
    )
    return settings


def system(prompt: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": prompt}, {"role": "user", "content": question}]


class Bed:
    """A gateway over such a store."""

    def __init__(self, folder: Path, gateway: Running) -> None:
        self.folder, self.gateway = folder, gateway

    def ask(self, question: str, model: str = "tiny", headers: dict[str, str] | None = None, **fields: Any) -> Any:
        body = ask(question, model, **fields)
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=20)

    def noted(self) -> list[dict[str, Any]]:
        """All rows, in the order of their times: the names of segments of one second have none."""
        files = (self.folder / "prebake-store" / "near-misses").rglob("*.parquet")
        rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
        return sorted(rows, key=lambda row: row["ts"])

    def noted_after(self, rows: int) -> list[dict[str, Any]]:
        """What was noted, once it is so many rows."""
        wait_until(lambda: len(self.noted()) >= rows, 60)
        return self.noted()


@contextmanager
def bed(folder: Path, upstream: Running, near: str, threshold: Threshold | None, **options: Any) -> Iterator[Bed]:
    embedding = Embedding(str(save_embedding(folder / "embedding")))
    publish_near(folder, near, threshold, embedding)
    settings = SETTINGS.format(near=near)
    with gateway_server(folder, upstream.url, settings=settings, tenant_header="x-tenant", **options) as gateway:
        opened = Bed(folder, gateway)
        if near == "serve" and threshold is not None:  # until the embedding is loaded, near misses are misses
            wait_until(lambda: opened.ask(PARAPHRASE).headers["x-prebake"] == "near", 60)
        yield opened


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, upstream: Running) -> Iterator[Bed]:
    """Its route records; that a threshold was calibrated must change nothing."""
    with bed(tmp_path_factory.mktemp("record"), upstream, "record", SURE) as opened:
        yield opened


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, upstream: Running) -> Iterator[Bed]:
    """Its route serves, from a similarity of 0.8."""
    with bed(tmp_path_factory.mktemp("serve"), upstream, "serve", SURE) as opened:
        yield opened


def test_a_near_miss_is_noted_and_answered_by_the_model_as_before(recording: Bed) -> None:
    before = len(recording.noted())
    response = recording.ask(PARAPHRASE)
    assert (response.headers["x-prebake"], response.headers["x-prebake-reason"]) == ("miss", "not_baked")
    row = recording.noted_after(before + 1)[-1]
    assert (row["asked"], row["near"], row["route"], row["scope"]) == (PARAPHRASE, RESET, "faq", "shared")
    assert 0.5 < row["similarity"] < 1
    assert (row["difference"], row["served"]) == (None, False)


def test_what_was_noted_is_a_view_in_sql(recording: Bed) -> None:
    before = len(recording.noted())
    recording.ask("How do I reset my account?")
    recording.noted_after(before + 1)
    settings = load(recording.folder / "prebake.toml")
    with open_store(settings) as store, connect(store) as connection:
        found = connection.execute(
            "select near, near_fingerprint from near_misses where asked like '%account?'"
        ).fetchone()
        comment = connection.execute("select comment from duckdb_views() where view_name = 'near_misses'").fetchone()
    assert found == (RESET, answer_to(settings, ask(RESET), "x").fingerprint.hex())
    assert comment is not None
    assert "judging" in comment[0]


def test_a_hit_a_bypass_a_long_talk_a_call_of_tools_and_what_must_not_be_stored_are_not_compared(
    recording: Bed,
) -> None:
    before = len(recording.noted())
    tools = [{"type": "function", "function": {"name": "reset", "parameters": {}}}]
    talk = [{"role": "user", "content": RESET}, {"role": "assistant", "content": "Who?"}]
    recording.ask(RESET)
    recording.ask(PARAPHRASE, n=2)
    recording.ask(PARAPHRASE, messages=[*talk, {"role": "user", "content": PARAPHRASE}])
    recording.ask(PARAPHRASE, tools=tools)
    recording.ask(PARAPHRASE, headers={"cache-control": "no-store"})
    recording.ask(PARAPHRASE, "dear")
    recording.ask("How can I get back money?")
    assert [row["asked"] for row in recording.noted_after(before + 1)[before:]] == ["How can I get back money?"]


def test_a_question_is_compared_only_within_its_tenant_system_prompt_and_parameters(recording: Bed) -> None:
    before = len(recording.noted())
    recording.ask(PARAPHRASE, "mine", {"x-tenant": "b"})  # nobody of tenant b's questions is baked
    recording.ask(PARAPHRASE, seed=7)
    recording.ask(PARAPHRASE, headers={"x-prebake-namespace": "other"})
    recording.ask(PARAPHRASE, messages=system("Be long.", PARAPHRASE))
    recording.ask(PARAPHRASE, messages=system("Be brief.", PARAPHRASE))
    recording.ask(PARAPHRASE, "mine", {"x-tenant": "a"})
    rows = recording.noted_after(before + 2)[before:]
    settings = load(recording.folder / "prebake.toml")
    brief = ask(RESET, messages=system("Be brief.", RESET))
    assert {row["scope"]: row["near_fingerprint"] for row in rows} == {
        "shared": answer_to(settings, brief, "x").fingerprint,
        "tenant/a": answer_to(settings, ask(RESET, "mine"), "x", tenant="a").fingerprint,
    }
    assert len(rows) == 2


def test_a_near_hit_is_served_and_marked(serving: Bed) -> None:
    response = serving.ask(PARAPHRASE)
    assert response.headers["x-prebake"] == "near"
    assert 0.8 <= float(response.headers["x-prebake-similarity"]) < 1
    assert response.json()["choices"][0]["message"]["content"] == "By mail."
    streamed = serving.ask(PARAPHRASE, stream=True)
    assert streamed.headers["x-prebake"] == "near"
    assert "By mail." in streamed.text


@pytest.mark.parametrize(
    "question",
    [
        "merge develop into main",  # the reversal of a baked one: similarity 1 (GPTCache#694)
        "How do I turn off dark mode?",  # its opposite
        "How do I not reset the password?",
        "How do I reset the password 2?",
        "How do I reset the xyzzy?",  # a word the embedding does not know
        "How do I change email?",  # not near enough
    ],
)
def test_what_only_looks_alike_is_a_miss(serving: Bed, question: str) -> None:
    response = serving.ask(question)
    assert (response.headers["x-prebake"], response.headers["x-prebake-reason"]) == ("miss", "not_baked")
    assert "x-prebake-similarity" not in response.headers


def test_other_tenants_prompts_and_parameters_get_no_near_answer(serving: Bed) -> None:
    assert serving.ask(PARAPHRASE, seed=7).headers["x-prebake"] == "miss"
    assert serving.ask(PARAPHRASE, headers={"x-prebake-namespace": "other"}).headers["x-prebake"] == "miss"
    assert serving.ask(PARAPHRASE, messages=system("Be long.", PARAPHRASE)).headers["x-prebake"] == "miss"
    brief = serving.ask(PARAPHRASE, messages=system("Be brief.", PARAPHRASE))
    assert brief.json()["choices"][0]["message"]["content"] == "Mail."


def test_a_near_answer_obeys_what_the_request_asks_of_a_hit(serving: Bed) -> None:
    assert serving.ask(PARAPHRASE, headers={"cache-control": "max-age=60"}).headers["x-prebake"] == "miss"
    assert serving.ask(PARAPHRASE, headers={"cache-control": "no-cache"}).headers["x-prebake"] == "bypass"
    assert serving.ask(PARAPHRASE, headers={"cache-control": "only-if-cached"}).headers["x-prebake"] == "near"


def test_metrics_count_what_was_found(serving: Bed) -> None:
    serving.ask(PARAPHRASE)
    serving.ask("merge develop into main")
    text = httpx.get(f"{serving.gateway.url}/metrics").text
    assert 'prebake_near_misses_total{found="near_enough",route="faq"}' in text
    assert 'prebake_near_misses_total{found="order",route="faq"}' in text
    assert 'cache="near"' in text


def test_without_a_calibrated_threshold_a_route_that_serves_only_records(tmp_path: Path, upstream: Running) -> None:
    with bed(tmp_path, upstream, "serve", None) as opened:
        assert opened.ask(PARAPHRASE).headers["x-prebake"] == "miss"
        assert [row["served"] for row in opened.noted_after(1)] == [False]


def test_a_broken_index_or_another_embedding_costs_near_misses_and_no_hit(tmp_path: Path, upstream: Running) -> None:
    save_embedding(tmp_path / "other", seed=8)
    with bed(tmp_path, upstream, "serve", SURE) as opened:
        assert opened.ask(PARAPHRASE).headers["x-prebake"] == "near"
    for damage in ("embedding", "index"):
        if damage == "embedding":
            (tmp_path / "embedding").rename(tmp_path / "first")
            (tmp_path / "other").rename(tmp_path / "embedding")
        else:
            (index,) = (tmp_path / "prebake-store" / "snapshots").glob(f"*/{NEAR}")
            index.write_bytes(index.read_bytes()[:-1])
        settings = SETTINGS.format(near="serve")
        with gateway_server(tmp_path, upstream.url, settings=settings) as gateway:
            broken = Bed(tmp_path, gateway)
            assert broken.ask(PARAPHRASE).headers["x-prebake"] == "miss"
            assert broken.ask(RESET).headers["x-prebake"] == "hit"
            wait_until(lambda gateway=gateway: "near.mdb" in gateway.log.read_text(), 60)


def test_calibrate_shows_the_threshold_or_why_there_is_none(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from prebake.cli.app import app

    save_embedding(tmp_path / "embedding")
    file = write_settings(tmp_path, SETTINGS.format(near="serve"))
    with duckdb.connect() as connection:
        connection.sql(f"select '{RESET}' as asked, '{PARAPHRASE}' as near, true as same from range(700)").write_csv(
            str(tmp_path / "pairs.csv")
        )
    enough = CliRunner().invoke(app, ["--settings", str(file), "calibrate", "--json"])
    assert '"threshold":{"similarity":' in enough.stdout
    (tmp_path / "few.csv").write_text(f"asked,near,same\n{RESET},{PARAPHRASE},true\n")
    result = CliRunner().invoke(app, ["--settings", str(file), "calibrate", str(tmp_path / "few.csv"), "--json"])
    assert "at least 574 without an error are needed" in result.stdout
