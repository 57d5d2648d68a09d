"""docs/openapi.yaml, the description of the API: each path, method, header and reason of the gateway, and no other."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import yaml
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.app import Gateway
from gateway.chat import Reason
from gateway.doors import Refused
from gateway.reload import NoStore
from prebake.loading import load
from prebake.request import Bypass
from prebake.verdicts import Withheld
from tests.gateway_bed import ROOT, SETTINGS, Running, ask, gateway_server, write_settings
from tests.page_bed import ADMIN_KEY, CLIENT_KEY, KEYS, path_of, store_answers

FILE = ROOT / "docs" / "openapi.yaml"
DESCRIPTION = yaml.safe_load(FILE.read_text(encoding="utf-8"))
OPERATIONS = schemathesis.openapi.from_path(FILE)
CHECKS: list[Any] = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
API = "/v1/"
QUESTION = "What is baked?"
BASIC = "Basic " + b64encode(f"me:{ADMIN_KEY}".encode()).decode()
BODY = {**ask(QUESTION), "prompt": "x", "input": "x"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one answer."""
    folder = tmp_path_factory.mktemp("described")
    store_answers(folder, {(QUESTION, "tiny"): "This."})
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path, upstream: Running) -> Iterator[Running]:
    """A gateway over it, with a page and keys."""
    with gateway_server(folder, upstream.url, settings=SETTINGS + KEYS) as server:
        yield server


def described() -> set[tuple[str, str]]:
    return {(path, method) for path, item in DESCRIPTION["paths"].items() for method in METHODS if method in item}


def test_every_path_and_method_outside_the_api_is_described_and_no_other(tmp_path: Path) -> None:
    made = Gateway(load(write_settings(tmp_path, SETTINGS + KEYS)))
    routes: list[Any] = [*made._others.routes, *made._admin._app.routes]  # type: ignore[union-attr]
    served = {(route.path, method.lower()) for route in routes for method in route.methods}
    assert {(path, method) for path, method in described() if not path.startswith(API)} == served


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_every_path_of_the_api_is_the_upstreams(
    gateway: Running, upstream: Running, method: str
) -> None:
    assert (f"{API}{{path}}", method) in described()
    headers = {"authorization": f"Bearer {CLIENT_KEY}"}
    for path in ("/v1/models", "/v1/some/thing"):
        through = httpx.request(method, gateway.url + path, headers=headers)
        assert through.headers["x-prebake-reason"] == "not_chat"
        assert through.status_code == httpx.request(method, upstream.url + path).status_code


def test_every_operation_answers_as_described(gateway: Running, folder: Path) -> None:
    """schemathesis compares status, content type, headers and body."""
    answered = set()
    for result in OPERATIONS.get_all_operations():
        operation = result.ok()
        post = operation.method == "post"
        if admin := operation.path.startswith("/admin"):
            body, media_type = {"verdict": "block"}, "application/x-www-form-urlencoded"
        else:
            body, media_type = BODY, "application/json"
        case = operation.Case(
            path_parameters={"path": "models", "fingerprint": path_of(folder, QUESTION).rpartition("/")[2]},
            headers={"authorization": BASIC if admin else f"Bearer {CLIENT_KEY}"},
            **({"body": body, "media_type": media_type} if post and "{path}" not in operation.path else {}),
        )
        response = case.call(base_url=gateway.url, allow_redirects=False)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code in (200, 303, 405), operation.label
        answered.add((operation.path, operation.method))
    assert answered == described()


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"authorization": "Bearer wrong"}, 401, "wrong_key"),
        ({}, 401, "no_key"),
        ({"x-long": "x" * 70_000}, 431, "headers"),
        ({"authorization": f"Bearer {CLIENT_KEY}", "cache-control": "only-if-cached"}, 504, "not_baked"),
    ],
    ids=["wrong key", "no key", "headers", "only if cached"],
)
def test_what_the_gateway_refuses_is_described(
    gateway: Running, headers: dict[str, str], status: int, reason: str
) -> None:
    operation = OPERATIONS["/v1/chat/completions"]["POST"]
    case = operation.Case(body=ask("Not baked"), media_type="application/json", headers=headers)
    response = case.call(base_url=gateway.url)
    case.validate_response(response, checks=CHECKS)
    assert (response.status_code, response.headers["x-prebake-reason"]) == (status, [reason])
    assert str(status) in DESCRIPTION["paths"]["/v1/chat/completions"]["post"]["responses"]


def test_every_reason_is_described_and_no_other() -> None:
    reasons = DESCRIPTION["components"]["headers"]["Reason"]["schema"]["enum"]
    assert len(reasons) == len(set(reasons))
    assert set(reasons) == set(map(str, chain(Reason, Bypass, Withheld, NoStore, Refused)))


def test_every_header_that_the_gateway_writes_is_described() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "gateway").glob("*.py"))
    names = "x-prebake[a-z-]*|age|cache-control|retry-after|www-authenticate"
    written = set(re.findall(rf'(?:b"|\\r\\n)({names})(?:"|: )', code))  # alone, or in a block of lines
    responses = [*DESCRIPTION["components"]["responses"].values()]
    responses += [
        answer for item in DESCRIPTION["paths"].values() for method in METHODS if method in item
        for answer in item[method]["responses"].values()
    ]  # fmt: skip
    headers = set(chain.from_iterable(answer.get("headers", ()) for answer in responses))
    named = {one["name"] for one in DESCRIPTION["components"]["parameters"].values()}
    assert headers | named == written
