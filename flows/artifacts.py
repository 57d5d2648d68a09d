"""What a run shows on Prefect's pages. In: the night's page, the plan, the progress of the bake. Out: artifacts.

An artifact is for looking at: where Prefect's server cannot be reached the night goes on without it, and says so.
"""

from __future__ import annotations

import base64
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import duckdb
import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from prebake.progress import Advance
from storage.store import Store
from tasks.report import NightPage

T = TypeVar("T")

_TOP_ROWS: Final = 100
_PROGRESS_EVERY_S: Final = 3.0
_TOP_COLUMNS: Final = (
    "prompt", "route", "decision", "reason", "requests", "users", "expected_hits", "value_usd", "cost_usd",
)  # fmt: skip
_TOP_SQL: Final = """
    select
        case when length(prompt) > 120 then prompt[:119] || '…' else prompt end, route, decision, reason,
        requests, users, round(expected_hits, 1), round(value_usd, 6), round(cost_usd, 6)
    from plan where plan_id = $plan_id order by value_usd desc, fingerprint limit $rows
"""

_logger = logging.getLogger(__name__)


def show_page(page: NightPage, top: list[dict[str, Any]]) -> None:
    """Leave the night's summary, its picture, the plan's decisions and its most valuable rows as artifacts."""
    picture = f"data:image/png;base64,{base64.b64encode(page.png).decode()}"
    # Prefect's first pages show the embedded picture; the second ones strip data URIs from Markdown and show the
    # text in the brackets, so the picture is an artifact of its own as well.
    summary = f"{page.markdown}\n\n![The picture: see the artifact night-picture]({picture})\n"
    _try(lambda: create_markdown_artifact(summary, key="night", description="What the night did"))
    _try(lambda: create_image_artifact(picture, key="night-picture", description="What the plan reaches"))
    decisions = [dict(row) for row in page.table]
    _try(lambda: create_table_artifact(decisions, key="plan-decisions", description="The plan by decision and reason"))
    _try(lambda: create_table_artifact(top, key="plan", description=f"The plan's {len(top)} most valuable rows"))


def top_of_plan(store: Store, plan_id: str) -> list[dict[str, Any]]:
    """The most valuable rows of a plan with decision and reason, at most 100."""
    with duckdb.connect() as connection:
        connection.register("plan", store.plan.scan())
        found = connection.execute(_TOP_SQL, {"plan_id": plan_id, "rows": _TOP_ROWS})
        return [dict(zip(_TOP_COLUMNS, row, strict=True)) for row in found.fetchall()]


class BakeProgress:
    """Progress of the bake as a progress artifact, written by a thread of its own so that the engine never waits."""

    def __init__(self) -> None:
        self.done, self.total = 0, 0

    @contextmanager
    def track(self, what: str, total: int | None) -> Iterator[Advance]:
        """Follow one piece of work; only the bake, which takes hours, gets an artifact."""
        if what != "bake" or not total:
            yield lambda _units: None
            return
        self.done, self.total = 0, total
        finished = threading.Event()
        context = contextvars.copy_context()  # the run that the artifact belongs to
        writer = threading.Thread(target=context.run, args=(self._write, finished), daemon=True, name="bake-progress")
        writer.start()
        try:
            yield self._advance
        finally:
            finished.set()
            writer.join(_PROGRESS_EVERY_S)

    def _advance(self, units: int) -> None:
        self.done += units

    def _write(self, finished: threading.Event) -> None:
        artifact = _try(lambda: cast(UUID, create_progress_artifact(0.0, key="bake", description=self._text())))
        shown = 0
        while artifact is not None and not (finished.wait(_PROGRESS_EVERY_S) and shown == self.done):
            shown = self.done
            _try(lambda: update_progress_artifact(artifact, 100 * self.done / self.total, description=self._text()))

    def _text(self) -> str:
        return f"{self.done:,} of {self.total:,} answers"


def _try(write: Callable[[], T]) -> T | None:
    try:
        return write()
    except (httpx.HTTPError, OSError) as error:
        _logger.warning("an artifact could not be written, the night goes on: %s", error)
        return None
