"""The example's words fit together: questions, answers, settings."""

import pytest

from examples.corpus import HERE, OUT_OF_SCOPE, ROUTES, SYSTEM, answers, questions
from examples.make_log import MODELS, TENANTS
from prebake import loading
from prebake.request import Keyed, key_request


@pytest.mark.parametrize("route", ROUTES)
def test_every_intent_has_one_answer_of_its_own(route):
    assert set(answers(route)) == {question.intent for question in questions(route)}
    assert len(set(answers(route).values())) == len(answers(route))


@pytest.mark.parametrize("route", ROUTES)
def test_answers_are_one_or_two_short_sentences(route):
    for answer in answers(route).values():
        assert len(answer.split()) <= 25
        assert answer[0].isupper()
        assert answer[-1] in ".!?"


@pytest.mark.parametrize("route", ROUTES)
def test_no_question_stands_twice(route):
    texts = [question.text for question in questions(route)]
    assert len(set(texts)) == len(texts) > 10_000


def test_out_of_scope_requests_are_told_so():
    assert "cannot help" in answers("assistant")[OUT_OF_SCOPE]


@pytest.mark.parametrize("route", ROUTES)
def test_the_settings_send_each_tenants_requests_to_its_route(route):
    routes = loading.load(HERE / "prebake.toml").route_table
    for tenant in TENANTS[route]:
        for model in MODELS:
            body = {
                "model": model,
                "messages": [{"role": "system", "content": SYSTEM[route]}, {"role": "user", "content": "Hello"}],
                "temperature": 0,
            }
            keyed = key_request(body, routes, tenant.name)
            assert isinstance(keyed, Keyed)
            assert keyed.route.name == route


def test_bank_customers_share_answers_and_the_assistants_tenants_do_not():
    routes = loading.load(HERE / "prebake.toml").route_table
    keys = {
        route: {
            key_request(
                {"model": "help-desk-1", "messages": [{"role": "system", "content": SYSTEM[route]}], "temperature": 0},
                routes,
                tenant.name,
            ).fingerprint
            for tenant in TENANTS[route]
        }
        for route in ROUTES
    }
    assert len(keys["banking"]) == 1
    assert len(keys["assistant"]) == len(TENANTS["assistant"])
