"""An S3 that refuses is one line of trouble on the command line: where, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import S3
from tests.integration.cli.test_commands import prebake

COMMANDS = [["mine"], ["snapshots"], ["ingest", "s3://{bucket}/logs/*.jsonl"]]
"""The first reads tables by deltalake, the second an object by boto3, the third a list of objects."""


def settings(folder: Path, root: str, endpoint_url: str) -> None:
    """A settings file with a store there."""
    (folder / "prebake.toml").write_text(
        f'[store]\nroot = "{root}"\ns3_endpoint_url = "{endpoint_url}"\nledger_url = "sqlite:///{folder}/ledger.db"\n'
        '[privacy]\nuser_salt = "a salt for tests"\n'
    )


def refused(folder: Path, command: list[str], bucket: str, **environment: str) -> str:
    """The one line that the command ends with."""
    run = prebake(folder, *(word.format(bucket=bucket) for word in command), **environment)
    assert run.returncode == 4, (run.stdout, run.stderr)
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"prebake: s3://{bucket}/")
    assert "<?xml" not in line
    return line


@pytest.fixture
def s3_that_asks_for_credentials(s3: S3, s3_server: str) -> Iterator[S3]:
    """moto takes any credentials unless it is told to look at them, as here."""
    look = f"{s3_server}/moto-api/reset-auth"
    httpx.post(look, content=b"0").raise_for_status()
    yield s3
    httpx.post(look, content=b"inf").raise_for_status()


@pytest.mark.parametrize("command", COMMANDS, ids=["mine", "snapshots", "ingest"])
def test_a_bucket_that_is_not_there(s3_server: str, tmp_path: Path, command: list[str]) -> None:
    settings(tmp_path, "s3://no-such-bucket/prebake", s3_server)
    line = refused(tmp_path, command, "no-such-bucket")
    assert "NoSuchBucket" in line
    assert "make the bucket, or correct store.root" in line


@pytest.mark.parametrize("command", COMMANDS[:2], ids=["mine", "snapshots"])
def test_wrong_credentials(s3_that_asks_for_credentials: S3, tmp_path: Path, command: list[str]) -> None:
    s3 = s3_that_asks_for_credentials
    settings(tmp_path, s3.root, s3.endpoint_url)
    line = refused(tmp_path, command, "prebake", AWS_ACCESS_KEY_ID="wrong")
    assert "give this machine AWS credentials" in line


def test_no_credentials(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    settings(tmp_path, s3.root, s3.endpoint_url)
    nobody = {name: str(tmp_path / "none") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    line = refused(tmp_path, ["snapshots"], "prebake", **nobody)
    assert "Unable to locate credentials; give this machine AWS credentials" in line
