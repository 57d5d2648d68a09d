"""With keys in the settings nobody gets in without one, the key says whose answers they are, and no key goes on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest

from prebake.loading import load
from tests.gateway_bed import ROOT, SETTINGS, Running, answer_to, ask, gateway_server, logged, publish, wait_until

UPSTREAM_KEY = "sk-upstream-7f3c9a1e5b"
KEYS = {name: f"pbk-test-{name}-0123456789abcdef" for name in ("acme", "other", "nobody", "metered", "counted")}
QUESTION = ask("My secret?", model="mine")


def block(name: str, **fields: Any) -> str:
    """One [[keys]] block; strings and numbers are written in Python as in TOML."""
    values = {"name": name, "sha256": sha256(KEYS[name].encode()).hexdigest(), **fields}
    return "\n[[keys]]\n" + "".join(f"{field} = {value!r}\n" for field, value in values.items())


LOCKED = (
    block("acme", tenant="acme")
    + block("other", tenant="other")
    + block("nobody")
    + block("metered", tenant="acme", requests_per_minute=3)
    + block("counted", tenant="acme", requests_per_minute=4)
    + SETTINGS
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locked")
    (folder / "prebake.toml").write_text(LOCKED)
    settings = load(folder / "prebake.toml")
    publish(folder, [answer_to(settings, QUESTION, "acme's secret", tenant="acme")])
    return folder


@pytest.fixture(scope="module")
def locked(folder: Path, upstream: Running) -> Iterator[Running]:
    """A gateway with keys of its own and one for the upstream."""
    with gateway_server(folder, upstream.url, settings=LOCKED, upstream_key=UPSTREAM_KEY) as server:
        yield server


def post(server: Running, authorization: str | None = None, **headers: str) -> httpx.Response:
    if authorization is not None:
        headers["authorization"] = authorization
    return httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, headers=headers)


def bearer(name: str) -> str:
    return f"Bearer {KEYS[name]}"


def last_headers(upstream: Running) -> dict[str, str]:
    return dict(httpx.get(f"{upstream.url}/seen").json()["requests"][-1]["headers"])


def test_the_keys_tenant_is_given_its_answers_and_no_other_is(locked: Running) -> None:
    mine, others, anonymous = (post(locked, bearer(name)) for name in ("acme", "other", "nobody"))
    assert mine.json()["choices"][0]["message"]["content"] == "acme's secret"
    assert (others.headers["x-prebake"], others.headers["x-prebake-reason"]) == ("miss", "not_baked")
    assert (anonymous.headers["x-prebake"], anonymous.headers["x-prebake-reason"]) == ("bypass", "no_tenant")


def test_a_tenant_header_changes_nothing_where_keys_are_in_force(locked: Running) -> None:
    assert post(locked, bearer("other"), **{"x-tenant": "acme"}).headers["x-prebake"] == "miss"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        KEYS["acme"],
        f"Basic {KEYS['acme']}",
        f"Bearer {KEYS['acme']}x",
        f"Bearer {KEYS['acme'][:-1]}",
        f"Bearer {sha256(KEYS['acme'].encode()).hexdigest()}",
        f"Bearer {KEYS['acme']},{KEYS['other']}",
    ],
)
def test_without_a_known_key_nobody_gets_in(locked: Running, authorization: str | None) -> None:
    refused = post(locked, authorization)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-prebake"] == "refused"
    assert refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", ["x-api-key", "api-key", "proxy-authorization", "cookie"])
def test_a_key_in_another_header_opens_nothing(locked: Running, name: str) -> None:
    assert post(locked, **{name: bearer("acme")}).status_code == 401


def test_two_keys_in_one_request_open_nothing(locked: Running) -> None:
    twice = [("authorization", bearer("acme")), ("authorization", bearer("other"))]
    assert httpx.post(f"{locked.url}/v1/chat/completions", json=QUESTION, headers=twice).status_code == 401


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER ", "Bearer   "])
def test_the_scheme_is_read_as_http_says(locked: Running, scheme: str) -> None:
    assert post(locked, scheme + KEYS["acme"]).headers["x-prebake"] == "hit"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/chat/completions"),
        ("OPTIONS", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/../v1/models"),
        ("GET", "/%761/models"),
        ("DELETE", "/v1/files/1"),
    ],
)
def test_no_path_of_the_api_is_open(locked: Running, upstream: Running, method: str, path: str) -> None:
    before = httpx.get(f"{upstream.url}/seen").json()["requests"]
    assert httpx.request(method, f"{locked.url}{path}").status_code in (401, 404)
    assert httpx.get(f"{upstream.url}/seen").json()["requests"] == before


def test_the_real_client_raises_its_own_error_and_works_with_a_key(locked: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.client.chat.completions.create(**QUESTION)
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEYS["acme"], max_retries=0)
    assert client.chat.completions.create(**QUESTION).choices[0].message.content == "acme's secret"
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_upstream_gets_its_own_key_and_none_of_the_clients(locked: Running, upstream: Running) -> None:
    post(locked, bearer("other"), **{"x-api-key": "mine", "api-key": "mine", "x-other": "kept"})
    headers = last_headers(upstream)
    assert headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert not {"x-api-key", "api-key"} & set(headers)
    assert headers["x-other"] == "kept"


def test_without_a_key_for_the_upstream_it_gets_none(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, settings=LOCKED) as server:
        assert post(server, bearer("other")).status_code == 200
        assert "authorization" not in last_headers(upstream)


def test_one_request_too_many_in_a_minute_is_told_when_to_come_back(locked: Running) -> None:
    answers = [post(locked, bearer("metered")) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["x-prebake"] for answer in answers[:4]] == ["hit", "hit", "hit", "refused"]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    with pytest.raises(openai.RateLimitError):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEYS["metered"], max_retries=0).models.list()
    assert post(locked, bearer("acme")).status_code == 200  # another key of the same tenant


def test_a_miss_behind_a_head_that_is_known_counts_once(locked: Running) -> None:
    hit = orjson.dumps(QUESTION)
    headers = {"authorization": bearer("counted"), "content-type": "application/json"}
    with httpx.Client(base_url=f"{locked.url}/v1", headers=headers) as client:
        bodies = [hit, hit, hit.replace(b"secret", b"sacred"), hit, hit]
        answers = [client.post("/chat/completions", content=body) for body in bodies]
    assert [answer.headers["x-prebake"] for answer in answers] == ["hit", "hit", "miss", "hit", "refused"]


def test_no_secret_is_in_any_log_error_metric_or_page(folder: Path, locked: Running, upstream: Running) -> None:
    shown = [post(locked, bearer("acme")), post(locked, bearer("other")), post(locked, "Bearer pbk-unknown-secret-1")]
    shown += [httpx.get(f"{locked.url}{path}") for path in ("/metrics", "/readyz", "/healthz", "/v1/models", "/x")]
    wait_until(lambda: logged(folder))
    text = "".join(str(answer.headers) + answer.text for answer in shown) + str(logged(folder))
    text += locked.log.read_text()
    doctor = [sys.executable, "-m", "prebake", "--settings", str(folder / "prebake.toml"), "doctor", "--json"]
    text += subprocess.run(doctor, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for secret in (*KEYS.values(), UPSTREAM_KEY, "pbk-unknown-secret-1"):
        assert secret not in text
        assert sha256(secret.encode()).hexdigest() not in text
    assert 'prebake_refused_total{reason="wrong_key"}' in text


def test_trouble_on_the_way_up_is_logged_without_secrets(tmp_path: Path) -> None:
    with gateway_server(tmp_path, "http://127.0.0.1:9", settings=LOCKED, upstream_key=UPSTREAM_KEY) as server:
        failed = post(server, bearer("other"))
        assert failed.status_code == 502
        text = server.log.read_text() + failed.text
    assert "unreachable" in text
    assert KEYS["other"] not in text
    assert UPSTREAM_KEY not in text


def test_prebake_key_makes_a_key_that_opens_the_door(tmp_path: Path, upstream: Running) -> None:
    command = [sys.executable, "-m", "prebake", "key", "new-app", "--tenant", "acme", "--requests-per-minute", "100"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    key = next(line for line in printed.splitlines() if line.startswith("pbk-"))
    toml = "[[keys]]" + printed.partition("[[keys]]")[2]
    assert tomllib.loads(toml)["keys"][0]["tenant"] == "acme"
    assert key not in toml
    with gateway_server(tmp_path, upstream.url, settings=toml + SETTINGS) as server:
        assert post(server, f"Bearer {key}").status_code == 200
        assert post(server, bearer("acme")).status_code == 401


def test_a_name_that_is_none_makes_no_key() -> None:
    done = subprocess.run([sys.executable, "-m", "prebake", "key", "No Name"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "key: name" in done.stderr
    assert "pbk-" not in done.stdout
