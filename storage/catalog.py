"""SQL over everything that stays: views for ``prebake sql``, and one file that any DuckDB client opens by itself.

In: the store. Out: the tables of ``prebake/tables.py`` and the ledger's runs as documented views. Fingerprints, bytes
in the tables, are shown as 32 hexadecimal digits: what logs, ``explain`` and other tools show, and what can be typed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.errors import InputError, StorageError
from prebake.tables import (
    ANSWERS,
    ANSWERS_CURRENT,
    DAILY_COUNTS,
    FINGERPRINT,
    NEAR_MISSES,
    PLAN,
    QUERY_LOG,
    REJECTS,
    RUNS,
    Table,
)
from storage.delta import DeltaTable
from storage.store import Store

FILE: Final = "answers.duckdb"

# Nothing is ever downloaded, and times are shown in UTC wherever the machine stands.
_CONFIG: Final = {"autoinstall_known_extensions": "false", "TimeZone": "UTC"}
_PUBLISHED: Final = (DAILY_COUNTS, PLAN, ANSWERS)


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with a view of each table as it is now, ``answers_current`` and ``runs`` too."""
    connection = duckdb.connect(config=dict(_CONFIG))
    for table in (QUERY_LOG, REJECTS, DAILY_COUNTS, PLAN, ANSWERS):
        _show(connection, "view", table, store)
    _show_current_answers(connection)
    _show_runs(connection, "view", store)
    _show_near_misses(connection, store)
    return connection


def connect_answers(answers: DeltaTable) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views ``answers`` and ``answers_current`` alone: no ledger is asked."""
    connection = duckdb.connect(config=dict(_CONFIG))
    _create(connection, "view", ANSWERS, "answers_rows", answers.scan())
    _show_current_answers(connection)
    return connection


def write_catalog(store: Store) -> str:
    """Publish ``answers.duckdb`` in the store; returns its key.

    It holds daily counts, plan, answers and runs, and shows the query log where that is on the same disk. Readers who
    have the last one open keep it: the new file takes its name at once. Raises StorageError if it cannot be written.
    """
    with TemporaryDirectory(prefix="prebake-catalog-") as folder:
        file = Path(folder, FILE)
        try:
            with duckdb.connect(str(file), config=dict(_CONFIG)) as connection:
                for table in _PUBLISHED:
                    _show(connection, "table", table, store)
                _show_current_answers(connection)
                _show_runs(connection, "table", store)
                _show_query_log(connection, store)
        except duckdb.Error as error:
            reason = str(error).split("\n", 1)[0]
            raise StorageError(f"{file}: the catalog cannot be written: {reason}; free space or set TMPDIR") from error
        store.objects.upload(FILE, file)
    return FILE


def _show(connection: duckdb.DuckDBPyConnection, kind: str, table: Table, store: Store) -> None:
    rows = getattr(store, table.name).scan()
    _create(connection, kind, table, f"{table.name}_rows", rows)


def _show_runs(connection: duckdb.DuckDBPyConnection, kind: str, store: Store) -> None:
    rows = [
        {**vars(run), "params": json.dumps(run.params), "summary": json.dumps(run.summary), "status": str(run.status)}
        for run in store.ledger.runs()
    ]
    _create(connection, kind, RUNS, "runs_rows", pa.Table.from_pylist(rows, RUNS.schema))


def _show_current_answers(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        "create view answers_current as from answers "
        "qualify row_number() over (partition by fingerprint order by baked_at desc, run_id desc) = 1"
    )
    _comment(connection, "view", ANSWERS_CURRENT)


def _show_query_log(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """As a view on the Parquet files: the log is large, and already beside."""
    if store.objects.local_path(FILE) is None:
        return
    files = store.query_log.files()
    if not files:
        _show(connection, "table", QUERY_LOG, store)
        return
    rows = f"read_parquet({_literal(files)}, hive_partitioning = true, hive_types = {{'day': date}})"
    connection.execute(f"create view query_log as select {_columns(QUERY_LOG)} from {rows}")
    _comment(connection, "view", QUERY_LOG)


def _show_near_misses(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    """As a view on the Parquet files where they lie on this disk; those in S3 are few enough to be read at once."""
    found = [(item.key, store.objects.local_path(item.key)) for item in store.objects.list("near-misses/")]
    paths = [str(path) for _, path in found if path is not None]
    if paths:
        connection.execute(
            f"create view near_misses as select {_columns(NEAR_MISSES)} from read_parquet({_literal(paths)})"
        )
        return _comment(connection, "view", NEAR_MISSES)
    parts = [pq.read_table(BytesIO(store.objects.read(key))) for key, _ in found]
    rows = pa.concat_tables([NEAR_MISSES.schema.empty_table(), *parts])
    return _create(connection, "view", NEAR_MISSES, "near_misses_rows", rows)


def _create(
    connection: duckdb.DuckDBPyConnection, kind: str, table: Table, name: str, rows: pa.Table | pa.dataset.Dataset
) -> None:
    connection.register(name, rows)
    connection.execute(f"create {kind} {table.name} as select {_columns(table)} from {name}")
    if kind == "table":
        connection.unregister(name)
    _comment(connection, kind, table)


def _columns(table: Table) -> str:
    return ", ".join(
        f'lower(hex("{column.name}")) as "{column.name}"' if column.type == FINGERPRINT else f'"{column.name}"'
        for column in table.columns
    )


def _comment(connection: duckdb.DuckDBPyConnection, kind: str, table: Table) -> None:
    connection.execute(f"comment on {kind} {table.name} is {_literal(table.meaning)}")
    for column in table.columns:
        unit = "32 hexadecimal digits" if column.type == FINGERPRINT else column.unit
        text = f"{column.meaning} ({unit})" if unit else column.meaning
        connection.execute(f'comment on column {table.name}."{column.name}" is {_literal(text)}')


def _literal(value: str | Iterable[str]) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"[{', '.join(map(_literal, value))}]"


def newest_plan(store: Store) -> str:
    """The plan made last; InputError if there is none."""
    row = connect(store).execute("select max_by(plan_id, day) from plan").fetchone()
    if not row or row[0] is None:
        raise InputError("there is no plan yet; run: prebake plan")
    return str(row[0])
