"""What tests share: a store on a temporary folder, a real PostgreSQL server, a real S3 server (moto over HTTP)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import hypothesis
import pytest
from sqlalchemy import create_engine, make_url, text

from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage.store import Store, open_store
from tests.tiny_model import engine, engine_settings, tiny_model  # noqa: F401 - fixtures

# A busy machine is no wrong answer: no example is failed for its time.
hypothesis.settings.register_profile("prebake", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("prebake")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """All defaults, with the store in a temporary folder."""
    return Settings(store=StoreSettings(root=str(tmp_path / "store")))


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """An empty store on local disk with its SQLite ledger."""
    with open_store(settings) as opened:
        yield opened


class PostgresServer:
    """A PostgreSQL server of our own, on a free port; it may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, str(folder / "data")
        self._port = free_port()
        self._user: dict[str, str] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(folder, "postgres")
            self._user = {"user": "postgres"}
        self._run("initdb", "--pgdata", self._data, "--username", "prebake", "--auth", "trust", "--no-sync")

    @property
    def url(self) -> str:
        """Of the superuser's database."""
        return f"postgresql+psycopg://prebake@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it; returns when it answers."""
        sockets = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        options = f"-p {self._port} {sockets} -c fsync=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "--pgdata", self._data, "--wait", "--log", log, "--options", options, "start")

    def stop(self) -> None:
        """Stop it as a power cut would."""
        self._run("pg_ctl", "--pgdata", self._data, "--mode", "immediate", "stop")

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self._folder, check=True, stdout=subprocess.DEVNULL, timeout=60, **self._user)


@contextmanager
def serve_postgres() -> Iterator[PostgresServer]:
    """A server that runs, and is gone afterwards with its folder."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    folder = Path(mkdtemp(prefix="prebake-pg-", dir="/tmp"))
    server = PostgresServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of the superuser's database on a PostgreSQL server of this session's own."""
    with serve_postgres() as server:
        yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty PostgreSQL database of the test's own."""
    name = f"test_{uuid4().hex[:12]}"
    server = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@dataclass(frozen=True)
class S3:
    """A bucket on an S3 server: settings for it, and a root that no other test uses."""

    endpoint_url: str
    root: str


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a moto server with the bucket ``prebake``; credentials come by the environment."""
    import boto3

    # A process of its own: deltalake holds the interpreter's lock in some calls, and a thread could not answer it.
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_port(port, server)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            environment.setenv(name, value)
        address = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="prebake")
        yield address
    server.kill()
    server.wait()


@pytest.fixture
def s3(s3_server: str) -> S3:
    """An empty prefix of a bucket on a real S3 server."""
    return S3(s3_server, f"s3://prebake/{uuid4().hex[:12]}")


@pytest.fixture
def s3_settings(s3: S3, tmp_path: Path) -> Settings:
    """All defaults, with the store in S3 and the ledger in a temporary folder."""
    return Settings(
        store=StoreSettings(
            root=s3.root, s3_endpoint_url=s3.endpoint_url, ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}"
        ),
        privacy={"user_salt": "a salt for tests"},
    )


@pytest.fixture(params=["disk", "s3"])
def any_settings(request: pytest.FixtureRequest) -> Settings:
    """The store on disk and in S3, one after the other."""
    return request.getfixturevalue("settings" if request.param == "disk" else "s3_settings")


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger database of each kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path / 'ledger.db'}"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server listens; fails if it ended or a minute has passed."""
    give_up = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    server.kill()
    raise RuntimeError(f"{server.args}: does not listen on port {port}")
