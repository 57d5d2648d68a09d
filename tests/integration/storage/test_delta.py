"""Delta tables: appends that are done once, days replaced whole, nothing half-written, on disk and in S3."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest

from prebake.errors import StorageError
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from prebake.tables import ANSWERS, REJECTS, TABLES, Table
from storage.delta import DeltaTable
from storage.objects import open_objects
from tests.integration.storage.race import end, go, line, race, spawn

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)


def rows(*lines: int, day: date = FIRST) -> pa.Table:
    return pa.Table.from_pylist(
        [{"day": day, "source": "s", "file": "f", "line": number, "reason": "r"} for number in lines],
        schema=REJECTS.schema,
    )


def numbers(table: DeltaTable) -> list[int]:
    return sorted(table.scan().to_table(columns=["line"])["line"].to_pylist())


@pytest.fixture
def table(any_settings: Settings) -> DeltaTable:
    return DeltaTable(REJECTS, open_objects(any_settings.store))


@pytest.fixture
def local(settings: Settings) -> DeltaTable:
    return DeltaTable(REJECTS, open_objects(settings.store))


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


@pytest.mark.parametrize("kind", ["table", "reader"])
def test_processes_that_append_the_same_names_leave_one_copy_of_each(any_settings: Settings, kind: str) -> None:
    told = race(
        any_settings,
        f"""
from tests.integration.storage.test_delta import *
table = DeltaTable(REJECTS, open_objects(settings.store))
ready()
data = lambda n: rows(n) if {kind == "table"} else rows(n).to_reader()
tell([n for n in range(8) if table.append(data(n), once=f"part-{{n}}")])
""",
    )
    assert sorted(told[0] + told[1]) == list(range(8))
    assert numbers(DeltaTable(REJECTS, open_objects(any_settings.store))) == list(range(8))


def test_processes_that_append_different_names_lose_nothing(any_settings: Settings) -> None:
    race(
        any_settings,
        """
from tests.integration.storage.test_delta import *
table = DeltaTable(REJECTS, open_objects(settings.store))
ready()
for n in range(6):
    assert table.append(rows(100 * number + n), once=f"{number}-{n}")
tell(True)
""",
        processes=3,
    )
    expected = [100 * number + n for number in range(3) for n in range(6)]
    assert numbers(DeltaTable(REJECTS, open_objects(any_settings.store))) == expected


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


def test_rows_of_a_day_that_is_not_replaced_are_refused_and_nothing_changes(table: DeltaTable) -> None:
    table.append(rows(1))
    with pytest.raises(StorageError, match="cannot replace"):
        table.replace_days(rows(2, day=SECOND), [FIRST])
    assert numbers(table) == [1]


def test_of_processes_that_replace_the_same_day_each_leaves_all_or_nothing_of_its_rows(any_settings: Settings) -> None:
    table = DeltaTable(REJECTS, open_objects(any_settings.store))
    table.append(rows(0))
    told = race(
        any_settings,
        """
from tests.integration.storage.test_delta import *
table = DeltaTable(REJECTS, open_objects(settings.store))
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
from tests.integration.storage.test_delta import *
table = DeltaTable(REJECTS, open_objects(settings.store))
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
    table = DeltaTable(REJECTS, open_objects(settings.store))
    assert numbers(table) == [1]
    assert table.append(rows(2), once="killed") is True
    assert numbers(table) == [1, 2]


def test_appends_killed_at_any_moment_are_there_whole_or_not_at_all(settings: Settings) -> None:
    code = """
from tests.integration.storage.test_delta import *
table = DeltaTable(REJECTS, open_objects(settings.store))
ready()
for n in range(1000):
    if table.append(rows(*range(10 * n, 10 * n + 10)), once=f"part-{n}"):
        tell(n)
"""
    table = DeltaTable(REJECTS, open_objects(settings.store))
    told: set[int] = set()
    for round_number in range(4):
        process = spawn(settings, code)
        try:
            assert line(process) == "ready"
            go(process)
            told |= {int(line(process)) for _ in range(3 + round_number)}
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
    assert len(parts - told) <= 4


def test_a_store_that_cannot_be_reached_is_a_sentence(s3_settings: Settings) -> None:
    nowhere = StoreSettings(root="s3://prebake/x", s3_endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://prebake/x/tables/answers: cannot read the table"):
        DeltaTable(ANSWERS, open_objects(nowhere)).version()


def test_a_folder_that_may_not_be_written_is_a_sentence(settings: Settings) -> None:
    Path(settings.store.root).parent.mkdir(parents=True, exist_ok=True)
    Path(settings.store.root).write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot append"):
        DeltaTable(REJECTS, open_objects(settings.store)).append(rows(1))
