"""Search in the answers that the nights have written. In: a text, a route, a page. Out: a few rows, newest first.

The answers table is asked by DuckDB with one thread and bounded memory, so that a search leaves the processors to hits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Timer
from typing import Any

import duckdb
import orjson

from prebake.errors import InputError
from prebake.tables import ANSWERS
from storage.catalog import connect_answers
from storage.delta import DeltaTable
from storage.objects import Objects

PAGE_ROWS = 20
LONGEST_S = 20.0
_COLUMNS = (
    "fingerprint, route, scope, prompt, status, message, error, finish_reason, model, run_id, prompt_tokens, "
    "completion_tokens, baked_at, expires_at"
)


@dataclass(frozen=True)
class Found:
    """One answer as the table has it; the newest of its fingerprint."""

    fingerprint: str
    route: str
    scope: str
    prompt: str
    status: str
    message: str | None
    error: str | None
    finish_reason: str | None
    model: str
    run_id: str
    prompt_tokens: int
    completion_tokens: int
    baked_at: datetime
    expires_at: datetime

    @property
    def text(self) -> str:
        """What a person would read: the content, the refusal, or the message as JSON."""
        try:
            message = orjson.loads(self.message or "{}")
        except orjson.JSONDecodeError:
            return self.message or ""
        for name in ("content", "refusal"):
            if isinstance(message, dict) and isinstance(text := message.get(name), str) and text:
                return text
        return self.error or (orjson.dumps(message, option=orjson.OPT_INDENT_2).decode() if message else "")


@dataclass(frozen=True)
class Page:
    """Some of the answers found, and whether there are more."""

    answers: tuple[Found, ...]
    more: bool


def search(objects: Objects, *, text: str = "", route: str = "", page: int = 0) -> Page:
    """Answers whose prompt or message contains the text in any case, or whose fingerprint it is.

    Raises InputError if it takes too long, StorageError if the store cannot be read.
    """
    rows = _ask(
        objects,
        f"select {_COLUMNS} from answers_current "
        "where ($text = '' or contains(lower(prompt), lower($text)) or contains(lower(message), lower($text)) "
        "or fingerprint = lower($text)) and ($route = '' or route = $route) "
        "order by baked_at desc, fingerprint limit $most offset $first",
        {"text": text.strip(), "route": route, "most": PAGE_ROWS + 1, "first": page * PAGE_ROWS},
    )
    return Page(tuple(rows[:PAGE_ROWS]), len(rows) > PAGE_ROWS)


def find(objects: Objects, fingerprint: str) -> Found | None:
    """The newest answer of that fingerprint."""
    query = f"select {_COLUMNS} from answers_current where fingerprint = $fingerprint"
    return next(iter(_ask(objects, query, {"fingerprint": fingerprint})), None)


def _ask(objects: Objects, query: str, values: dict[str, Any]) -> Sequence[Found]:
    with connect_answers(DeltaTable(ANSWERS, objects)) as connection:
        connection.execute(f"set threads = 1; set memory_limit = '1GB'; set temp_directory = '{_temporary()}'")
        timer = Timer(LONGEST_S, connection.interrupt)
        timer.start()
        try:
            return [Found(*row) for row in connection.execute(query, values).fetchall()]
        except duckdb.InterruptException:
            raise InputError(
                f"the search took longer than {LONGEST_S:.0f} s; choose a route, or use: prebake sql"
            ) from None
        finally:
            timer.cancel()


def _temporary() -> str:
    return tempfile.gettempdir().replace("'", "''")
