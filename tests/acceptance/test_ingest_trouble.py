"""Ingest as a process on damaged files, full disks and signals: a clear line, an exit code, nothing half-written."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

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


def lines(count: int, start: int = 0, filler: str = "", noise: bool = False) -> bytes:
    return b"".join(
        orjson.dumps(
            {
                "ts": 1_791_806_400 + number,
                "model": "m",
                "messages": [{"role": "user", "content": f"Question {number}{filler}{token_hex() if noise else ''}"}],
            }
        )
        + b"\n"
        for number in range(start, start + count)
    )


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    with open_store(Settings(store=StoreSettings(root=str(folder / "store")))) as store:
        chosen = store.query_log if name == "query_log" else store.rejects
        found: list[dict[str, Any]] = chosen.scan().to_table().to_pylist()
        return found


def rows(folder: Path) -> int:
    return len(table(folder, "query_log"))


def test_damaged_files_give_every_row_before_the_damage(folder: Path) -> None:
    data = lines(4_000)
    logs = folder / "logs"
    logs.mkdir()
    cut = {"a.jsonl": data, "b.jsonl.gz": gzip.compress(data), "c.jsonl.zst": zstandard.compress(data)}
    for name, whole in cut.items():
        (logs / name).write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"ts": [1]}), logs / "d.parquet")
    (logs / "d.parquet").write_bytes((logs / "d.parquet").read_bytes()[:-9])
    (logs / "e.jsonl").touch()
    code, out, err = ingest(folder, logs)
    assert code == 0, err
    report = orjson.loads(out.splitlines()[-1])
    assert (report["files"], report["rejected"]) == (5, 4)
    good = Counter(row["source"] for row in table(folder, "query_log"))
    wrong = {Path(each["file"]).name: each for each in table(folder, "rejects")}
    for name, words in {"a.jsonl": "JSON", "b.jsonl.gz": "is cut here", "c.jsonl.zst": "is cut here"}.items():
        assert words in wrong[name]["reason"]
        assert wrong[name]["line"] == good[wrong[name]["source"]] + 1 > 500
    assert wrong["d.parquet"]["reason"].startswith("not a whole Parquet file")


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
    (reject,) = table(folder, "rejects")
    assert (reject["line"], reject["reason"]) == (2, "longer than 16777216 bytes (ingest.max_row_bytes)")


def test_too_many_rejects_end_with_exit_code_3_and_one_sentence(folder: Path) -> None:
    settings = folder / "prebake.toml"
    settings.write_text(settings.read_text().replace("max_reject_share = 1.0", "max_reject_share = 0.1"))
    (folder / "log.jsonl").write_bytes(lines(3) + b"\xff\xfe\n")
    code, _, err = ingest(folder, folder / "log.jsonl")
    assert code == 3
    assert "1 of 4 rows (25.0%) could not be read" in err
    assert rows(folder) == 3


def test_a_full_disk_leaves_the_table_as_it_was(folder: Path) -> None:
    first, second = folder / "1.jsonl", folder / "2.jsonl"
    first.write_bytes(lines(10))
    second.write_bytes(lines(10_000, start=10, noise=True))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error of write(), not a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, _, err = ingest(folder, first, second, limit=limit)
    assert code == 4, err
    assert "cannot be written" in err
    assert rows(folder) == 10
    assert list((folder / "scratch").iterdir()) == []
    assert ingest(folder, first, second)[0] == 0
    assert rows(folder) == 10_010


@pytest.mark.slow
def test_a_stopped_ingest_keeps_whole_files_only_and_goes_on_when_it_is_run_again(folder: Path) -> None:
    large = folder / "large.jsonl"
    large.write_bytes(lines(30_000, start=100, filler=" and why" * 75))
    small = [folder / f"{number}.jsonl" for number in range(3)]
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    for number, (file, stopped_by) in enumerate(zip(small, signals, strict=True)):
        file.write_bytes(lines(10, start=10 * number))
        process = command(folder, file, large)
        log = folder / "store" / "tables" / "query_log" / "_delta_log"
        give_up = time.monotonic() + 60
        while not (log / f"{number + 1:020}.json").exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        os.killpg(process.pid, stopped_by)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if stopped_by == signal.SIGKILL else 130), err
        assert "Traceback" not in err
        assert rows(folder) == 10 * (number + 1)
    code, out, _ = ingest(folder, *small, large)
    report = orjson.loads(out.splitlines()[-1])
    assert (code, report["files"], report["files_skipped"], report["rows"]) == (0, 1, 3, 30_000)
    assert rows(folder) == 30_030
