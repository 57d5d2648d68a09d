"""The gateway's own page over HTTP: who may see it, what it finds, and that a click has its effect in seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from storage.objects import open_objects
from storage.verdicts import read_verdicts
from tests.gateway_bed import ROOT, SETTINGS, Running, ask, gateway_server, settings_of, wait_until, write_settings
from tests.page_bed import APPROVAL, CLIENT_KEY, KEYS, page_of, path_of, store_answers

QUESTIONS = [f"Question number {number}?" for number in range(30)]
CAPITAL, PARIS = "What is the capital of France?", "Paris, on the Seine."
EVIL = "<script>alert(1)</script>"
CARD, ACTIVATED = "How do I activate my card?", "In the app, under Cards."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("admin")
    texts = {**{question: f"Answer to {question}" for question in QUESTIONS}, EVIL: "<b>bold</b>", CAPITAL: PARIS}
    store_answers(folder, {(text, "tiny"): answer for text, answer in texts.items()} | {(CARD, "careful"): ACTIVATED})
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path, upstream: Running) -> Iterator[Running]:
    with gateway_server(folder, upstream.url, settings=SETTINGS + APPROVAL + KEYS) as server:
        yield server


def test_without_an_admin_key_in_the_settings_there_is_no_page(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url) as gateway:
        for path in ("/admin", "/admin/style.css", f"/admin/answers/{'0' * 32}"):
            assert page_of(gateway).get(path).status_code == 404


@pytest.mark.parametrize("password", [None, "", "wrong", CLIENT_KEY])
def test_only_an_admin_key_opens_the_page(gateway: Running, password: str | None) -> None:
    with page_of(gateway, password) as page:
        for method, path in (("GET", "/admin"), ("GET", "/admin/style.css"), ("POST", f"/admin/answers/{'0' * 32}")):
            response = page.request(method, path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"].startswith("Basic ")
            assert PARIS not in response.text


def test_the_page_allows_no_script_no_frame_and_nothing_from_elsewhere(gateway: Running) -> None:
    response = page_of(gateway).get("/admin")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert response.headers["cache-control"] == "no-store"
    assert "<script" not in response.text
    assert not re.search(r'(src|href)="(?!/admin)', response.text)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "CAPITAL of"}, [CAPITAL]),
        ({"q": "on the seine"}, [CAPITAL]),
        ({"q": "number 17?"}, ["Question number 17?"]),
        ({"route": "careful"}, [CARD]),
        ({"q": "capital", "route": "careful"}, []),
        ({"q": "100% certain_not'; drop"}, []),
    ],
)
def test_answers_are_found_by_text_and_route(gateway: Running, query: dict[str, str], found: list[str]) -> None:
    text = page_of(gateway).get("/admin", params=query).text
    assert re.findall(r'<span class="prompt">(.*?)</span>', text) == found


def test_an_answer_is_found_by_its_fingerprint(gateway: Running, folder: Path) -> None:
    path = path_of(folder, CAPITAL)
    fingerprint = path.rpartition("/")[2]
    assert path in page_of(gateway).get("/admin", params={"q": fingerprint.upper()}).text
    one = page_of(gateway).get(path).text
    assert PARIS in one
    assert "night-model" in one


def test_pages_of_answers_hold_each_once(gateway: Running) -> None:
    seen: list[str] = []
    for number in range(4):
        text = page_of(gateway).get("/admin", params={"q": "question number", "page": number}).text
        seen += re.findall(r'<span class="prompt">(.*?)</span>', text)
    assert sorted(seen) == sorted(QUESTIONS)


@pytest.mark.parametrize("page", ["-1", "1e9", "x", "9999999999999", "²"])
def test_a_page_that_is_no_number_is_the_first(gateway: Running, page: str) -> None:
    response = page_of(gateway).get("/admin", params={"page": page})
    assert (response.status_code, 'class="prompt"' in response.text) == (200, True)


def test_what_was_stored_is_shown_as_text_and_never_as_markup(gateway: Running) -> None:
    text = page_of(gateway).get("/admin", params={"q": EVIL}).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;bold" in text
    assert "<script>" not in text
    assert "<b>bold" not in text


def test_a_click_blocks_an_answer_and_another_frees_it(gateway: Running, folder: Path) -> None:
    def outcome() -> tuple[str, str | None]:
        headers = {"authorization": f"Bearer {CLIENT_KEY}"}
        response = httpx.post(f"{gateway.url}/v1/chat/completions", json=ask(CAPITAL), headers=headers)
        return response.headers["x-prebake"], response.headers.get("x-prebake-reason")

    path = path_of(folder, CAPITAL)
    assert outcome() == ("hit", None)
    with page_of(gateway) as page:
        done = page.post(path, data={"verdict": "block", "note": "wrong <b>price"}, headers={"origin": gateway.url})
        assert (done.status_code, done.headers["location"]) == (303, path)
        wait_until(lambda: outcome()[1] == "blocked")
        shown = page.get(path).text
        assert "wrong &lt;b&gt;price" in shown
        assert "Unblock" in shown
        page.post(path, data={"verdict": "unblock"})
        wait_until(lambda: outcome() == ("hit", None))


def test_an_answer_is_approved_as_it_was_read_and_not_as_it_may_be_now(gateway: Running, folder: Path) -> None:
    def outcome() -> str:
        headers = {"authorization": f"Bearer {CLIENT_KEY}"}
        url = f"{gateway.url}/v1/chat/completions"
        return httpx.post(url, json=ask(CARD, "careful"), headers=headers).headers["x-prebake"]

    path = path_of(folder, CARD, "careful")
    with page_of(gateway) as page:
        shown = page.get(path).text
        assert "waits for approval" in shown
        assert outcome() != "hit"
        assert page.post(path, data={"verdict": "approve", "digest": "0" * 32}).status_code == 409
        assert page.post(path, data={"verdict": "approve"}).status_code == 409
        (digest,) = re.findall(r'name="digest" value="([0-9a-f]{32})"', shown)
        assert page.post(path, data={"verdict": "approve", "digest": digest}).status_code == 303
        wait_until(lambda: outcome() == "hit")
        assert "approved" in page.get(path).text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_a_click_on_another_site_changes_nothing(gateway: Running, folder: Path, headers: dict[str, str]) -> None:
    path = path_of(folder, QUESTIONS[0])
    done = page_of(gateway).post(path, data={"verdict": "block"}, headers=headers)
    assert done.status_code == 403
    store = settings_of(folder).store
    assert path.rpartition("/")[2] not in read_verdicts(open_objects(store)).blocked


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/admin/answers/zz", {"verdict": "block"}, 404),
        (f"/admin/answers/{'A' * 32}", {"verdict": "block"}, 404),
        (f"/admin/answers/{'0' * 32}", {"verdict": "destroy"}, 400),
        (f"/admin/answers/{'0' * 32}", {}, 400),
        (f"/admin/answers/{'0' * 32}", {"verdict": "block", "note": "x" * 10_000}, 413),
    ],
)
def test_a_form_that_is_not_ours_is_refused(gateway: Running, path: str, data: dict[str, str], status: int) -> None:
    assert page_of(gateway).post(path, data=data).status_code == status


def test_an_answer_that_is_not_there_is_a_page_that_says_so(gateway: Running) -> None:
    response = page_of(gateway).get(f"/admin/answers/{'0' * 32}")
    assert response.status_code == 404
    assert "There is no answer" in response.text


def test_hits_and_savings_are_on_the_page_as_soon_as_they_are_logged(tmp_path: Path, upstream: Running) -> None:
    store_answers(tmp_path, {("Known?", "tiny"): "Yes."})
    prices = '[prices.online]\n"tiny" = {input_usd_per_million = 1000000, output_usd_per_million = 1000000}\n'
    with gateway_server(tmp_path, upstream.url, settings=SETTINGS + KEYS + prices) as gateway:
        for text in ("Known?", "Known?", "Known?", "Unknown?"):
            headers = {"authorization": f"Bearer {CLIENT_KEY}"}
            httpx.post(f"{gateway.url}/v1/chat/completions", json=ask(text), headers=headers)
        wait_until(lambda: "hits of 4 requests" in page_of(gateway).get("/admin").text)
        text = page_of(gateway).get("/admin").text
    assert "<b>75.0%</b>" in text
    assert "<b>51</b><span>tokens saved" in text
    assert "<b>$51.00</b>" in text
    assert "UTC: 3 hits</title>" in text


def test_serve_opens_the_page_in_a_browser_when_asked(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    file = write_settings(tmp_path, SETTINGS + KEYS)
    command = [sys.executable, "-m", "prebake", "--settings", str(file), "serve", "--port", "0", "--open"]
    environment = {**os.environ, "BROWSER": str(browser)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("serving on ").strip()
            wait_until(lambda: seen.exists() and seen.read_text())
        finally:
            process.terminate()
    assert seen.read_text() == f"{address}/admin\n"


def test_serve_cannot_open_a_page_that_nobody_may_see(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prebake", "--settings", str(write_settings(tmp_path)), "serve", "--open"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "prebake key NAME --admin" in done.stderr


def test_a_store_that_cannot_be_read_is_said_on_the_page(tmp_path: Path, upstream: Running) -> None:
    store_answers(tmp_path, {("Known?", "tiny"): "Yes."})
    for log in (tmp_path / "prebake-store/tables/answers/_delta_log").iterdir():
        log.write_bytes(b"damaged")
    with gateway_server(tmp_path, upstream.url, settings=SETTINGS + KEYS) as gateway:
        response = page_of(gateway).get("/admin")
        assert response.status_code == 200
        assert 'class="problem"' in response.text
        assert "Traceback" not in response.text
