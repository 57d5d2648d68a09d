"""One key for one meaning: equal exactly when the same answer may be given."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from hashlib import sha256
from typing import Any

import duckdb
import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prebake.folding import fold_text, folded_json
from prebake.request import (
    DEFAULTS,
    DELIVERY_FIELDS,
    Bypass,
    Keyed,
    canonical_request,
    key_request,
    last_user_text,
    model_request,
    read_request,
    user_turns,
)
from prebake.routes import Route, Routes

SHARED = Routes([Route(name="faq", scope="shared")], {})
FOLDED = Routes([Route(name="faq", scope="shared", fold="text")], {})
TENANTS = Routes([Route(name="faq", scope="tenant")], {})

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
spoken = texts | st.sampled_from(["What is a loan?", "  WHAT is\ta loan ", "Straße", "ﬁne Ⅻ", "ǰ̌ͅ", "", "?!"])
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]), "content": spoken | st.none()},
    optional={"name": texts, "tool_calls": st.lists(json_values, max_size=2), "refusal": st.none() | texts},
) | st.fixed_dictionaries(
    {
        "role": st.just("user"),
        "content": st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": spoken}), max_size=3),
    }
)
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(["gpt", "qwen"]), "messages": st.lists(messages, min_size=1, max_size=4)},
    optional={
        "temperature": st.none() | st.sampled_from([0, 0.0, -0.0, 0.5, 1, 1.0]),
        "top_p": st.sampled_from([1, 0.9, None]),
        "max_tokens": st.integers(1, 100),
        "max_completion_tokens": st.integers(1, 100),
        "stop": st.none() | texts | st.lists(texts, max_size=2),
        "seed": st.integers(0, 2**63),
        "tools": st.lists(json_values, max_size=2),
        "tool_choice": st.sampled_from(["auto", "none", "required"]),
        "response_format": json_values,
        "frequency_penalty": st.sampled_from([0, 0.5]),
        "stream": st.booleans(),
        "user": texts,
        "top_k": json_values,
    },
)


def body(text: str = "What is a loan?", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt", "messages": [{"role": "user", "content": text}]} | fields


def key(request: Any, routes: Routes = SHARED, tenant: str | None = None) -> bytes:
    keyed = key_request(request, routes, tenant)
    assert isinstance(keyed, Keyed), keyed
    return keyed.fingerprint


def shuffled(value: Any, data: st.DataObject) -> Any:
    """The same JSON with every object's keys in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], data) for name in data.draw(st.permutations(list(value)))}
    return [shuffled(inner, data) for inner in value] if isinstance(value, list) else value


class TestSameMeaningSameKey:
    @given(bodies, st.data())
    def test_whatever_the_order_of_json_keys(self, request: dict[str, Any], data: st.DataObject) -> None:
        assert key_request(shuffled(request, data), FOLDED) == key_request(request, FOLDED)

    @given(bodies, st.data())
    def test_whether_a_default_is_given_null_or_left_out(self, request: dict[str, Any], data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(DEFAULTS)))
        without = {field: value for field, value in request.items() if field != name}
        expected = key_request(without, SHARED)
        assert key_request(without | {name: None}, SHARED) == expected
        assert key_request(without | {name: DEFAULTS[name]}, SHARED) == expected

    @given(bodies, json_values, st.sampled_from(sorted(DELIVERY_FIELDS)))
    def test_however_it_is_delivered(self, request: dict[str, Any], value: Any, field: str) -> None:
        assert key_request(request | {field: value}, SHARED) == key_request(
            {name: value for name, value in request.items() if name != field}, SHARED
        )

    def test_and_another_delivery_needs_no_template_of_its_own(self) -> None:
        routes = Routes([Route(name="faq", scope="shared")], {})
        assert len({key(body(user=f"user-{number}", stream=number % 2 == 0), routes) for number in range(10)}) == 1
        assert len(routes.templates) == 1

    @given(spoken, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
    def test_whatever_the_unicode_form_where_text_is_folded(self, text: str, form: Any) -> None:
        # Numerals such as ½ and ² keep their form, since another one would be another number.
        assume(form in ("NFC", "NFD") or not any(each.isnumeric() and not each.isdecimal() for each in text))
        assert key(body(unicodedata.normalize(form, text)), FOLDED) == key(body(text), FOLDED)

    @pytest.mark.parametrize("other", ["WHAT IS A LOAN", " what  is\na loan ?", "what is a loan?!", "What is a loan。"])
    def test_whatever_case_white_space_and_closing_marks_where_text_is_folded(self, other: str) -> None:
        assert key(body(other), FOLDED) == key(body(), FOLDED)
        assert key(body(other), SHARED) != key(body(), SHARED)

    def test_one_text_part_is_a_plain_string(self) -> None:
        parts = [{"type": "text", "text": "What is a loan?"}]
        assert key({"model": "gpt", "messages": [{"role": "user", "content": parts}]}) == key(body())

    def test_whole_floats_are_integers_and_one_stop_is_a_list(self) -> None:
        assert key(body(max_tokens=5.0, temperature=-0.0)) == key(body(max_tokens=5, temperature=0))
        assert key(body(stop="x")) == key(body(stop=["x"]))

    def test_the_limit_has_two_names(self) -> None:
        assert (
            key(body(max_completion_tokens=5))
            == key(body(max_tokens=5))
            == key(body(max_completion_tokens=5, max_tokens=9))
        )

    def test_models_of_one_alias_share(self) -> None:
        routes = Routes([Route(name="faq", scope="shared")], {"chat": ["gpt-4o*", "qwen"]})
        assert (
            key(body(model="gpt-4o-mini"), routes) == key(body(model="qwen"), routes) == key(body(model="chat"), routes)
        )
        assert key(body(model="other"), routes) != key(body(model="qwen"), routes)


CHANGES: dict[str, list[Any]] = {
    "temperature": [0, 0.5],
    "top_p": [0.5, 0.9],
    "max_tokens": [1, 2],
    "stop": ["a", ["a", "b"], ""],
    "seed": [0, 1],
    "tools": [[{"type": "function", "function": {"name": name}}] for name in "ab"],
    "tool_choice": ["required", {"type": "function", "function": {"name": "a"}}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a"}}],
    "presence_penalty": [0.5, -0.5],
    "logit_bias": [{"1": 5}, {"1": 6}],
    "parallel_tool_calls": [False, 1],
    "reasoning_effort": ["low", "high"],
    "top_k": [1, True, "1", 1.5, [1]],
    "chat_template_kwargs": [{"a": None}, {"a": 0}, {"a": False}, {}],
}


class TestOtherMeaningOtherKey:
    @pytest.mark.parametrize("field", CHANGES)
    def test_for_each_field_that_changes_the_answer(self, field: str) -> None:
        keys = {key(body(**{field: value})) for value in CHANGES[field]} | {key(body())}
        assert len(keys) == len(CHANGES[field]) + 1

    @given(bodies, bodies)
    def test_two_requests_share_a_key_only_if_their_canonical_json_is_the_same(
        self, one: dict[str, Any], other: dict[str, Any]
    ) -> None:
        first, second = key_request(one, SHARED), key_request(other, SHARED)
        if isinstance(first, Keyed) and isinstance(second, Keyed) and first == second:
            assert canonical_request(one, SHARED) == canonical_request(other, SHARED)

    @given(texts, texts)
    def test_unfolded_texts_are_the_same_only_character_by_character(self, one: str, other: str) -> None:
        assert (key(body(one)) == key(body(other))) == (one == other)

    def test_for_order_role_name_and_number_of_messages(self) -> None:
        a, b = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
        conversations = [
            [a],
            [a, b],
            [b, a],
            [a, a],
            [a | {"role": "system"}],
            [a | {"name": "x"}],
            [a | {"content": ""}],
            [a | {"content": None}],
            [a | {"content": []}],
            [a | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [a | {"content": [{"type": "text", "text": "ab", "weight": 2}]}],
            [a, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            [a, {"role": "assistant", "content": None, "tool_calls": [{"id": "2"}]}],
        ]
        keys = {key({"model": "gpt", "messages": conversation}) for conversation in conversations}
        assert len(keys) == len(conversations)

    def test_for_model_route_scope_and_knowledge(self) -> None:
        routes = [
            Route(name="faq", scope="shared"),
            Route(name="help", scope="shared"),
            Route(name="faq", scope="shared", knowledge="2"),
            Route(name="faq", scope="tenant"),
        ]
        keys = {key(body(), Routes([route], {}), "acme") for route in routes} | {key(body(model="other"))}
        assert len(keys) == 5

    @given(bodies, texts.filter(bool), texts.filter(bool))
    def test_for_each_tenant_of_a_tenant_route(self, request: dict[str, Any], one: str, other: str) -> None:
        first, second = key_request(request, TENANTS, one), key_request(request, TENANTS, other)
        if isinstance(first, Keyed) and isinstance(second, Keyed):
            assert (first.fingerprint == second.fingerprint) == (one == other)

    @pytest.mark.parametrize(
        "tenant", ["shared", "tenant/shared", "/", 'x","scope":"shared', "\0", "../shared", "tenant/", "SHARED"]
    )
    def test_no_name_of_a_tenant_reaches_the_shared_scope_or_another_tenant(self, tenant: str) -> None:
        keyed = key_request(body(), TENANTS, tenant)
        assert isinstance(keyed, Keyed)
        assert keyed.scope == f"tenant/{tenant}"
        assert keyed.fingerprint not in {key(body()), key(body(), TENANTS, "x"), key(body(), TENANTS, "a")}

    @given(bodies, spoken, st.sampled_from(["", "v2", "v3", "tenant", "shared"]))
    def test_for_each_namespace_within_the_scope(self, request: dict[str, Any], tenant: str, namespace: str) -> None:
        for routes in (FOLDED, TENANTS):
            keyed = key_request(request, routes, tenant, namespace)
            others = [
                key_request(request, routes, tenant, other) for other in ("", "v2", "v3", "v4") if other != namespace
            ]
            if isinstance(keyed, Keyed):
                assert keyed.scope.removeprefix(f"namespace/{namespace}/") in ("shared", f"tenant/{tenant}")
                assert keyed.fingerprint not in {other.fingerprint for other in others if isinstance(other, Keyed)}
                assert read_request(request, routes, tenant, namespace)[:3] == keyed
                canonical = canonical_request(request, routes, tenant, namespace)
                assert isinstance(canonical, bytes)
                assert keyed.fingerprint == sha256(canonical).digest()[:16]

    @given(st.text(max_size=70), st.text(max_size=70), st.text(max_size=10), st.text(max_size=10))
    def test_no_tenant_and_namespace_together_spell_another_pair(
        self, namespace: str, other_namespace: str, tenant: str, other_tenant: str
    ) -> None:
        one = key_request(body(), TENANTS, tenant, namespace)
        other = key_request(body(), TENANTS, other_tenant, other_namespace)
        if isinstance(one, Keyed) and isinstance(other, Keyed):
            assert (one == other) == ((tenant, namespace) == (other_tenant, other_namespace))

    @pytest.mark.parametrize("name", ["a/b", "a b", "x" * 65, "é", "v2\n", '"'])
    def test_what_is_no_namespace_has_no_key(self, name: str) -> None:
        assert key_request(body(), SHARED, None, name) is Bypass.NAMESPACE
        assert key_request(body(), SHARED, None, "v2.1_a:B-c") != key_request(body(), SHARED)

    def test_true_is_no_number_and_zero_is_not_false(self) -> None:
        assert key_request(body(temperature=True), SHARED) is Bypass.MALFORMED
        assert key_request(body(logprobs=0), SHARED) is Bypass.LOGPROBS

    def test_not_a_number_is_never_taken_for_null(self) -> None:
        for value in (math.nan, math.inf, -math.inf):
            for hidden in ({"temperature": value}, {"x": value}, {"x": [{"y": value}]}, {"logit_bias": {"5": value}}):
                # First the request with null, so that whatever is remembered of it is there to be confused with.
                null = json.loads(
                    json.dumps(hidden).replace("-Inf", "Inf").replace("Infinity", "NaN").replace("NaN", "null")
                )
                assert isinstance(key_request(body(**null), SHARED), Keyed)
                assert key_request(body(**hidden), SHARED) is Bypass.MALFORMED
            message = {"role": "user", "content": "a", "x": value}
            assert key_request(body(messages=[message]), SHARED) is Bypass.MALFORMED
            assert key_request(body(messages=[message, body()["messages"][0]]), SHARED) is Bypass.MALFORMED


class TestTheReasonWhyNot:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"messages": []}, Bypass.MALFORMED),
            ({"messages": "hello"}, Bypass.MALFORMED),
            ({"messages": [{"content": "no role"}]}, Bypass.MALFORMED),
            ({"messages": ["text"]}, Bypass.MALFORMED),
            ({"messages": [{"role": "user", "content": 5}]}, Bypass.MALFORMED),
            ({"messages": [{"role": "user", "content": ["text"]}]}, Bypass.MALFORMED),
            ({"model": None}, Bypass.MALFORMED),
            ({"temperature": "hot"}, Bypass.MALFORMED),
            ({"temperature": 1.5}, Bypass.SAMPLING),
            ({"n": 2}, Bypass.CHOICES),
            ({"logprobs": True}, Bypass.LOGPROBS),
            ({"top_logprobs": 3}, Bypass.LOGPROBS),
            ({"modalities": ["text", "audio"]}, Bypass.NON_TEXT),
            ({"audio": {"voice": "a"}}, Bypass.NON_TEXT),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, Bypass.NON_TEXT),
            ({"messages": [{"role": "assistant", "audio": {"id": "1"}}]}, Bypass.NON_TEXT),
            ({"web_search_options": {}}, Bypass.LIVE),
        ],
    )
    def test_is_said(self, fields: dict[str, Any], reason: Bypass) -> None:
        assert key_request(body(**fields), SHARED) is reason

    def test_is_the_first_of_several_whatever_their_order(self) -> None:
        fields = {"web_search_options": {}, "n": 2, "logprobs": True}
        assert key_request(body(**fields), SHARED) is Bypass.CHOICES
        assert key_request(body(**dict(reversed(fields.items()))), SHARED) is Bypass.CHOICES

    def test_is_the_route(self) -> None:
        assert key_request(body(), Routes([], {})) is Bypass.NO_ROUTE
        assert key_request(body(), Routes([Route(name="a", enabled=False)], {}), "t") is Bypass.ROUTE_OFF
        assert key_request(body(), TENANTS, None) is Bypass.NO_TENANT
        assert key_request(body(), TENANTS, "") is Bypass.NO_TENANT
        assert key_request(body(temperature=0.5), Routes([Route(name="a", scope="shared", max_temperature=0)], {})) is (
            Bypass.SAMPLING
        )


class TestNothingRaises:
    @given(json_values)
    def test_for_any_json(self, value: Any) -> None:
        assert isinstance(key_request(value, SHARED), Keyed | Bypass)

    @given(bodies, st.sampled_from(["messages", "model", *CHANGES]), json_values)
    def test_for_any_json_in_any_field(self, request: dict[str, Any], field: str, value: Any) -> None:
        for routes in (SHARED, FOLDED, Routes([Route(name="a", scope="shared", system_contains="x")], {})):
            assert isinstance(key_request(request | {field: value}, routes), Keyed | Bypass)

    @given(bodies, json_values, st.sampled_from(["role", "content", "name", "type", "text"]))
    def test_for_any_json_in_any_part_of_a_message(self, request: dict[str, Any], value: Any, field: str) -> None:
        assert isinstance(key_request(request | {"messages": [{"role": "user", field: value}]}, FOLDED), Keyed | Bypass)
        part = {"type": "text", "text": "a", field: value}
        parts = [{"role": "user", "content": [part]}]
        assert isinstance(key_request(request | {"messages": parts}, FOLDED), Keyed | Bypass)

    def test_for_what_json_cannot_say(self) -> None:
        deep: Any = []
        for _ in range(sys.getrecursionlimit() * 2):
            deep = [deep]
        for value in (deep, 2**70, -(2**70), "\ud800", {"\udfff": 1}, {1: 2}, object(), b"bytes"):
            for request in (body(x=value), body(messages=[{"role": "user", "content": "a", "x": value}])):
                assert key_request(request, FOLDED) is Bypass.MALFORMED
        assert key_request(body("\ud800"), FOLDED) is Bypass.MALFORMED
        assert key_request(body(model="\ud800"), SHARED) is Bypass.MALFORMED
        assert key_request(body(), TENANTS, "\ud800") is Bypass.MALFORMED

    @given(bodies)
    def test_and_the_body_is_left_as_it_was(self, request: dict[str, Any]) -> None:
        before = json.dumps(request)
        key_request(request, FOLDED)
        assert json.dumps(request) == before


class TestTheCanonicalRequest:
    @given(bodies, st.sampled_from([SHARED, FOLDED, TENANTS]), st.none() | texts)
    def test_is_what_the_key_is_made_of_for_any_shape_of_request(
        self, request: dict[str, Any], routes: Routes, tenant: str | None
    ) -> None:
        canonical = canonical_request(request, routes, tenant)
        for _ in range(2):  # worked out, then remembered
            keyed = key_request(request, routes, tenant)
            if isinstance(canonical, bytes):
                assert isinstance(keyed, Keyed)
                assert keyed.fingerprint == sha256(canonical).digest()[:16]
            else:
                assert keyed == canonical

    def test_is_sorted_json_without_spaces(self) -> None:
        routes = Routes([Route(name="faq", fold="text", knowledge="v2")], {})
        request = body("Was heißt „Zins“?", stream=True, top_p=1.0, temperature=0.5, max_completion_tokens=7)
        assert (
            canonical_request(request, routes, "acme")
            == (
                '{"api":"chat.completions","knowledge":"v2","messages":[{"content":"was heisst „zins“","role":"user"}],'
                '"model":"gpt","params":{"max_tokens":7,"temperature":0.5},"route":"faq","scope":"tenant/acme"}'
            ).encode()
        )

    def test_gives_anyone_the_key_in_duckdb(self) -> None:
        canonical = canonical_request(body("Größe?"), FOLDED)
        assert isinstance(canonical, bytes)
        row = duckdb.execute("select left(sha256(?), 32)", [canonical.decode()]).fetchone()
        assert row == (key(body("Größe?"), FOLDED).hex(),)

    def test_of_a_known_request_never_changes(self) -> None:
        # Changing this changes every key in every store: raise the snapshot's format and say so in the changelog.
        assert key(body()).hex() == "d170ac07a251a00921d4938586169dc3"


class TestFolding:
    @given(st.text())
    def test_twice_is_once(self, text: str) -> None:
        assert fold_text(fold_text(text)) == fold_text(text)

    @given(st.one_of(st.text(), st.text(' \t\n\x1c\x7faB5!?."\\é\u212a\u00a0…', max_size=8)))
    def test_as_json_is_the_same(self, text: str) -> None:
        assert folded_json(text) == orjson.dumps(fold_text(text))

    def test_twice_is_once_for_every_character_beside_a_mark(self) -> None:
        assigned = (c for c in map(chr, range(0x30000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs", "Lo"))
        for character in assigned:
            for text in (character, f"a{character}\u0345", f"{character}\u030c."):
                folded = fold_text(text)
                assert fold_text(folded) == folded, ascii(text)

    @given(st.text(st.characters(max_codepoint=127)))
    def test_of_plain_ascii_is_what_it_is_of_all_text(self, text: str) -> None:
        assert fold_text(text + "é") == " ".join(f"{text}é".casefold().split())
        folded = " ".join(text.casefold().split())
        assert fold_text(text).rstrip("!") == (folded.rstrip(" .!?") or folded).rstrip("!")

    @pytest.mark.parametrize(
        ("text", "folded"),
        [
            ("", ""),
            ("???", "???"),
            (" ? ! ", "? !"),
            ("A.B.", "a.b"),
            ("Ⅻ ﬁ", "xii fi"),
            ("Maße", "masse"),
            ("5!", "5!"),
            ("Wow!", "wow"),
        ],
    )
    def test_examples(self, text: str, folded: str) -> None:
        assert fold_text(text) == folded


class TestWhatTheModelIsAsked:
    def test_keeps_the_texts_as_they_were_written(self) -> None:
        request = body("  What is  a LOAN ?!", temperature=0.5, stream=True, user="ann")
        assert orjson.loads(model_request(request, FOLDED)) == {
            "messages": [{"content": "  What is  a LOAN ?!", "role": "user"}],
            "model": "gpt",
            "params": {"temperature": 0.5},
        }

    @given(bodies)
    def test_is_there_for_all_that_has_a_key_and_has_the_same_key(self, request: dict[str, Any]) -> None:
        if isinstance(key_request(request, FOLDED), Keyed):
            asked = orjson.loads(model_request(request, FOLDED))
            again = {"model": asked["model"], "messages": asked["messages"], **asked["params"]}
            assert key(again, FOLDED) == key(request, FOLDED)
            assert isinstance(last_user_text(request), str)

    @given(bodies, st.sampled_from([SHARED, FOLDED, TENANTS]), st.none() | texts)
    def test_is_read_in_one_pass_as_in_its_parts(
        self, request: dict[str, Any], routes: Routes, tenant: str | None
    ) -> None:
        for _ in range(2):  # worked out, then remembered
            found = read_request(request, routes, tenant)
            keyed = key_request(request, routes, tenant)
            if isinstance(keyed, Keyed):
                assert found == (*keyed, model_request(request, routes), user_turns(request), last_user_text(request))
            else:
                assert found == keyed

    @given(json_values)
    def test_is_a_bypass_for_what_is_no_request(self, value: Any) -> None:
        assert read_request(value, SHARED) == key_request(value, SHARED) == Bypass.MALFORMED
        assert read_request(body("\ud800"), SHARED) is Bypass.MALFORMED

    def test_refuses_what_has_no_key(self) -> None:
        with pytest.raises(ValueError, match="choices"):
            model_request(body(n=2), SHARED)

    def test_turns_and_the_last_text(self) -> None:
        parts = [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]
        conversation = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": parts},
            {"role": "tool", "content": "result"},
        ]
        assert user_turns({"messages": conversation}) == 2
        assert last_user_text({"messages": conversation}) == "two\nthree"
        assert last_user_text({"messages": [{"role": "system", "content": "be kind"}]}) == ""
