"""An application opens a store by its address, on disk or in S3, and a second process costs only its own heap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from prebake.answer import Answer
from prebake.errors import SnapshotError, StorageError
from prebake.lookup import AnswerStore
from prebake.settings import Store
from storage.objects import Objects, open_objects
from storage.snapshot import publish_snapshot
from tests.conftest import S3

NOW = datetime(2026, 3, 11, 2, tzinfo=UTC)


def key_of(number: int) -> bytes:
    """A key as real ones are: those that begin alike would all lie in one bucket."""
    return sha256(str(number).encode()).digest()[:16]


def answer(number: int, text: str) -> Answer:
    return Answer(
        key_of(number),
        "faq",
        b'{"role":"assistant","content":"%b"}' % text.encode(),
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=2,
        model="m",
        run_id="run",
        baked_at=NOW,
        expires_at=NOW + timedelta(days=7),
    )


def publish(objects: Objects, answers: Iterable[Answer]) -> str:
    return publish_snapshot(objects, answers, run_id="run", keep=3, now=NOW).version


@pytest.fixture
def in_s3(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """A store in S3, whose server the environment names as every client of S3 reads it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    return open_objects(Store(root=s3.root))


def said(store: AnswerStore, number: int = 1) -> str | None:
    found = store.get(key_of(number), NOW)
    return found and found.message["content"]


def test_a_store_in_s3_opens_by_its_address_and_only_the_newest_copy_is_kept(in_s3: Objects, tmp_path: Path) -> None:
    for text in ("first", "second"):
        version = publish(in_s3, [answer(1, text)])
        for _ in range(2):  # the second finds it in the cache
            with AnswerStore.open(in_s3.uri, cache_dir=str(tmp_path)) as store:
                assert (store.version, said(store)) == (version, text)
        assert [folder.name for folder in next(tmp_path.iterdir()).iterdir()] == [version]


def test_what_is_open_stays_open_when_a_later_one_replaces_it(in_s3: Objects, tmp_path: Path) -> None:
    publish(in_s3, [answer(1, "before")])
    with AnswerStore.open(in_s3.uri, cache_dir=str(tmp_path)) as before:
        publish(in_s3, [answer(1, "after")])
        with AnswerStore.open(in_s3.uri, cache_dir=str(tmp_path)) as after:
            assert (said(before), said(after)) == ("before", "after")


def test_a_damaged_download_is_refused_and_not_kept(in_s3: Objects, tmp_path: Path) -> None:
    version = publish(in_s3, [answer(1, "good")])
    data = f"snapshots/{version}/answers.bin"
    in_s3.write(data, in_s3.read(data)[:-1] + b"?")
    with pytest.raises(SnapshotError, match=r"damaged.*rollback"):
        AnswerStore.open(in_s3.uri, cache_dir=str(tmp_path))
    assert list(next(tmp_path.iterdir()).iterdir()) == []


def test_a_store_where_nothing_was_published_says_so(in_s3: Objects, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"s3://.*prebake publish"):
        AnswerStore.open(in_s3.uri, cache_dir=str(tmp_path))


def test_a_bucket_that_is_not_there_is_a_storage_error(in_s3: Objects, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket"):
        AnswerStore.open("s3://no-such-bucket/store", cache_dir=str(tmp_path))


_READER = """
import sys
from datetime import UTC, datetime
from hashlib import sha256
from prebake.lookup import AnswerStore

def kilobytes():
    lines = [line.split() for line in open("/proc/self/smaps_rollup") if line.endswith(" kB\\n")]
    return {name.rstrip(":"): int(size) for name, size, _ in lines}

def own(sizes):
    return sizes["Private_Clean"] + sizes["Private_Dirty"]

store, now = AnswerStore.open(sys.argv[1]), datetime(2026, 3, 11, 2, tzinfo=UTC)
before = kilobytes()
for number in range(int(sys.argv[2])):
    assert store.get(sha256(str(number).encode()).digest()[:16], now) is not None
print("read", flush=True)
sys.stdin.readline()  # until the other process has read it too
after = kilobytes()
print(own(after) - own(before), after["Rss"] - before["Rss"], flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux says which memory is shared")
def test_processes_share_the_snapshot_and_each_pays_only_for_its_own_heap(tmp_path: Path) -> None:
    number = 20_000
    publish(open_objects(Store(root=str(tmp_path))), (answer(each, "x" * 1_000) for each in range(number)))
    command = [sys.executable, "-c", _READER, str(tmp_path), str(number)]
    with ExitStack() as running:
        readers = [
            running.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        assert [_say(reader) for reader in readers] == ["read\n"] * 2
        for own_kb, mapped_kb in [map(int, _say(reader, "measure\n").split()) for reader in readers]:
            assert mapped_kb > 15_000  # all of the answers are in its memory ...
            assert own_kb < 3_000  # ... and next to nothing of that is its own


def _say(reader: subprocess.Popen[str], line: str = "") -> str:
    """Give it a line to read; returns the line it prints."""
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(line)
    reader.stdin.flush()
    return reader.stdout.readline()
