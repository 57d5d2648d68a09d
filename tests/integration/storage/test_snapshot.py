"""Serving snapshots on disk and in S3: published whole or not at all, rolled back, fetched; killed in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from prebake.answer import Answer
from prebake.errors import ConflictError, SnapshotError, StorageError
from prebake.lookup import AnswerStore
from prebake.manifest import Manifest
from prebake.settings import Settings
from storage.objects import Objects, open_objects
from storage.snapshot import POINTER_KEY, current, fetch_snapshot, publish_snapshot, rollback, snapshots

NOW = datetime(2026, 3, 11, 2, tzinfo=UTC)


@pytest.fixture
def objects(any_settings: Settings) -> Objects:
    return open_objects(any_settings.store)


@pytest.fixture
def local(settings: Settings) -> Objects:
    return open_objects(settings.store)


def key_of(number: int) -> bytes:
    return sha256(str(number).encode()).digest()[:16]


def answer(number: int, text: str = "yes", route: str = "faq", ttl_days: int = 7) -> Answer:
    return Answer(
        key_of(number),
        route,
        b'{"role":"assistant","content":"%b"}' % text.encode(),
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=2,
        model="m",
        run_id="run",
        baked_at=NOW,
        expires_at=NOW + timedelta(days=ttl_days),
    )


def publish(objects: Objects, answers: Iterable[Answer], keep: int = 3, now: datetime = NOW) -> Manifest:
    return publish_snapshot(objects, answers, run_id="run", keep=keep, now=now)


def served(objects: Objects, folder: Path) -> dict[bytes, str]:
    """What a reader of the current snapshot sees, by key."""
    manifest = current(objects)
    assert manifest is not None
    with AnswerStore.open(fetch_snapshot(objects, manifest.version, folder), verify=True) as store:
        found = {key_of(number): store.get(key_of(number), NOW) for number in range(50)}
    return {key: answer.message["content"] for key, answer in found.items() if answer}


def test_what_is_published_is_what_readers_find(objects: Objects, tmp_path: Path) -> None:
    answers = sorted(answer(number, f"answer {number}") for number in range(40))
    manifest = publish(objects, answers)
    assert served(objects, tmp_path / "cache") == {key_of(number): f"answer {number}" for number in range(40)}
    assert current(objects) == manifest
    assert snapshots(objects) == [manifest]


def test_the_manifest_says_what_is_inside(objects: Objects) -> None:
    manifest = publish(objects, [answer(1), answer(2, route="help", ttl_days=1), answer(3, ttl_days=30)])
    assert manifest.answers == 3
    assert manifest.routes == {"faq": 2, "help": 1}
    assert manifest.first_expires_at == NOW + timedelta(days=1)
    assert manifest.last_expires_at == NOW + timedelta(days=30)
    assert (manifest.run_id, manifest.created_at) == ("run", NOW)


def test_any_order_is_right_and_the_last_of_a_fingerprint_wins(local: Objects, tmp_path: Path) -> None:
    answers = [answer(number) for number in range(30, -1, -1)]
    manifest = publish(local, [*answers, answer(5, "first"), answer(5, "last", route="help")])
    assert manifest.answers == 31
    assert manifest.routes == {"faq": 30, "help": 1}
    assert served(local, tmp_path)[key_of(5)] == "last"


def test_a_night_without_answers_publishes_an_empty_snapshot(objects: Objects, tmp_path: Path) -> None:
    assert publish(objects, []).answers == 0
    assert served(objects, tmp_path / "cache") == {}


def test_before_the_first_publish_there_is_none(objects: Objects) -> None:
    assert current(objects) is None
    assert snapshots(objects) == []
    with pytest.raises(SnapshotError, match="ever published; run"):
        rollback(objects)


def test_rollback_serves_the_one_before_and_a_name_serves_that_one(objects: Objects, tmp_path: Path) -> None:
    versions = [publish(objects, [answer(1, text)]).version for text in ("one", "two", "three")]
    assert [manifest.version for manifest in snapshots(objects)] == versions[::-1]
    assert rollback(objects).version == versions[1]
    assert served(objects, tmp_path / "cache") == {key_of(1): "two"}
    assert rollback(objects).version == versions[0]
    assert rollback(objects, versions[2]).version == versions[2]
    assert served(objects, tmp_path / "cache") == {key_of(1): "three"}


def test_rollback_beyond_the_oldest_or_to_an_unknown_name_changes_nothing(local: Objects) -> None:
    manifest = publish(local, [answer(1)])
    with pytest.raises(SnapshotError, match="older than"):
        rollback(local)
    with pytest.raises(SnapshotError, match="no snapshot 'nonsense'; there are: 000001-"):
        rollback(local, "nonsense")
    assert current(local) == manifest


def test_rollback_to_a_snapshot_whose_data_is_gone_changes_nothing(objects: Objects) -> None:
    old, new = (publish(objects, [answer(1, text)]) for text in ("old", "new"))
    objects.delete(f"snapshots/{old.version}/answers.bin")
    with pytest.raises(SnapshotError, match="not all there"):
        rollback(objects)
    assert current(objects) == new


def test_only_the_newest_are_kept(objects: Objects) -> None:
    versions = [publish(objects, [answer(number)], keep=2).version for number in range(4)]
    assert [manifest.version for manifest in snapshots(objects)] == [versions[3], versions[2]]
    left = {found.key.split("/")[1] for found in objects.list("snapshots/")}
    assert left == {versions[2], versions[3], "current"}


def test_later_versions_sort_after_earlier_ones_whatever_the_clock_does(local: Objects) -> None:
    first = publish(local, [answer(1)], now=NOW)
    second = publish(local, [answer(1)], now=NOW - timedelta(days=400))
    rollback(local)
    third = publish(local, [answer(1)], now=NOW - timedelta(days=800))
    assert first.version < second.version < third.version


def test_of_two_publishes_at_once_one_wins_whole_and_the_other_changes_nothing(
    objects: Objects, tmp_path: Path
) -> None:
    publish(objects, [answer(1, "before")])

    def meanwhile() -> Iterable[Answer]:
        yield answer(1, "loser")
        publish(objects, [answer(1, "winner")])

    with pytest.raises(ConflictError, match="try again"):
        publish(objects, meanwhile())
    assert served(objects, tmp_path / "cache") == {key_of(1): "winner"}
    assert len(snapshots(objects)) == 2


def test_input_that_fails_in_the_middle_leaves_the_published_one_alone(objects: Objects) -> None:
    manifest = publish(objects, [answer(1)])

    def broken() -> Iterable[Answer]:
        yield answer(2)
        raise StorageError("the answers cannot be read")

    with pytest.raises(StorageError, match="cannot be read"):
        publish(objects, broken())
    assert snapshots(objects) == [manifest]


def test_leftovers_of_a_killed_publish_are_cleaned_by_the_next(settings: Settings, tmp_path: Path) -> None:
    objects = open_objects(settings.store)
    publish(objects, [answer(1, "before")])
    # Killed for good between the upload and the swap: the pointer is a lock that never comes.
    script = (
        "import os, signal, sys, storage.snapshot as snapshot\n"
        "from prebake.settings import Store\nfrom storage.objects import open_objects\n"
        "from tests.integration.storage.test_snapshot import answer, publish\n"
        "snapshot._swap = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "publish(open_objects(Store(root=sys.argv[1])), [answer(1, 'killed')])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, settings.store.root], check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = Path(settings.store.root, "snapshots")
    (folder / "000009-killed").mkdir()
    (folder / "000009-killed" / ".half.new").write_bytes(b"half an upload")
    assert served(objects, tmp_path) == {key_of(1): "before"}
    assert len(list(folder.iterdir())) == 4
    after = publish(objects, [answer(1, "after")])
    assert {path.name for path in folder.iterdir()} == {"current", *(m.version for m in snapshots(objects))}
    assert current(objects) == after


def test_readers_see_the_version_before_or_after_and_never_between(settings: Settings) -> None:
    objects = open_objects(settings.store)
    root = Path(settings.store.root, "snapshots")
    publish(objects, [answer(number, "0") for number in range(10)])
    seen: set[frozenset[str]] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with AnswerStore.open(root) as store:
                seen.add(frozenset(store.get(key_of(n), NOW).message["content"] for n in range(10)))  # type: ignore[union-attr]

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(1, 20):
            publish(objects, [answer(number, str(version)) for number in range(10)], keep=7)
    finally:
        stop.set()
        reader.join()
    assert seen
    assert all(len(texts) == 1 for texts in seen)


def test_a_mapped_snapshot_is_served_on_after_it_was_deleted(settings: Settings) -> None:
    objects = open_objects(settings.store)
    publish(objects, [answer(1, "old")])
    with AnswerStore.open(Path(settings.store.root, "snapshots")) as store:
        publish(objects, [answer(1, "new")], keep=1)
        assert not store.folder.exists()
        found = store.get(key_of(1), NOW)
        assert found is not None
        assert found.message["content"] == "old"


def test_a_download_that_was_damaged_on_the_way_is_refused_and_leaves_nothing(
    s3_settings: Settings, tmp_path: Path
) -> None:
    objects = open_objects(s3_settings.store)
    manifest = publish(objects, [answer(1)])
    key = f"snapshots/{manifest.version}/answers.bin"
    objects.write(key, objects.read(key)[:-1] + b"!")
    with pytest.raises(SnapshotError, match="SHA-256"):
        fetch_snapshot(objects, manifest.version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_snapshot_is_fetched_once(s3_settings: Settings, tmp_path: Path) -> None:
    objects = open_objects(s3_settings.store)
    version = publish(objects, [answer(1)]).version
    first = fetch_snapshot(objects, version, tmp_path)
    objects.delete(f"snapshots/{version}/answers.bin")
    assert fetch_snapshot(objects, version, tmp_path) == first


def test_a_damaged_pointer_is_said_by_name(objects: Objects) -> None:
    publish(objects, [answer(1)])
    objects.write(POINTER_KEY, b'{"format": 1, "current": "../../etc", "versions": []}')
    with pytest.raises(SnapshotError, match="snapshots/current: damaged"):
        current(objects)


def test_a_pointer_from_the_future_asks_for_an_upgrade(objects: Objects) -> None:
    objects.write(POINTER_KEY, b'{"format": 2}')
    with pytest.raises(SnapshotError, match="upgrade prebake"):
        current(objects)


def test_an_answer_that_cannot_be_stored_stops_the_publish_by_name(local: Objects) -> None:
    bad = Answer(
        key_of(1),
        "faq",
        b"{}",
        finish_reason="stop",
        prompt_tokens=-1,
        completion_tokens=0,
        model="m",
        run_id="run",
        baked_at=NOW,
        expires_at=NOW,
    )
    with pytest.raises(SnapshotError, match=key_of(1).hex()):
        publish(local, [bad])
    assert current(local) is None
