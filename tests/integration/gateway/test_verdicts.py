"""Blocking and approving answers: what a person decides holds in every process within seconds, without a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from prebake.cli import app
from prebake.errors import PrebakeError
from storage.objects import open_objects
from storage.verdicts import KEY
from tests.gateway_bed import (
    SETTINGS,
    Running,
    answer_to,
    ask,
    gateway_server,
    publish,
    settings_of,
    wait_until,
    write_settings,
)

READ = (
    SETTINGS
    + """
[[routes]]
name = "read"
scope = "shared"
approval = true
models = ["careful"]
"""
)
CAREFUL = ask("May I?", "careful")
PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an answer on a route of its own way each."""
    folder = tmp_path_factory.mktemp("verdicts")
    publish_saying(folder, "yes")
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path, upstream: Running) -> Iterator[Running]:
    """A gateway of several processes."""
    with gateway_server(
        folder, upstream.url, settings=READ, workers=PROCESSES, tenant_header="x-tenant", log=False
    ) as server:
        yield server


def publish_saying(folder: Path, text: str) -> str:
    settings = settings_of(folder, READ)
    return publish(
        folder,
        [
            answer_to(settings, ask("Price?"), "10"),
            answer_to(settings, ask("Price?", "mine"), "8", tenant="a", namespace="v2"),
            answer_to(settings, CAREFUL, text),
        ],
    )


def prebake(folder: Path, *arguments: str, given: Any = None) -> Any:
    """What a command says as JSON; a trouble as the command line's main() would tell it."""
    file = str(write_settings(folder, READ))
    run = CliRunner().invoke(app, ["--settings", file, *arguments, "--json"], input=json.dumps(given))
    if isinstance(run.exception, PrebakeError):
        return {"exit_code": run.exception.exit_code, "message": str(run.exception)}
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def outcomes(gateway: Running, body: dict[str, Any], **headers: str) -> set[tuple[str, str | None]]:
    """What becomes of the request, over new connections: enough of them to meet each process."""
    sent = {"connection": "close", **{name.replace("_", "-"): value for name, value in headers.items()}}
    found = set()
    with httpx.Client(headers=sent, timeout=20) as client:
        for _ in range(8 * PROCESSES):
            response = client.post(f"{gateway.url}/v1/chat/completions", json=body)
            assert response.status_code == 200
            found.add((response.headers["x-prebake"], response.headers.get("x-prebake-reason")))
    return found


def until(gateway: Running, body: dict[str, Any], cache: str, reason: str | None = None, **headers: str) -> None:
    wait_until(lambda: outcomes(gateway, body, **headers) == {(cache, reason)}, 20)


def test_what_is_blocked_goes_to_the_model_until_it_is_unblocked(gateway: Running, folder: Path) -> None:
    until(gateway, ask("Price?"), "hit")
    (fingerprint,) = prebake(folder, "block", "-", "--note", "wrong", given=ask("Price?"))["blocked"]
    until(gateway, ask("Price?"), "miss", "blocked")
    until(gateway, ask("price"), "miss", "blocked")  # the same request to this route, which folds
    assert prebake(folder, "unblock", fingerprint)["unblocked"] == [fingerprint]
    until(gateway, ask("Price?"), "hit")


def test_a_block_is_of_one_tenant_and_namespace(gateway: Running, folder: Path) -> None:
    mine, of_a = ask("Price?", "mine"), {"x_tenant": "a", "x_prebake_namespace": "v2"}
    prebake(folder, "block", "-", "--tenant", "b", "--namespace", "v2", given=mine)
    prebake(folder, "block", "-", "--tenant", "a", given=mine)
    until(gateway, mine, "miss", "blocked", x_tenant="a")
    assert outcomes(gateway, mine, **of_a) == {("hit", None)}
    (key,) = prebake(folder, "block", "-", "--tenant", "a", "--namespace", "v2", given=mine)["blocked"]
    until(gateway, mine, "miss", "blocked", **of_a)
    prebake(folder, "unblock", key)
    until(gateway, mine, "hit", **of_a)


def test_a_route_that_wants_approval_serves_what_was_read_and_no_other_answer(gateway: Running, folder: Path) -> None:
    until(gateway, CAREFUL, "miss", "unapproved")
    explained = prebake(folder, "explain", "-", given=CAREFUL)
    assert (explained["cache"], explained["reason"]) == ("miss", "unapproved")
    fingerprint, digest = explained["fingerprint"], explained["answer"]["digest"]
    (approved,) = prebake(folder, "approve", fingerprint, "--digest", digest)["approved"]
    assert (approved["digest"], approved["message"]["content"]) == (digest, "yes")
    until(gateway, CAREFUL, "hit")
    publish_saying(folder, "no")
    until(gateway, CAREFUL, "miss", "unapproved")
    refused = prebake(folder, "approve", fingerprint, "--digest", digest)
    assert refused["exit_code"] == 3
    assert "nothing was approved" in refused["message"]
    publish_saying(folder, "yes")  # the same words again: they were read
    until(gateway, CAREFUL, "hit")
    prebake(folder, "block", fingerprint)
    until(gateway, CAREFUL, "miss", "blocked")
    prebake(folder, "unblock", fingerprint)


def test_damaged_verdicts_change_nothing_and_are_said(gateway: Running, folder: Path) -> None:
    objects = open_objects(settings_of(folder, READ).store)
    (key,) = prebake(folder, "block", "-", given=ask("Price?"))["blocked"]
    until(gateway, ask("Price?"), "miss", "blocked")
    good = objects.read(KEY)
    objects.write(KEY, b"{")
    wait_until(lambda: "verdicts.json: damaged" in (gateway.ready()["problem"] or ""))
    assert outcomes(gateway, ask("Price?")) == {("miss", "blocked")}
    assert prebake(folder, "unblock", key)["exit_code"] == 4
    objects.write(KEY, good)
    prebake(folder, "unblock", key)
    until(gateway, ask("Price?"), "hit")


def test_a_gateway_that_has_never_read_the_verdicts_serves_no_stored_answer(tmp_path: Path, upstream: Running) -> None:
    publish_saying(tmp_path, "yes")
    objects = open_objects(settings_of(tmp_path, READ).store)
    objects.write(KEY, b"{")
    with gateway_server(tmp_path, upstream.url, settings=READ) as gateway:
        assert outcomes(gateway, ask("Price?")) == {("miss", "store_unreachable")}
        objects.delete(KEY)
        until(gateway, ask("Price?"), "hit")


def test_approving_needs_an_answer_and_blocking_a_request_that_could_have_one(folder: Path) -> None:
    nothing = prebake(folder, "approve", "-", given=ask("Never asked"))
    assert (nothing["exit_code"], "no good answer" in nothing["message"]) == (3, True)
    never = prebake(folder, "block", "-", given=ask("Price?", n=2))
    assert (never["exit_code"], "choices" in never["message"]) == (3, True)
    for wrong in ("no-such-file.json", "d170ac07"):
        trouble = prebake(folder, "block", wrong)
        assert (trouble["exit_code"], "32 hexadecimal digits" in trouble["message"]) == (3, True)
