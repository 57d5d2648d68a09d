"""A snapshot is opened only if all of it is there and undamaged, and then gives exactly what is still good."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prebake.answer import Answer
from prebake.errors import SnapshotError
from prebake.lookup import AnswerStore
from prebake.request import Bypass, Keyed, key_request
from prebake.routes import Route, Routes
from prebake.settings import Store
from prebake.verdicts import NO_VERDICTS, Approval, Block, Verdicts, Withheld, answer_digest
from storage.objects import open_objects
from storage.snapshot import publish_snapshot

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
ROUTES = Routes([Route(name="faq", scope="tenant", fold="text")], {})


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]} | fields


def key(text: str, tenant: str = "acme") -> bytes:
    keyed = key_request(body(text), ROUTES, tenant)
    assert isinstance(keyed, Keyed)
    return keyed.fingerprint


def answer(text: str, content: str, ttl: timedelta = timedelta(days=7)) -> Answer:
    return Answer(
        key(text),
        "faq",
        json.dumps({"role": "assistant", "content": content}).encode(),
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=2,
        model="m",
        run_id="run",
        baked_at=NOON,
        expires_at=NOON + ttl,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A snapshots folder with one snapshot of two answers."""
    answers = [answer("one", "eins"), answer("short", "kurz", timedelta(hours=1))]
    publish_snapshot(open_objects(Store(root=str(tmp_path))), answers, run_id="run", keep=2, now=NOON)
    return tmp_path / "snapshots"


@pytest.fixture
def folder(root: Path) -> Path:
    return next(path for path in root.iterdir() if path.is_dir())


def test_an_answer_is_found_by_its_fingerprint(root: Path) -> None:
    with AnswerStore.open(root, verify=True) as store:
        found = store.get(key("one"), NOON)
        assert found is not None
        assert (found.message["content"], found.fingerprint) == ("eins", key("one"))
        assert store.get(key("two"), NOON) is None
        assert key("one") in store
        assert key("two") not in store
        assert len(store) == 2


def test_a_store_its_snapshots_and_one_snapshot_open_alike(root: Path, folder: Path) -> None:
    with (
        AnswerStore.open(root.parent) as by_store,
        AnswerStore.open(root) as by_pointer,
        AnswerStore.open(str(folder)) as by_name,
    ):
        assert by_store.version == by_pointer.version == by_name.version == folder.name
        assert by_pointer.get(key("one"), NOON) == by_name.get(key("one"), NOON)


def test_an_expired_answer_is_none(root: Path) -> None:
    end = NOON + timedelta(hours=1)
    with AnswerStore.open(root) as store:
        assert store.get(key("short"), end - timedelta(microseconds=1)) is not None
        assert store.get(key("short"), end) is None
        assert store.get(key("short"), end + timedelta(days=1)) is None
        assert key("short") in store


def test_a_whole_request_is_a_hit_a_miss_or_a_bypass_with_its_reason(root: Path) -> None:
    with AnswerStore.open(root) as store:
        hit = store.lookup(body(" ONE?"), ROUTES, "acme", NOON)
        miss = store.lookup(body("two"), ROUTES, "acme", NOON)
        bypass = store.lookup(body("one", n=2), ROUTES, "acme", NOON)
    assert (hit.cache, miss.cache, bypass.cache) == ("hit", "miss", "bypass")
    assert hit.answer is not None
    assert hit.answer.message["content"] == "eins"
    assert isinstance(miss.key, Keyed)
    assert miss.key.fingerprint == key("two")
    assert bypass.key is Bypass.CHOICES


def test_what_people_have_decided_is_withheld(root: Path) -> None:
    careful = Routes([route.model_copy(update={"approval": True}) for route in ROUTES], {})
    blocked = Verdicts(blocked={key("one").hex(): Block(at=NOON)})
    with AnswerStore.open(root) as store:
        there = store.get(key("one"), NOON)
        assert there is not None
        approved = Verdicts(approved={key("one").hex(): Approval(answer=answer_digest(there), at=NOON)})
        found = [
            store.lookup(body("one"), routes, "acme", NOON, verdicts=verdicts)
            for routes, verdicts in ((ROUTES, blocked), (careful, NO_VERDICTS), (careful, approved))
        ]
    assert [each.withheld for each in found] == [Withheld.BLOCKED, Withheld.UNAPPROVED, None]
    assert [each.cache for each in found] == ["miss", "miss", "hit"]


def test_many_at_once_are_what_each_alone_would_be_in_their_order(root: Path) -> None:
    keys = [key("short"), key("no such"), key("one"), key("short")]
    with AnswerStore.open(root) as store:
        for now in (NOON, NOON + timedelta(days=1), NOON + timedelta(days=30)):
            assert store.get_many(keys, now) == [store.get(each, now) for each in keys]
        assert [found is not None for found in store.get_many(keys, NOON)] == [True, False, True, True]
        assert store.get_many([], NOON) == []


def test_without_a_time_the_present_counts(tmp_path: Path) -> None:
    long, short = timedelta(days=365 * 100), timedelta(hours=1)  # from noon of a day in 2026
    objects = open_objects(Store(root=str(tmp_path)))
    answers = [answer("long", "yes", long), answer("past", "no", short - timedelta(days=365))]
    publish_snapshot(objects, answers, run_id="run", keep=1, now=NOON)
    with AnswerStore.open(tmp_path) as store:
        assert store.get(key("long")) is not None
        assert store.get(key("past")) is None
        assert [found is not None for found in store.get_many([key("long"), key("past")])] == [True, False]
        assert store.lookup(body("long"), ROUTES, "acme").cache == "hit"


def test_another_tenant_never_finds_it(root: Path) -> None:
    with AnswerStore.open(root) as store:
        assert store.lookup(body("one"), ROUTES, "other", NOON).cache == "miss"
        assert store.lookup(body("one"), ROUTES, None, NOON).key is Bypass.NO_TENANT


def test_many_threads_share_one_store(root: Path) -> None:
    wrong: list[object] = []

    def read(store: AnswerStore) -> None:
        for _ in range(500):
            found = store.get(key("one"), NOON)
            if found is None or found.message["content"] != "eins":
                wrong.append(found)

    with AnswerStore.open(root) as store:
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_closed_store_says_so_and_one_beside_it_goes_on(root: Path) -> None:
    with AnswerStore.open(root) as other:
        store = AnswerStore.open(root)
        store.close()
        store.close()
        with pytest.raises(SnapshotError, match="was closed"):
            store.get(key("one"), NOON)
        assert other.get(key("one"), NOON) is not None


def test_a_closed_store_is_no_longer_mapped(root: Path, folder: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux shows a process's mappings")
    with AnswerStore.open(root):
        assert str(folder) in maps.read_text()
    assert str(folder) not in maps.read_text()


def test_opening_writes_nothing(root: Path, folder: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    with AnswerStore.open(root, verify=True) as store:
        store.get(key("one"), NOON)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_many_requests_are_looked_up_in_their_order_each_as_if_alone(root: Path) -> None:
    bodies = [body("none"), body("One"), body("one", n=2), body("short"), body("one")]
    with AnswerStore.open(root) as store:
        for now in (NOON, NOON + timedelta(hours=2)):
            found = store.lookup_many(iter(bodies), ROUTES, "acme", now)
            assert found == [store.lookup(each, ROUTES, "acme", now) for each in bodies]
            last = "hit" if now == NOON else "miss"
            assert [each.cache for each in found] == ["miss", "hit", "bypass", last, "hit"]
        blocked = Verdicts(blocked={key("one").hex(): Block(at=NOON)})
        (withheld,) = store.lookup_many([body("one")], ROUTES, "acme", NOON, verdicts=blocked)
        assert (withheld.answer, withheld.withheld) == (None, Withheld.BLOCKED)
        assert store.lookup_many([body("one")], ROUTES, "acme", NOON, "other")[0].cache == "miss"
        assert store.lookup_many([], ROUTES, "acme", NOON) == []


def test_many_requests_without_a_time_are_looked_up_at_one_moment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnswerStore.open(root) as store:
        moments: list[datetime | None] = []
        monkeypatch.setattr(store, "get", lambda _fingerprint, now=None: moments.append(now))
        store.lookup_many([body("one"), body("short")], ROUTES, "acme")
    assert moments[0] is not None
    assert moments[0] == moments[1]


@pytest.mark.parametrize("left", [0, 1, 24, 200])
def test_a_file_that_was_cut_short_is_refused_by_name(root: Path, folder: Path, left: int) -> None:
    data = folder / "answers.bin"
    data.write_bytes(data.read_bytes()[:left])
    with pytest.raises(SnapshotError, match=f"{data}: {left} bytes long.*rollback"):
        AnswerStore.open(root)


def test_a_flipped_bit_is_found_when_a_new_version_is_verified(root: Path, folder: Path) -> None:
    data = folder / "answers.bin"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(SnapshotError, match=f"{data}: damaged.*SHA-256"):
        AnswerStore.open(root, verify=True)


def test_a_file_that_is_no_database_is_refused(root: Path, folder: Path) -> None:
    data = folder / "answers.bin"
    data.write_bytes(b"\0" * data.stat().st_size)
    with pytest.raises(SnapshotError, match=f"{data}: not a snapshot's data"):
        AnswerStore.open(root)


def test_a_manifest_that_counts_other_answers_is_refused(root: Path, folder: Path) -> None:
    change(folder / "manifest.json", answers=3)
    with pytest.raises(SnapshotError, match="has 2 answers, its manifest says 3"):
        AnswerStore.open(root)


@pytest.mark.parametrize("name", ["answers.bin", "manifest.json"])
def test_what_is_missing_is_named(root: Path, folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SnapshotError, match=str(folder / name)):
        AnswerStore.open(root)


def test_a_folder_without_snapshots_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="prebake publish"):
        AnswerStore.open(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["manifest.json", "current"])
def test_a_version_from_the_future_asks_for_an_upgrade(root: Path, folder: Path, name: str) -> None:
    file = root / "current" if name == "current" else folder / name
    change(file, format=2)
    with pytest.raises(SnapshotError, match=f"{file}: in format 2.*upgrade prebake"):
        AnswerStore.open(root)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": "new"}'])
@pytest.mark.parametrize("name", ["manifest.json", "current"])
def test_a_damaged_manifest_or_pointer_is_named(root: Path, folder: Path, name: str, content: bytes) -> None:
    file = root / "current" if name == "current" else folder / name
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match=f"{file}: damaged"):
        AnswerStore.open(root)


def test_a_pointer_that_leads_elsewhere_is_refused(root: Path) -> None:
    change(root / "current", current="../../etc")
    with pytest.raises(SnapshotError, match="current: damaged"):
        AnswerStore.open(root)


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
