"""What is never baked, and what is despite its looks."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.routes import Route
from prebake.settings import Screen
from tasks.screen import depends_on_now, personal_data, screen

ROUTE = Route(name="faq")


def request(*messages: tuple[str, object]) -> bytes:
    return orjson.dumps(
        {"messages": [{"role": role, "content": content} for role, content in messages], "model": "m", "params": {}}
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to ann.smith@example.org please", "e-mail address"),
        ("open https://ann:secret@intranet.example.com/x", "address with a login"),
        ("my key is ghp_" + "a1B2" * 9, "key or token"),
        ("use AKIA" + "ABCDEFGHIJKLMNOP", "key or token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "key or token"),
        ("pay to DE89 3704 0044 0532 0130 00 now", "IBAN"),
        ("GB29NWBK60161331926819", "IBAN"),
        ("card 4111 1111 1111 1111 was declined", "card number"),
        ("5555-5555-5555-4444", "card number"),
        ("my SSN is 536-90-4399", "national id"),
        ("DNI 54362315K", "national id"),
        ("who is at 81.2.69.142?", "IP address"),
        ("2001:4860:4860::8888 is down", "IP address"),
        ("where is order #AB-1234567", "reference number"),
        ("ticket number 8841122", "reference number"),
        ("call me at (650) 253-0000", "phone number"),
        ("ring +49 30 901820", "phone number"),
        ("my number is 020 7031 3000", "phone number"),
    ],
)
def test_personal_data_is_found_and_named(text: str, kind: str) -> None:
    assert personal_data(text, ("US", "GB")) == kind


@pytest.mark.parametrize(
    "text",
    [
        "How do I change my PIN?",
        "What is 4111 1111 1111 1112?",  # the check digit is wrong
        "Is DE88 3704 0044 0532 0130 00 an IBAN?",
        "me @ home, twitter.com/@ann",
        "Does 192.168.0.1 or 127.0.0.1 work?",
        "version 1.2.3.4.5",
        "Explain std::vector and a::b::c",
        "In 2019 there were 1 200 300 people",
        "https://example.org/@ann",
        "Order a new card",
        "supercalifragilisticexpialidocious",
    ],
)
def test_what_only_looks_like_personal_data_is_let_through(text: str) -> None:
    assert personal_data(text, ("US", "GB")) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("What time is it in Paris?", "time"),
        ("What's happening today?", "today"),
        ("Who won last night?", "today"),
        ("What is the latest version?", "latest"),
        ("What is the current exchange rate?", "latest"),
        ("Will it rain in Oslo?", "weather"),
        ("Is there an ATM near me?", "here"),
        ("What is my balance?", "me"),
        ("Where is my order?", "me"),
        ("How much did I spend on food?", "me"),
        ("Show me my last transaction", "me"),
        ("Am I overdrawn?", "me"),
    ],
)
def test_questions_about_now_here_and_me_are_found(text: str, why: str) -> None:
    assert depends_on_now(text) == why


@pytest.mark.parametrize(
    "text",
    [
        "How do I change my PIN?",
        "Why was my card declined?",
        "How do I top up my account?",
        "My transfer has not arrived, what can I do?",
        "Can I link my card to Apple Pay?",
        "How do I open a current account?",
        "Where can I find my PIN?",
        "What is the time frame for a transfer?",
        "What are my rights as a customer?",
        "I paid by card yesterday and was charged a fee. Why?",
        "Explain how knowledge of snow helps",
    ],
)
def test_questions_with_one_answer_for_everybody_are_let_through(text: str) -> None:
    assert depends_on_now(text) is None


def test_every_message_is_searched_for_personal_data() -> None:
    asked = request(("system", "Help ann@example.org"), ("user", "How?"))
    assert screen(asked, ROUTE, Screen()) == "personal: e-mail address"
    parts = request(("user", [{"type": "text", "text": "How?"}, {"type": "text", "text": "4111111111111111"}]))
    assert screen(parts, ROUTE, Screen()) == "personal: card number"


def test_a_system_prompt_may_speak_of_today() -> None:
    assert screen(request(("system", "Give the latest policy."), ("user", "How?")), ROUTE, Screen()) is None
    assert screen(request(("user", "Give the latest policy.")), ROUTE, Screen()) == "live: latest"


def test_a_route_names_what_it_never_bakes() -> None:
    route = Route(name="faq", never=(r"\blawsuit\b",))
    assert screen(request(("user", "About the LAWSUIT")), route, Screen()) == r"never: \blawsuit\b"
    assert screen(request(("user", "About lawsuits")), route, Screen()) is None


def test_each_kind_of_screening_can_be_switched_off_but_never_means_never() -> None:
    asked = request(("user", "Mail ann@example.org today about the lawsuit"))
    assert screen(asked, ROUTE, Screen(personal=False)) == "live: today"
    assert screen(asked, ROUTE, Screen(personal=False, live=False)) is None
    route = Route(name="faq", never=("lawsuit",))
    assert screen(asked, route, Screen(personal=False, live=False)) == "never: lawsuit"


def test_national_phone_numbers_count_in_the_regions_of_the_settings_only() -> None:
    assert personal_data("030 901820", ("DE",)) == "phone number"
    assert personal_data("030 901820", ()) is None


@given(st.text(max_size=300))
def test_any_text_can_be_screened(text: str) -> None:
    screen(request(("user", text)), ROUTE, Screen())
