"""The gateway's page as a person meets it: in Chromium, with the real answers behind it, on a desk and on a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.gateway_bed import SETTINGS, Running, ask, gateway_server, upstream_server, wait_until
from tests.page_bed import ADMIN_KEY, APPROVAL, CLIENT_KEY, KEYS, store_answers

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ATTACK = "</span><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">{{ 7 * 7 }}"
CAPITAL, PARIS = "What is the capital of France?", "Paris, on the Seine."
TEXTS = {
    (CAPITAL, "tiny"): PARIS,
    ("Tell me about " + ATTACK, "tiny"): "No: " + ATTACK,
    ("How do I activate my card?", "careful"): "In the app, under Cards.",
    ("What does a transfer to another bank cost?", "tiny"): "Nothing, within the country. " * 30,
    ("x" * 3000, "tiny"): "y" * 3000,
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    store_answers(folder, TEXTS)
    prices = '[prices.online]\n"*" = {input_usd_per_million = 500, output_usd_per_million = 1500}\n'
    with (
        upstream_server(folder) as upstream,
        gateway_server(folder, upstream.url, settings=SETTINGS + APPROVAL + KEYS + prices) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, gateway: Running) -> Iterator[Any]:
    """A page of somebody with the admin key; what it complains about fails the test."""
    credentials = {"username": "me", "password": ADMIN_KEY}
    context = browser.new_context(http_credentials=credentials, base_url=gateway.url)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    context.close()
    assert [text for text in complaints if "favicon" not in text and "404" not in text] == []


def asked(gateway: Running, text: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {CLIENT_KEY}"}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=ask(text), headers=headers)


def keep(page: Any, name: str) -> None:
    """A picture for a person, where one is wanted."""
    if folder := os.environ.get("PREBAKE_TEST_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_somebody_finds_an_answer_blocks_it_and_frees_it(page: Any, gateway: Running) -> None:
    page.goto("/admin")
    page.get_by_role("searchbox").fill("capital of")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".answers li")).to_have_count(1)
    page.get_by_role("link", name=CAPITAL).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(CAPITAL)
    expect(page.locator("pre")).to_have_text(PARIS)
    expect(page.locator(".mark")).to_have_text(["served"])
    keep(page, "answer")
    page.get_by_label("Note").fill("The Seine has moved.")
    page.get_by_role("button", name="Block").click()
    expect(page.locator(".mark").first).to_have_text("blocked")
    expect(page.locator(".verdict")).to_contain_text("The Seine has moved.")
    wait_until(lambda: asked(gateway, CAPITAL).headers["x-prebake"] != "hit")
    page.get_by_role("button", name="Unblock").click()
    expect(page.locator(".mark").first).to_have_text("served")
    wait_until(lambda: asked(gateway, CAPITAL).headers["x-prebake"] == "hit")


def test_somebody_approves_an_answer(page: Any) -> None:
    page.goto("/admin?route=careful")
    page.get_by_role("link", name="activate").click()
    expect(page.locator(".mark")).to_have_text(["waits for approval"])
    page.get_by_role("button", name="Approve").click()
    expect(page.locator(".mark")).to_have_text(["served", "approved"])


def test_what_is_stored_cannot_take_over_the_page(page: Any) -> None:
    page.goto("/admin?q=Tell+me")
    expect(page.locator(".prompt")).to_have_text("Tell me about " + ATTACK)
    assert page.title() == "prebake"
    page.locator(".answers a").click()
    expect(page.locator("pre")).to_have_text("No: " + ATTACK)
    assert re.fullmatch("[0-9a-f]{32}", page.title())
    page.goto("/admin?q=" + "%22%3E%3Cscript%3Edocument.title='taken'%3C/script%3E")
    expect(page.get_by_role("searchbox")).to_have_value("\"><script>document.title='taken'</script>")
    assert page.locator("script").count() == 0
    assert page.title() == "prebake"


def test_hits_and_savings_are_drawn_and_fit_a_desk_and_a_phone_by_day_and_by_night(page: Any, gateway: Running) -> None:
    for text in (CAPITAL, CAPITAL, "Never asked before?"):
        asked(gateway, text)

    def drawn() -> bool:
        page.goto("/admin")
        return bool(page.locator("rect.hits").count() and page.locator("rect.misses").count())

    wait_until(drawn, 30)
    expect(page.locator(".tiles")).to_contain_text("hit ratio")
    expect(page.locator("rect.saved")).to_have_count(page.locator("rect.hits").count())
    ground = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ground.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for name, width in (("desk", 1280), ("phone", 375)):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, name)
            keep(page, f"{name}-{scheme}")
    assert ground[0] != ground[1]


def test_without_the_key_there_is_nothing_to_see(browser: Any, gateway: Running) -> None:
    context = browser.new_context(base_url=gateway.url)
    response = context.request.get("/admin")
    assert response.status == 401
    assert PARIS not in response.text()
    context.close()
