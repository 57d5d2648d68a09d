"""The gateway follows the store while it runs, and whatever happens to the store, requests are answered."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateway_bed import Running, answer_to, ask, gateway_server, publish, settings_of, wait_until

QUESTION = ask("Who serves?")
SNAPSHOTS = Path("prebake-store", "snapshots")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings and no store at all."""
    return tmp_path_factory.mktemp("reloading")


@pytest.fixture(scope="module")
def gateway(folder: Path, upstream: Running) -> Iterator[Running]:
    """A gateway that looks at that folder."""
    with gateway_server(folder, upstream.url, log=False) as server:
        yield server


def publish_saying(folder: Path, text: str) -> str:
    return publish(folder, [answer_to(settings_of(folder), QUESTION, text, run_id=text)], run_id=text)


def ask_gateway(gateway: Running) -> tuple[str, str | None]:
    response = httpx.post(f"{gateway.url}/v1/chat/completions", json=QUESTION)
    assert response.status_code == 200
    return response.json()["choices"][0]["message"]["content"], response.headers.get("x-prebake-reason")


def until_ready_says(gateway: Running, **state: object) -> None:
    wait_until(lambda: state.items() <= gateway.ready().items())


@pytest.fixture(autouse=True)
def no_store(folder: Path, gateway: Running) -> None:
    """Each test begins without a store."""
    shutil.rmtree(folder / "prebake-store", ignore_errors=True)
    until_ready_says(gateway, store="no_snapshot", snapshot=None)


@contextmanager
def load(gateway: Running) -> Iterator[list[httpx.Response]]:
    """Requests without a pause while the block runs; afterwards all their answers."""
    answered: list[httpx.Response] = []
    stop = threading.Event()

    def run() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                answered.append(client.post(f"{gateway.url}/v1/chat/completions", json=QUESTION))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_without_a_store_every_request_is_a_miss_and_the_reason_is_said(gateway: Running) -> None:
    assert ask_gateway(gateway) == ("one two three", "no_snapshot")
    assert gateway.ready()["status"] == "ready"


def test_a_snapshot_that_is_published_is_served_without_a_restart(gateway: Running, folder: Path) -> None:
    for text in ("first night", "second night"):
        version = publish_saying(folder, text)
        until_ready_says(gateway, snapshot=version)
        assert ask_gateway(gateway) == (text, None)


def test_swaps_under_load_lose_no_request_and_mix_no_answers(gateway: Running, folder: Path) -> None:
    publish_saying(folder, "night 0")
    until_ready_says(gateway, store="served")
    versions = {}
    with load(gateway) as answered:
        for number in range(1, 16):
            versions[publish_saying(folder, f"night {number}")] = f"night {number}"
            until_ready_says(gateway, snapshot=max(versions))
    assert {response.status_code for response in answered} == {200}
    assert {response.headers["x-prebake"] for response in answered} == {"hit"}
    for response in answered:
        said, run = response.json()["choices"][0]["message"]["content"], response.headers["x-prebake-run"]
        assert said == run == versions.get(response.headers["x-prebake-snapshot"], "night 0")
    assert len({response.headers["x-prebake-snapshot"] for response in answered}) > 5


def test_a_store_deleted_under_load_turns_hits_into_misses_and_fails_nobody(gateway: Running, folder: Path) -> None:
    publish_saying(folder, "gone soon")
    until_ready_says(gateway, store="served")
    with load(gateway) as answered:
        wait_until(lambda: len(answered) > 20)
        shutil.rmtree(folder / "prebake-store")
        until_ready_says(gateway, store="no_snapshot")
        before = len(answered)
        wait_until(lambda: len(answered) > before + 20)
    assert {response.status_code for response in answered} == {200}
    assert {response.headers["x-prebake"] for response in answered} == {"hit", "miss"}
    assert answered[-1].headers["x-prebake-reason"] == "no_snapshot"


@pytest.mark.parametrize("damage", ["cut short", "other bytes", "later format", "no data", "no manifest", "not JSON"])
def test_a_damaged_snapshot_is_refused_and_the_one_before_stays(gateway: Running, folder: Path, damage: str) -> None:
    good = publish_saying(folder, "good")
    until_ready_says(gateway, snapshot=good)
    spare = folder / "spare"
    shutil.rmtree(spare, ignore_errors=True)
    spare.mkdir()
    settings_of(spare)
    bad = publish_saying(spare, "bad").replace("000001", "000002")
    made = next((spare / SNAPSHOTS).glob("0*"))
    spoil(made, damage)
    shutil.move(made, folder / SNAPSHOTS / bad)
    pointer = folder / SNAPSHOTS / "current"
    pointer.with_suffix(".new").write_text(pointer.read_text().replace(good, bad))
    pointer.with_suffix(".new").replace(pointer)
    wait_until(lambda: gateway.ready()["problem"])
    assert ask_gateway(gateway) == ("good", None)
    assert gateway.ready()["snapshot"] == good


def test_a_damaged_pointer_without_a_snapshot_before_makes_misses_that_say_so(gateway: Running, folder: Path) -> None:
    (folder / SNAPSHOTS).mkdir(parents=True)
    (folder / SNAPSHOTS / "current").write_bytes(b"\xff\x00")
    until_ready_says(gateway, store="store_broken")
    assert ask_gateway(gateway) == ("one two three", "store_broken")
    published = folder / SNAPSHOTS / "current"
    published.unlink()
    version = publish_saying(folder, "repaired")
    until_ready_says(gateway, snapshot=version, problem=None)


def test_a_problem_is_logged_once(gateway: Running, folder: Path) -> None:
    (folder / SNAPSHOTS).mkdir(parents=True)
    (folder / SNAPSHOTS / "current").write_text('{"format": 99}')
    until_ready_says(gateway, store="store_broken")
    for _ in range(20):
        gateway.ready()
    lines = [line for line in gateway.log.read_text().splitlines() if "current: in format 99" in line]
    assert len(lines) == 1
    assert "upgrade prebake" in lines[0]


def spoil(snapshot: Path, damage: str) -> None:
    data, manifest = snapshot / "answers.bin", snapshot / "manifest.json"
    if damage == "cut short":
        data.write_bytes(data.read_bytes()[:-4096])
    elif damage == "other bytes":
        data.write_bytes(data.read_bytes()[:-100] + b"x" * 100)
    elif damage == "later format":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    elif damage == "no data":
        data.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
