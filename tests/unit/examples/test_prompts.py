"""What the simulated users ask."""

import re
from collections import Counter
from random import Random

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn

from examples import prompts
from examples.corpus import ROUTES, questions
from prebake.request import fold_text
from tasks.screen import depends_on_now, personal_data

TEXTS = [question.text for route in ROUTES for question in questions(route)]
INTENT = {route: {question.text: question.intent for question in questions(route)} for route in ROUTES}
DAYS = 30


@given(st.sampled_from(TEXTS), st.integers())
def test_folding_repairs_every_surface_change(text, seed):
    assert fold_text(prompts.surface(text, Random(seed))) == fold_text(text)


@pytest.mark.parametrize("route", ROUTES)
def test_a_one_off_prompt_never_comes_back(route):
    random = Random(1)
    one_offs = prompts.OneOffs(route, prompts.Popularity(route, DAYS, random), random)
    drawn = [fold_text(one_offs.draw(day % DAYS, random)) for day in range(3000)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("route", ROUTES)
def test_few_wordings_make_up_most_of_an_intents_questions(route):
    random = Random(2)
    popularity = prompts.Popularity(route, DAYS, random)
    drawn = [popularity.draw(0, random) for _ in range(20_000)]
    (intent, asked), *_ = Counter(INTENT[route][text] for text in drawn).most_common(1)
    by_count = [count for text, count in Counter(drawn).most_common() if INTENT[route][text] == intent]
    assert sum(by_count[:20]) > 0.5 * asked
    assert len(by_count) > 50


@pytest.mark.parametrize("route", ROUTES)
def test_new_intents_appear_in_the_last_third_of_the_log(route):
    random = Random(3)
    popularity = prompts.Popularity(route, DAYS, random)
    early, late = (
        {INTENT[route][popularity.draw(day, random)] for _ in range(30_000)} for day in (DAYS // 3, DAYS * 2 // 3)
    )
    assert len(late - early) >= prompts.NEW_INTENTS


@pytest.mark.parametrize("route", ROUTES)
def test_an_intent_bursts_on_the_last_two_days(route):
    random = Random(4)
    popularity = prompts.Popularity(route, DAYS, random)
    before, burst = ([INTENT[route][popularity.draw(day, random)] for _ in range(5000)] for day in (DAYS - 3, DAYS - 1))
    # Ordinary drift changes no intent's share by half in two days.
    assert any(burst.count(i) > 300 and burst.count(i) > 2 * before.count(i) for i in set(burst))


def _planted(route):
    random = Random(5)
    return {prompts.personal(route, random) for _ in range(500)}


@pytest.mark.parametrize("route", ROUTES)
def test_the_screen_finds_all_that_is_planted(route):
    random = Random(6)
    live = {prompts.now_or_here(route, random) for _ in range(500)}
    assert len(live) >= 6
    assert all(depends_on_now(text) for text in live)
    assert len(_planted(route)) >= 10
    assert all(personal_data(text, ("GB", "US")) for text in _planted(route))


def test_planted_card_numbers_and_ibans_pass_their_checksums():
    cards = {match for text in _planted("banking") if "card" in text for match in re.findall(r"\d[\d -]{13,}\d", text)}
    ibans = {match for text in _planted("banking") for match in re.findall(r"[A-Z]{2}\d{2}[A-Z0-9 ]{12,}\d", text)}
    assert len(cards) >= 3
    assert all(luhn.is_valid(card.replace(" ", "").replace("-", "")) for card in cards)
    assert len(ibans) >= 2
    assert all(iban.is_valid(number) for number in ibans)


def test_planted_phone_numbers_are_numbers_one_could_dial():
    texts = [text for text in _planted("assistant") if text.startswith("please call")]
    found = {text for text in texts for region in ("GB", "US") if any(phonenumbers.PhoneNumberMatcher(text, region))}
    assert len(texts) >= 3
    assert found == set(texts)


def test_planted_addresses_belong_to_nobody():
    addresses = {match for route in ROUTES for text in _planted(route) for match in re.findall(r"\S+@\S+", text)}
    assert addresses
    assert all(re.search(r"@example\.(com|net|org)\W*$", address) for address in addresses)
