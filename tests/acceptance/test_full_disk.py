"""A disk that is full in the middle of a step: one line, exit code 4, the store as it was, and the next run does it."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex

import orjson
import pytest


def prebake(folder: Path, *arguments: str, most_bytes: int = 0) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error of write(), not a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.run(
        [sys.executable, "-m", "prebake", "--settings", str(folder / "prebake.toml"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit if most_bytes else None,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with a log of yesterday, 4,000 prompts of two users each, and nothing mined."""
    (tmp_path / "prebake.toml").write_text(
        f'[store]\nroot = "{tmp_path / "store"}"\n[plan]\nbudget_answers = 4000\n[[routes]]\nname = "faq"\n'
        'scope = "shared"\n'
    )
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    with (tmp_path / "log.jsonl").open("wb") as log:
        for number in range(4000):
            text = f"what is {token_hex(30)}"
            for user in ("a", "b"):
                row = {
                    "timestamp": yesterday,
                    "user": f"{user}{number}",
                    "model": "m",
                    "messages": [{"role": "user", "content": text}],
                }
                log.write(orjson.dumps(row) + b"\n")
    assert prebake(tmp_path, "ingest", str(tmp_path / "log.jsonl"), "--preset", "openai").returncode == 0
    return tmp_path


def test_each_step_says_so_and_goes_through_when_there_is_room(folder: Path) -> None:
    for step, most_bytes in (("mine", 60_000), ("plan", 8_000)):
        failed = prebake(folder, step, most_bytes=most_bytes)
        assert failed.returncode == 4, failed.stderr
        assert "Traceback" not in failed.stderr
        said = [line for line in failed.stderr.splitlines() if not line.endswith(": done")]
        assert len(said) == 1, failed.stderr
        again = prebake(folder, step, "--json")
        assert again.returncode == 0, again.stderr
        assert "4000" in again.stdout, again.stdout
