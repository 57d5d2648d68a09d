"""Keeps secrets out of what is printed: keys, credentials in headers and in addresses. In: text. Out: safe text.

A second line of defence: nothing here is meant to be logged in the first place.
"""

from __future__ import annotations

import logging
import re

_SECRETS = (
    (re.compile(r"(?i)\b((?:proxy-)?authorization|x-api-key|api-key)(\W{1,8}(?:b['\"])?)[^'\"\r\n]+"), r"\1\2***"),
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{4,}"), r"\1 ***"),
    (re.compile(r"\b(pbk|sk)-[\w-]{8,}"), r"\1-***"),  # our own keys, and OpenAI's kind
    (re.compile(r"://[^/\s@'\"]+@"), "://***@"),
)


def redacted(text: str) -> str:
    """The text without what looks like a key, a credential header or a password in an address."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Writes log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return redacted(super().format(record))


def log_to_stderr(level: int) -> None:
    """Send the log of this process to standard error, redacted. Does nothing where a log is configured already."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
