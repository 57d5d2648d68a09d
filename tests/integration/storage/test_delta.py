"""Delta tables: appends that are done once, days replaced whole, nothing half-written, on disk and in S3."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest

from prebake.errors import StorageError
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from prebake.tables import ANSWERS, REJECTS, TABLES, Table
from storage.data_file import DataFile
from storage.delta import DeltaTable
from storage.objects import open_objects
from tests.integration.storage.race import end, go, line, race, spawn
from tests.integration.storage.rejects import FIRST, SECOND, numbers, open_table, rows


@pytest.fixture
def table(any_settings: Settings) -> DeltaTable:
    return open_table(any_settings)


@pytest.fixture
def local(settings: Settings) -> DeltaTable:
    return open_table(settings)


def data_file(folder: Path, *lines: int, day: date = FIRST) -> DataFile:
    path = folder / f"{uuid4().hex}.parquet"
    pyarrow.parquet.write_table(rows(*lines, day=day).drop(["day"]), path)
    return DataFile(day, path, len(lines))


def test_a_table_that_nobody_wrote_is_empty_and_has_its_schema(table: DeltaTable) -> None:
    assert table.scan().to_table().schema.equals(REJECTS.schema)
    assert (table.version(), table.days(), table.files(), numbers(table)) == (None, [], [], [])
    table.compact()


def test_appended_rows_are_read_back_by_day(table: DeltaTable) -> None:
    assert table.append(rows(1, 2)) is True
    assert table.append(rows(3, day=SECOND)) is True
    assert numbers(table) == [1, 2, 3]
    assert table.days() == [FIRST, SECOND]
    assert len(table.files()) == 2


def test_an_append_of_one_name_is_done_once(table: DeltaTable) -> None:
    assert table.append(rows(1), once="part-1") is True
    assert table.append(rows(1), once="part-1") is False
    assert table.append(rows(2), once="part-2") is True
    assert numbers(table) == [1, 2]


def test_an_append_stays_done_after_compaction_and_after_the_log_was_checkpointed(local: DeltaTable) -> None:
    for number in range(101):  # deltalake writes a checkpoint every hundred commits
        local.append(rows(number), once=f"part-{number}")
    local.compact()
    assert list(Path(local.uri, "_delta_log").glob("*.checkpoint.parquet"))
    assert local.append(rows(0), once="part-0") is False
    assert numbers(local) == list(range(101))
    assert len(local.files()) == 1


@pytest.mark.parametrize(("place", "kind"), [("settings", "table"), ("settings", "reader"), ("s3_settings", "table")])
def test_processes_that_append_the_same_names_leave_one_copy_of_each(
    request: pytest.FixtureRequest, place: str, kind: str
) -> None:
    settings: Settings = request.getfixturevalue(place)
    told = race(
        settings,
        f"""
from tests.integration.storage.rejects import *
table = open_table(settings)
ready()
data = lambda n: rows(n) if {kind == "table"} else rows(n).to_reader()
tell([n for n in range(5) if table.append(data(n), once=f"part-{{n}}")])
""",
    )
    assert sorted(told[0] + told[1]) == list(range(5))
    assert numbers(open_table(settings)) == list(range(5))


def test_processes_that_append_different_names_lose_nothing(settings: Settings) -> None:
    race(
        settings,
        """
from tests.integration.storage.rejects import *
table = open_table(settings)
ready()
for n in range(4):
    assert table.append(rows(100 * number + n), once=f"{number}-{n}")
tell(True)
""",
        processes=3,
    )
    expected = [100 * number + n for number in range(3) for n in range(4)]
    assert numbers(open_table(settings)) == expected


def test_a_reader_is_appended_whole_in_one_commit(table: DeltaTable) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(20):
            yield from rows(*range(100 * number, 100 * number + 100), day=date(2026, 1, 1 + number % 3)).to_batches()

    table.append(pa.RecordBatchReader.from_batches(REJECTS.schema, batches()))
    assert numbers(table) == list(range(2000))
    assert (table.version(), len(table.days())) == (1, 3)


def test_a_reader_that_fails_leaves_the_table_as_it_was(table: DeltaTable) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from rows(2).to_batches()
        raise ValueError("the source broke")

    table.append(rows(1))
    with pytest.raises(Exception, match="the source broke"):
        table.append(pa.RecordBatchReader.from_batches(REJECTS.schema, batches()), once="broken")
    assert numbers(table) == [1]
    assert table.append(rows(2), once="broken") is True


def test_replaced_days_have_the_new_rows_and_other_days_keep_theirs(table: DeltaTable) -> None:
    table.append(rows(1, 2))
    table.append(rows(3, day=SECOND))
    table.replace_days(rows(7), [FIRST])
    assert numbers(table) == [3, 7]
    table.replace_days(rows(), [FIRST, SECOND])
    assert numbers(table) == []
    table.replace_days(rows(8).to_reader(), [FIRST])
    assert numbers(table) == [8]


def test_written_files_take_the_place_of_their_days_and_other_days_keep_their_rows(
    table: DeltaTable, tmp_path: Path
) -> None:
    table.replace_files([data_file(tmp_path, 1, 2)], [FIRST])
    table.append(rows(3, day=SECOND))
    table.replace_files([data_file(tmp_path, 7)], [FIRST])
    assert numbers(table) == [3, 7]
    table.replace_files([], [FIRST, SECOND])
    assert numbers(table) == []


def test_of_processes_that_replace_files_of_one_day_each_leaves_all_or_nothing_and_other_days_do_not_hinder(
    settings: Settings,
) -> None:
    table = open_table(settings)
    table.append(rows(0))
    told = race(
        settings,
        """
import tempfile
from prebake.errors import ConflictError
from tests.integration.storage.test_delta import *
table = open_table(settings)
with tempfile.TemporaryDirectory() as folder:
    own = [data_file(Path(folder), 10 * number + row, day=date(2025, 1, 1 + 2 * row + number)) for row in range(5)]
    both = data_file(Path(folder), 10 * number, 10 * number + 1)
    ready()
    for file in own:
        table.replace_files([file], [file.day])
    try:
        table.replace_files([both], [FIRST])
        tell("won")
    except ConflictError:
        tell("conflict")
""",
    )
    winners = [number for number in (0, 1) if told[number] == "won"]
    assert winners
    own = [10 * number + row for number in (0, 1) for row in range(5)]
    assert numbers(table) in [sorted([*own, 10 * number, 10 * number + 1]) for number in winners]


def test_rows_of_a_day_that_is_not_replaced_are_refused_and_nothing_changes(table: DeltaTable) -> None:
    table.append(rows(1))
    with pytest.raises(StorageError, match="cannot replace"):
        table.replace_days(rows(2, day=SECOND), [FIRST])
    assert numbers(table) == [1]


def test_of_processes_that_replace_the_same_day_each_leaves_all_or_nothing_of_its_rows(settings: Settings) -> None:
    table = open_table(settings)
    table.append(rows(0))
    told = race(
        settings,
        """
from tests.integration.storage.rejects import *
table = open_table(settings)
ready()
try:
    table.replace_days(rows(*range(10 * number, 10 * number + 10)), [FIRST])
    tell("won")
except ConflictError:
    tell("conflict")
""",
    )
    assert "won" in told
    winners = [number for number in (0, 1) if told[number] == "won"]
    assert numbers(table) in [list(range(10 * number, 10 * number + 10)) for number in winners]


def test_a_missing_value_is_refused_without_showing_the_row(table: DeltaTable) -> None:
    bad = pa.table({"day": [FIRST], "source": ["s"], "file": ["f"], "line": [1], "reason": ["secret"]})
    bad = bad.set_column(1, "source", pa.array([None], pa.string()))
    with pytest.raises((StorageError, ValueError)) as caught:
        table.append(bad)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert numbers(table) == []


def test_an_older_version_can_be_restored_and_what_was_appended_once_stays_so(table: DeltaTable) -> None:
    table.append(rows(1), once="a")
    version = table.version()
    assert version is not None
    table.append(rows(2), once="b")
    table.restore(version)
    assert numbers(table) == [1]
    assert table.append(rows(2), once="b") is False


def test_restoring_a_version_that_never_was_is_a_sentence(local: DeltaTable) -> None:
    with pytest.raises(StorageError, match="nothing to restore"):
        local.restore(0)
    local.append(rows(1))
    with pytest.raises(StorageError, match="cannot restore version 99"):
        local.restore(99)


def test_duckdb_reads_only_the_days_it_is_asked_for(table: DeltaTable) -> None:
    table.append(rows(1))
    table.append(rows(2, day=SECOND))
    day = SECOND
    dataset = table.scan()
    with duckdb.connect() as connection:
        connection.register("rejects", dataset)
        found = connection.execute("SELECT line FROM rejects WHERE day = ?", [day]).fetchall()
    assert found == [(2,)]
    fragments = list(dataset.get_fragments(filter=pa.compute.field("day") == pa.scalar(day)))
    assert len(fragments) == 1


def test_files_are_addresses_that_others_can_open(settings: Settings, tmp_path: Path) -> None:
    odd = settings.store.model_copy(update={"root": str(tmp_path / "a b é+#?&=50%")})
    table = DeltaTable(REJECTS, open_objects(odd))
    table.append(rows(1, 2))
    assert [pa.parquet.read_metadata(file).num_rows for file in table.files()] == [2]
    assert numbers(table) == [1, 2]


@pytest.mark.parametrize("declared", TABLES, ids=lambda table: table.name)
def test_every_declared_table_can_be_stored(settings: Settings, declared: Table) -> None:
    table = DeltaTable(declared, open_objects(settings.store))
    table.append(declared.schema.empty_table())
    assert table.scan().to_table().schema.equals(declared.schema)


def test_a_process_killed_in_the_middle_of_an_append_leaves_a_table_that_reads(settings: Settings) -> None:
    code = """
from tests.integration.storage.rejects import *
table = open_table(settings)
def batches():
    yield from rows(*range(1000, 3000)).to_batches()
    ready()
    yield from rows(*range(3000, 5000)).to_batches()
table.append(rows(1))
table.append(pa.RecordBatchReader.from_batches(REJECTS.schema, batches()), once="killed")
"""
    process = spawn(settings, code)
    try:
        assert line(process) == "ready"
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        end([process])
    table = open_table(settings)
    assert numbers(table) == [1]
    assert table.append(rows(2), once="killed") is True
    assert numbers(table) == [1, 2]


def test_appends_killed_at_any_moment_are_there_whole_or_not_at_all(settings: Settings) -> None:
    code = """
from tests.integration.storage.rejects import *
table = open_table(settings)
ready()
for n in range(1000):
    if table.append(rows(*range(10 * n, 10 * n + 10)), once=f"part-{n}"):
        tell(n)
"""
    table = open_table(settings)
    told: set[int] = set()
    for round_number in range(3):
        process = spawn(settings, code)
        try:
            assert line(process) == "ready"
            go(process)
            told |= {int(line(process)) for _ in range(2 + round_number)}
            process.kill()
            rest, _ = process.communicate()
            told |= {int(number) for number in rest.split("\n") if number.isdigit()}
        finally:
            end([process])
    found = numbers(table)
    parts = {number // 10 for number in found}
    assert found == sorted(10 * part + n for part in parts for n in range(10))
    # What was told is there; at most one part for each kill is there without having been told.
    assert told <= parts
    assert len(parts - told) <= 3


def test_files_that_no_version_knows_are_deleted_once_they_are_old(local: DeltaTable) -> None:
    local.append(rows(1))
    folder = Path(local.files()[0]).parent
    for name, age_days in (("old.parquet", 8), ("young.parquet", 1)):
        (folder / name).write_bytes(b"left by a commit that failed")
        then = time.time() - age_days * 86_400
        os.utime(folder / name, (then, then))
    local.compact()
    assert not (folder / "old.parquet").exists()
    assert (folder / "young.parquet").exists()
    assert numbers(local) == [1]


def test_a_store_that_cannot_be_reached_is_a_sentence(s3_settings: Settings) -> None:
    nowhere = StoreSettings(root="s3://prebake/x", s3_endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://prebake/x/tables/answers: cannot read the table"):
        DeltaTable(ANSWERS, open_objects(nowhere)).version()


def test_a_folder_that_may_not_be_written_is_a_sentence(settings: Settings) -> None:
    Path(settings.store.root).parent.mkdir(parents=True, exist_ok=True)
    Path(settings.store.root).write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot append"):
        open_table(settings).append(rows(1))
