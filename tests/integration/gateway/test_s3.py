"""A store in S3: snapshots are fetched, verified and swapped in, the log is written there, old copies are deleted."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from prebake.settings import Store
from storage.objects import open_objects
from storage.snapshot import publish_snapshot
from tests.conftest import S3
from tests.gateway_bed import Running, answer_to, ask, gateway_server, settings_of, wait_until


def test_snapshots_are_fetched_and_swapped_and_the_log_is_written(
    s3: S3, tmp_path: Path, upstream: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cache = settings_of(tmp_path), tmp_path / "cache"
    objects = open_objects(Store(root=s3.root, s3_endpoint_url=s3.endpoint_url))
    monkeypatch.setenv("PREBAKE_STORE__ROOT", s3.root)
    monkeypatch.setenv("PREBAKE_STORE__S3_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("PREBAKE_PRIVACY__USER_SALT", "a long secret")
    with gateway_server(tmp_path, upstream.url, cache_dir=cache) as gateway:
        for night in ("first", "second"):
            answer = answer_to(settings, ask("Which night?"), night)
            version = publish_snapshot(objects, [answer], run_id=night, keep=3, now=datetime.now(UTC)).version
            wait_until(lambda version=version: gateway.ready()["snapshot"] == version)  # type: ignore[misc]
            response = httpx.post(f"{gateway.url}/v1/chat/completions", json=ask("Which night?"))
            assert response.json()["choices"][0]["message"]["content"] == night
        wait_until(lambda: [folder.name for folder in next(cache.iterdir()).iterdir()] == [version])
        wait_until(lambda: sum(1 for _ in objects.list("gateway-log/")) > 0)
    segments = [objects.read(found.key) for found in objects.list("gateway-log/")]
    assert sum(pq.read_table(io.BytesIO(segment)).num_rows for segment in segments) == 2
