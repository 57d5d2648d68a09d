"""Whatever is logged, what looks like a secret is not in the line."""

from __future__ import annotations

import logging

import pytest

from prebake.redaction import RedactingFormatter, redacted


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2-hunter2",
        "authorization: hunter2",
        "{'Authorization': b'AWS4-HMAC-SHA256 Credential=hunter2', 'Host': 'x'}",
        "[(b'authorization', b'Bearer hunter2')]",
        '{"api-key": "hunter2"}',
        "X-Api-Key: hunter2",
        "sent bearer hunter2",
        "Basic aHVudGVyMg== hunter2".replace(" hunter2", ""),
        "key pbk-hunter2hunter2 was tried",
        "key sk-proj-hunter2hunter2 was tried",
        "cannot reach postgresql+psycopg://prebake:hunter2@db:5432/prebake",
        "cannot reach https://hunter2@model/v1",
    ],
)
def test_what_looks_like_a_secret_is_cut_out(text: str) -> None:
    assert "hunter2" not in redacted(text)
    assert "aHVudGVyMg" not in redacted(text)
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "serving snapshot 20261125T010203-run: 12 answers",
        "upstream http://127.0.0.1:8000/v1: unreachable: Cannot connect to host 127.0.0.1:8000",
        "s3://bucket/prefix/snapshots/current: no snapshot is published",
        "mail to joe@example.com",
    ],
)
def test_other_lines_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text


def test_tracebacks_are_redacted_too() -> None:
    try:
        raise ValueError("Bearer hunter2")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "went wrong: %s", ("sk-hunter2hunter2",), None)
        record.exc_info = (ValueError, error, error.__traceback__)
    line = RedactingFormatter().format(record)
    assert "ValueError" in line
    assert "hunter2" not in line
