"""TLS as the docs say: the page's own nginx configuration in front of the gateway, run by a real nginx.

Only ports, paths of the certificate and, where tenants come by header, who the proxy says it is are put in.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway_bed import ROOT, Running, ask, free_port, wait_until
from tests.integration.gateway.conftest import CAPITAL, PARIS

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
NAME = "llm.example.com"
# What stands around a server block: Debian's files do the same, elsewhere.
AROUND = """
daemon off;
user {user};
pid nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
{server}
}}
"""

pytestmark = pytest.mark.skipif(
    NGINX is None or shutil.which("openssl") is None,
    reason="nginx or openssl is not installed (Debian: apt-get install nginx openssl)",
)


class Proxy:
    """nginx with the docs' configuration; ``url`` is where it speaks TLS."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"https://{NAME}:{port}"
        trusted = ssl.create_default_context(cafile=str(folder / "llm.pem"))
        # The name is no real one; what is at the address must still prove that it has it.
        self.http = httpx.Client(verify=trusted, transport=_Here(trusted, NAME), timeout=20)

    def chat(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        """Ask through it."""
        return self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)


class _Here(httpx.HTTPTransport):
    """Connects to this machine, whatever the name."""

    def __init__(self, trusted: ssl.SSLContext, name: str) -> None:
        super().__init__(verify=trusted)
        self._name = name

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = self._name
        request.url = request.url.copy_with(host="127.0.0.1")
        return super().handle_request(request)


def documented() -> str:
    """The configuration on the page."""
    page = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    return str(block)


@contextmanager
def proxy(folder: Path, gateway: Running, *, tenant: str = "") -> Iterator[Proxy]:
    """nginx as documented, in front of the gateway; ``tenant`` stands for what an authentication would find."""
    port = free_port()
    certificate, key = folder / "llm.pem", folder / "llm.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}",
         "-addext", f"subjectAltName=DNS:{NAME}", "-out", str(certificate), "-keyout", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    places = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/llm.pem": str(certificate),
        "/etc/ssl/llm.key": str(key),
        "http://127.0.0.1:8300": gateway.url,
        'X-Tenant ""': f'X-Tenant "{tenant}"',
    }
    server = documented()
    for place, value in places.items():
        assert server.count(place) == 1, place
        server = server.replace(place, value)
    (folder / "nginx.conf").write_text(AROUND.format(user=getuser(), server=server))
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", "nginx.conf"], stderr=log)
    try:
        opened = Proxy(folder, port)
        wait_until(lambda: process.poll() is not None or listens(opened), 60)
        assert process.poll() is None, (folder / "nginx.log").read_text()
        yield opened
    finally:
        process.terminate()
        process.wait(20)


def listens(proxy: Proxy) -> bool:
    try:
        proxy.http.get(proxy.url)
    except httpx.ConnectError:
        return False
    return True


@pytest.fixture(scope="module")
def tls(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The page's proxy, word for word."""
    with proxy(tmp_path_factory.mktemp("nginx"), gateway) as opened:
        yield opened


def test_the_client_asks_by_https_for_hits_and_misses(tls: Proxy) -> None:
    client = openai.OpenAI(base_url=f"{tls.url}/v1", api_key="sk-test", max_retries=0, http_client=tls.http)
    assert client.chat.completions.create(**ask(CAPITAL)).choices[0].message.content == PARIS
    assert client.chat.completions.create(**ask("Not baked")).choices[0].message.content == "one two three"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert tls.chat(ask(CAPITAL)).headers["x-prebake"] == "hit"


def test_each_chunk_of_a_stream_arrives_while_the_model_waits_to_write_the_next(tls: Proxy, upstream: Running) -> None:
    request = ask("Go", "stepwise", stream=True)
    said = []
    with tls.http.stream("POST", f"{tls.url}/v1/chat/completions", json=request) as response:
        for line in filter(None, response.iter_lines()):
            if line == "data: [DONE]":
                break
            said.append(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content"))
            if said[-1]:
                httpx.post(f"{upstream.url}/open")
    assert said == ["", "one ", "two ", "three", None]


def test_no_client_can_say_who_its_tenant_is(tls: Proxy, gateway: Running) -> None:
    secret = ask("My secret?", model="mine")
    headers = {"x-tenant": "a"}
    inside = httpx.post(f"{gateway.url}/v1/chat/completions", json=secret, headers=headers)
    assert inside.headers["x-prebake"] == "hit"  # whoever reaches the gateway itself may say it
    for forged in ({"x-tenant": "a"}, {"X-TENANT": "a"}, {"x_tenant": "a"}):
        answer = tls.chat(secret, forged)
        assert (answer.headers["x-prebake"], answer.headers["x-prebake-reason"]) == ("bypass", "no_tenant")
        assert "A's secret" not in answer.text


def test_the_tenant_is_whom_the_proxy_names(gateway: Running, tmp_path: Path) -> None:
    secret = ask("My secret?", model="mine")
    with proxy(tmp_path, gateway, tenant="a") as trusted:
        answer = trusted.chat(secret, {"x-tenant": "b"})
        assert (answer.headers["x-prebake"], answer.json()["choices"][0]["message"]["content"]) == ("hit", "A's secret")


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/healthz", "/admin", "/"])
def test_what_is_not_the_api_cannot_be_reached_from_outside(tls: Proxy, path: str) -> None:
    answer = tls.http.get(tls.url + path)
    assert "prebake" not in answer.text
    assert answer.headers["server"].startswith("nginx")
