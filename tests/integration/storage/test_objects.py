"""Objects behave the same on disk and in S3."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from prebake.errors import ConflictError, StorageError
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage.objects import Objects, open_objects
from tests.integration.storage.race import race


@pytest.fixture
def objects(any_settings: Settings) -> Objects:
    return open_objects(any_settings.store)


def test_what_was_written_is_read_back_and_a_later_write_wins(objects: Objects) -> None:
    objects.write("folder/a", b"one")
    objects.write("folder/a", b"two")
    assert objects.read("folder/a") == b"two"


def test_an_object_that_is_not_there_is_a_sentence_with_its_address(objects: Objects) -> None:
    with pytest.raises(StorageError, match=r"folder/missing: .*[nN]o such"):
        objects.read("folder/missing")


def test_stat_tells_size_and_etag_and_nothing_of_folders_or_missing_objects(objects: Objects) -> None:
    etag = objects.write("folder/a", b"12345")
    found = objects.stat("folder/a")
    assert found is not None
    assert (found.key, found.size, found.etag) == ("folder/a", 5, etag)
    assert objects.stat("folder") is None
    assert objects.stat("folder/a/b") is None


def test_create_refuses_an_object_that_is_there_and_leaves_it_as_it_is(objects: Objects) -> None:
    objects.create("a", b"first")
    with pytest.raises(ConflictError):
        objects.create("a", b"second")
    assert objects.read("a") == b"first"


def test_replace_follows_the_etag(objects: Objects) -> None:
    first = objects.replace("a", b"1", None)
    second = objects.replace("a", b"2", first)
    for stale in (None, first):
        with pytest.raises(ConflictError):
            objects.replace("a", b"3", stale)
    objects.delete("a")
    with pytest.raises(ConflictError):
        objects.replace("a", b"3", second)
    assert objects.stat("a") is None


def test_the_same_bytes_at_another_time_are_still_one_version_after_the_other(settings: Settings) -> None:
    objects = open_objects(settings.store)
    etags = [objects.write("a", b"same") for _ in range(50)]
    assert len(set(etags)) == 50


def test_a_listing_has_the_keys_that_begin_with_the_prefix_in_their_order(objects: Objects) -> None:
    for key in ("b/2", "b/10", "b-c", "b.c", "a", "b/1/x"):
        objects.write(key, b"")
    assert [found.key for found in objects.list("b")] == ["b-c", "b.c", "b/1/x", "b/10", "b/2"]
    assert [found.key for found in objects.list("b/1")] == ["b/1/x", "b/10"]
    assert [found.key for found in objects.list("b/")] == ["b/1/x", "b/10", "b/2"]
    assert list(objects.list("nothing/")) == []


def test_delete_removes_the_object_and_does_nothing_the_second_time(objects: Objects) -> None:
    objects.write("folder/a", b"")
    objects.delete("folder/a")
    objects.delete("folder/a")
    assert list(objects.list()) == []
    objects.write("folder/a", b"again")
    assert objects.read("folder/a") == b"again"


def test_files_go_up_and_come_down_unchanged(objects: Objects, tmp_path: Path) -> None:
    data = os.urandom(9 * 2**20)  # more than one part of an S3 upload
    (tmp_path / "up").write_bytes(data)
    objects.upload("folder/file", tmp_path / "up")
    objects.download("folder/file", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data


def test_one_of_several_processes_creates_the_object(any_settings: Settings) -> None:
    told = race(
        any_settings,
        """
from storage.objects import open_objects
objects = open_objects(settings.store)
ready()
won = []
for n in range(20):
    try:
        objects.create(f"prize/{n}", str(number).encode())
        won.append(n)
    except ConflictError:
        pass
tell(won)
""",
    )
    objects = open_objects(any_settings.store)
    assert sorted(told[0] + told[1]) == list(range(20))
    assert {n for n in range(20) if objects.read(f"prize/{n}") == b"1"} == set(told[1])


def test_no_count_is_lost_when_processes_compare_and_swap(any_settings: Settings) -> None:
    objects = open_objects(any_settings.store)
    objects.create("count", b"0")
    race(
        any_settings,
        """
from storage.objects import open_objects
objects = open_objects(settings.store)
ready()
done = 0
while done < 15:
    etag = objects.stat("count").etag
    value = int(objects.read("count"))
    try:
        objects.replace("count", str(value + 1).encode(), etag)
        done += 1
    except ConflictError:
        pass
tell(done)
""",
    )
    assert objects.read("count") == b"30"


def test_a_file_that_the_system_cuts_off_is_a_sentence_and_leaves_the_old_object(settings: Settings) -> None:
    objects = open_objects(settings.store)
    objects.write("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=f"a: cannot be written: {os.strerror(errno.EFBIG)}"):
            objects.write("a", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert objects.read("a") == b"old"
    assert [found.name for found in Path(objects.uri).iterdir()] == ["a"]


def test_objects_on_disk_are_as_open_as_the_users_umask_says(settings: Settings) -> None:
    objects = open_objects(settings.store)
    before = os.umask(0o027)
    try:
        objects.write("a", b"")
    finally:
        os.umask(before)
    path = objects.local_path("a")
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_store_where_a_file_stands_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        open_objects(StoreSettings(root=str(tmp_path / "store"))).write("a/b", b"")


def test_a_bucket_that_is_not_there_is_named(s3_settings: Settings) -> None:
    settings = s3_settings.store.model_copy(update={"root": "s3://no-such-bucket/x"})
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x/a: .*NoSuchBucket"):
        open_objects(settings).write("a", b"")
