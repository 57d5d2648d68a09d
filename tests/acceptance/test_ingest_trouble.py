"""Ingest as a process on damaged files, full disks and signals: a clear line, an exit code, nothing half-written."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage.store import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with settings for a store beside them; every reject is allowed."""
    (tmp_path / "prebake.toml").write_text(
        '[store]\nroot = "store"\n[ingest]\nmax_reject_share = 1.0\n[[routes]]\nname = "faq"\nscope = "shared"\n'
    )
    (tmp_path / "scratch").mkdir()
    return tmp_path


def command(folder: Path, *paths: Path, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "prebake", "ingest", *map(str, paths), "--json"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PREBAKE_SETTINGS": str(folder / "prebake.toml"), "TMPDIR": str(folder / "scratch")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limit,
    )


def ingest(folder: Path, *paths: Path, limit: Callable[[], None] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = command(folder, *paths, limit=limit)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err


def lines(count: int, start: int = 0, filler: str = "") -> bytes:
    return b"".join(
        orjson.dumps(
            {
                "ts": 1_791_806_400 + number,
                "model": "m",
                "messages": [{"role": "user", "content": f"Question {number}{filler}"}],
            }
        )
        + b"\n"
        for number in range(start, start + count)
    )


def rows(folder: Path) -> int:
    with open_store(Settings(store=StoreSettings(root=str(folder / "store")))) as store:
        count: int = store.query_log.scan().count_rows()
        return count


def rejects(folder: Path) -> list[tuple[int, str]]:
    with open_store(Settings(store=StoreSettings(root=str(folder / "store")))) as store:
        return [(each["line"], each["reason"]) for each in store.rejects.scan().to_table().to_pylist()]


@pytest.mark.parametrize("name", ["log.jsonl.gz", "log.jsonl.zst", "log.jsonl"])
def test_a_file_cut_in_the_middle_gives_every_row_before_the_cut(folder: Path, name: str) -> None:
    data = lines(20_000)
    whole = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)(data)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    code, out, _ = ingest(folder, folder / name)
    assert code == 0
    report = orjson.loads(out.splitlines()[-1])
    assert report["rejected"] == 1
    ((line, reason),) = rejects(folder)
    assert line == rows(folder) + 1 > 1_000
    assert "cut" in reason or "JSON" in reason


def test_a_parquet_file_cut_in_the_middle_is_one_reject(folder: Path) -> None:
    pq.write_table(pa.table({"ts": [1]}), folder / "log.parquet")
    (folder / "log.parquet").write_bytes((folder / "log.parquet").read_bytes()[:-9])
    code, _, _ = ingest(folder, folder / "log.parquet")
    assert code == 0
    assert rows(folder) == 0
    assert "not a whole Parquet file" in rejects(folder)[0][1]


def test_an_empty_log_is_read_and_gives_nothing(folder: Path) -> None:
    (folder / "log.jsonl").touch()
    code, out, _ = ingest(folder, folder / "log.jsonl")
    assert (code, orjson.loads(out.splitlines()[-1])["rows"]) == (0, 0)


def test_a_line_of_100_mb_is_rejected_in_bounded_memory(folder: Path) -> None:
    with (folder / "log.jsonl").open("wb") as handle:
        handle.write(lines(1))
        handle.write(b'{"model": "' + b"x" * 100_000_000 + b'"}\n')
        handle.write(lines(1, start=1))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (600 * 2**20, 600 * 2**20))

    code, _, err = ingest(folder, folder / "log.jsonl", limit=limit)
    assert code == 0, err
    assert rows(folder) == 2
    assert rejects(folder) == [(2, "longer than 16777216 bytes (ingest.max_row_bytes)")]


def test_too_many_rejects_end_with_exit_code_3_and_one_sentence(folder: Path) -> None:
    settings = folder / "prebake.toml"
    settings.write_text(settings.read_text().replace("max_reject_share = 1.0", "max_reject_share = 0.1"))
    (folder / "log.jsonl").write_bytes(lines(3) + b"\xff\xfe\n")
    code, _, err = ingest(folder, folder / "log.jsonl")
    assert code == 3
    assert "1 of 4 rows (25.0%) could not be read" in err
    assert rows(folder) == 3


def test_a_full_disk_leaves_the_table_as_it_was(folder: Path) -> None:
    (folder / "first.jsonl").write_bytes(lines(10))
    assert ingest(folder, folder / "first.jsonl")[0] == 0
    (folder / "second.jsonl").write_bytes(lines(60_000, start=10))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error of write(), not a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, _, err = ingest(folder, folder / "second.jsonl", limit=limit)
    assert code == 4, err
    assert "cannot be written" in err
    assert rows(folder) == 10
    assert list((folder / "scratch").iterdir()) == []
    assert ingest(folder, folder / "second.jsonl")[0] == 0
    assert rows(folder) == 60_010


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_ingest_keeps_whole_files_only_and_goes_on_when_it_is_run_again(
    folder: Path, number: signal.Signals
) -> None:
    (folder / "1.jsonl").write_bytes(lines(10))
    (folder / "2.jsonl").write_bytes(lines(40_000, start=10, filler=" and why" * 60))
    process = command(folder, folder / "1.jsonl", folder / "2.jsonl")
    table = folder / "store" / "tables" / "query_log"
    give_up = time.monotonic() + 60
    while not list(table.glob("_delta_log/*1.json")) and time.monotonic() < give_up:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    assert rows(folder) == 10
    code, out, _ = ingest(folder, folder / "1.jsonl", folder / "2.jsonl")
    report = orjson.loads(out.splitlines()[-1])
    assert (code, report["files"], report["files_skipped"], report["rows"]) == (0, 1, 1, 40_000)
    assert rows(folder) == 40_010
