"""What each layout of a query log says: time, body, user, tenant, tokens."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.errors import SettingsError
from prebake.settings import Columns
from tasks.logs.presets import Entry, preset_named
from tasks.logs.times import latest_us, parse_time, zone_named
from tasks.logs.trouble import NotARequestError, RowError

MESSAGES = [{"role": "user", "content": "How do I reset my password?"}]
BODY = {"model": "gpt-4o", "messages": MESSAGES, "temperature": 0}
BERLIN = ZoneInfo("Europe/Berlin")
NOON_US = 1_791_806_400_000_000  # 2026-10-12 12:00 UTC


def read(preset: str, row: dict[str, Any], **columns: str) -> Entry:
    return preset_named(preset, Columns(**columns) if columns else None)(row)


# --- openai


def test_a_bare_chat_body_has_its_time_and_tenant_beside_what_the_model_is_asked() -> None:
    row = {**BODY, "timestamp": "2026-10-12T12:00:00Z", "user": "ann", "tenant": "acme", "id": "r1"}
    entry = read("openai", row)
    assert (entry.time, entry.user, entry.tenant) == ("2026-10-12T12:00:00Z", "ann", "acme")
    assert set(entry.body) - {"user"} == set(BODY)


def test_a_batch_line_has_its_request_under_body_and_its_time_in_the_metadata() -> None:
    body = {**BODY, "metadata": {"created": 1_791_806_400, "tenant": "acme"}, "safety_identifier": "ann"}
    entry = read("openai", {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body})
    assert (entry.time, entry.user, entry.tenant) == (1_791_806_400, "ann", "acme")
    assert entry.body == body


def test_a_batch_line_for_another_endpoint_is_passed_over() -> None:
    with pytest.raises(NotARequestError, match="not a chat request"):
        read("openai", {"url": "/v1/embeddings", "body": {"model": "m", "input": "x"}})


def test_tokens_come_from_the_usage_of_the_response() -> None:
    row = {"body": BODY, "response": {"body": {"usage": {"prompt_tokens": 12, "completion_tokens": 34}}}}
    entry = read("openai", row)
    assert (entry.prompt_tokens, entry.completion_tokens) == (12, 34)


# --- prebake


def test_the_gateways_own_log_has_the_user_hashed_already() -> None:
    now = datetime(2026, 10, 12, 12, tzinfo=UTC)
    row = {
        "ts": now,
        "tenant": "acme",
        "user_hash": -5,
        "body": orjson.dumps(BODY).decode(),
        "cache": "hit",
        "status": 200,
    }
    entry = read("prebake", row)
    assert (entry.time, entry.tenant, entry.user, entry.user_hash, entry.cache) == (now, "acme", None, -5, "hit")
    assert entry.body == BODY


def test_what_the_gateway_could_not_have_answered_is_passed_over() -> None:
    with pytest.raises(NotARequestError, match="not answered"):
        read("prebake", {"ts": None, "body": "{}", "status": 502})


# --- litellm

LITELLM = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "startTime": "2026-10-12T12:00:00.123000Z",
    "model": "openai/gpt-4o-2026",
    "model_group": "gpt-4o",
    "user": "key-owner",
    "end_user": "ann",
    "team_id": "acme",
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "status": "success",
    "messages": "{}",
    "proxy_server_request": orjson.dumps({**BODY, "user": "ann"}).decode(),
}


def test_a_litellm_row_gives_the_clients_own_body() -> None:
    entry = read("litellm", LITELLM)
    assert entry == Entry("2026-10-12T12:00:00.123000Z", {**BODY, "user": "ann"}, "acme", "ann", 12, 34)


def test_an_old_litellm_row_gives_its_messages_and_the_model_the_client_named() -> None:
    entry = read("litellm", {**LITELLM, "proxy_server_request": {}, "messages": MESSAGES, "end_user": ""})
    assert entry.body == {"messages": MESSAGES, "model": "gpt-4o"}
    assert entry.user == "key-owner"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"proxy_server_request": "{}"}, RowError, "store_prompts_in_spend_logs"),
        ({"status": "failure"}, NotARequestError, "not answered"),
        ({"call_type": "aembedding"}, NotARequestError, "not a chat request"),
        ({"prompt_tokens": "many"}, RowError, "prompt_tokens: expected a whole number"),
        (
            {
                "proxy_server_request": {
                    "messages": [{"role": "user", "content": "a... (litellm_truncated skipped 9 chars) ...b"}]
                }
            },
            RowError,
            "LiteLLM has cut the text",
        ),
    ],
)
def test_a_litellm_row_without_the_whole_request_says_so(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read("litellm", {**LITELLM, **change})


# --- langfuse


def test_a_generation_of_langfuses_api() -> None:
    row = {
        "type": "GENERATION",
        "startTime": "2026-10-12T12:00:00.000Z",
        "model": "gpt-4o",
        "modelParameters": {"temperature": 0},
        "input": MESSAGES,
        "usageDetails": {"input": 12, "output": 34, "total": 46},
        "userId": "ann",
        "metadata": {"tenant": "acme"},
    }
    assert read("langfuse", row) == Entry("2026-10-12T12:00:00.000Z", BODY, "acme", "ann", 12, 34)


def test_a_generation_of_langfuses_blob_storage_export_has_json_in_texts() -> None:
    row = {
        "type": "GENERATION",
        "start_time": "2026-10-12 12:00:00.000000",
        "provided_model_name": "gpt-4o",
        "model_parameters": '{"temperature":"0","max_tokens":"inf"}',
        "input": orjson.dumps({"messages": MESSAGES}).decode(),
        "usage_details": '{"input":"12","output":"34"}',
        "user_id": "ann",
    }
    assert read("langfuse", row) == Entry("2026-10-12 12:00:00.000000", BODY, None, "ann", 12, 34)


def test_a_plain_prompt_of_langfuse_is_one_user_message() -> None:
    assert read("langfuse", {"input": MESSAGES[0]["content"], "model": "m"}).body["messages"] == MESSAGES


def test_spans_of_langfuse_are_passed_over() -> None:
    with pytest.raises(NotARequestError, match="not a generation"):
        read("langfuse", {"type": "SPAN", "input": "x"})


# --- columns


def test_columns_are_found_by_dotted_paths_through_objects_and_through_json_in_texts() -> None:
    row = {"at": 1, "q": {"text": "Hi"}, "llm": "m", "who": '{"id": 7, "org": "acme"}', "tokens.in": "12"}
    entry = read(
        "columns",
        row,
        time="at",
        prompt="q.text",
        model="llm",
        user="who.id",
        tenant="who.org",
        prompt_tokens="tokens.in",
    )
    assert entry == Entry(1, {"messages": [{"role": "user", "content": "Hi"}], "model": "m"}, "acme", "7", 12, None)


def test_a_column_may_hold_the_whole_body() -> None:
    assert read("columns", {"req": orjson.dumps(BODY).decode()}, body="req").body == BODY


def test_a_reason_never_quotes_what_the_row_holds() -> None:
    for row in ({"body": "ann@example.org"}, {"body": BODY, "user": ["ann@example.org"]}):
        with pytest.raises(RowError) as error:
            read("openai", row)
        assert "ann" not in str(error.value)


# --- times


@pytest.mark.parametrize(
    "value",
    [
        "2026-10-12T12:00:00Z",
        "2026-10-12T14:00:00+02:00",
        "2026-10-12 14:00:00",  # in Berlin
        1_791_806_400,
        1_791_806_400.0,
        "1791806400",
        1_791_806_400_000,
        1_791_806_400_000_000,
        1_791_806_400_000_000_000,
        datetime(2026, 10, 12, 14),  # noqa: DTZ001 - a naive time is what is meant
        datetime(2026, 10, 12, 12, tzinfo=UTC),
    ],
)
def test_one_moment_is_read_from_every_way_of_writing_it(value: Any) -> None:
    assert parse_time(value, BERLIN) == NOON_US


@pytest.mark.parametrize(
    "value", [None, True, "", "noon", "nan", float("inf"), [], 5, -1, "1999-12-31T00:00:00Z", "9" * 400]
)
def test_what_is_no_time_is_said_to_be_none(value: Any) -> None:
    with pytest.raises(RowError, match="time"):
        parse_time(value, BERLIN)


@given(st.datetimes(datetime(2000, 1, 2), datetime(2200, 1, 1), timezones=st.timezones()))  # noqa: DTZ001
def test_an_iso_time_keeps_its_microsecond_in_every_zone(moment: datetime) -> None:
    exact = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parse_time(moment.isoformat(), UTC) == exact


@given(st.text() | st.floats() | st.integers())
def test_any_text_or_number_is_a_time_or_a_row_error(value: Any) -> None:
    with contextlib.suppress(RowError):
        assert 946_684_800_000_000 <= parse_time(value, UTC) <= 9_000_000_000_000_000


def test_the_latest_time_lies_the_allowed_hours_ahead() -> None:
    assert latest_us(datetime(2026, 10, 12, tzinfo=UTC), 12) == NOON_US


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "Europe", ""])
def test_a_time_zone_that_does_not_exist_is_a_settings_error(name: str) -> None:
    with pytest.raises(SettingsError, match="IANA time zone"):
        zone_named(name)
