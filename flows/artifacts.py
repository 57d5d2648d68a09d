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
    TableArtifact,
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from prebake.progress import Advance
from prebake.pulse import Look, Pulse
from storage.store import Store
from tasks.report import NightPage

T = TypeVar("T")

_TOP_ROWS: Final = 100
_PROGRESS_EVERY_S: Final = 3.0
_LAST_WORD_S: Final = 5.0
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
    """The bake as artifacts, a progress and a table, written by a thread of its own so that the engine never waits."""

    def __init__(self) -> None:
        self.last: Pulse | None = None

    @contextmanager
    def track(self, what: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's signature
        """Nothing: only the bake, which takes hours, gets artifacts."""
        yield lambda _units: None

    @contextmanager
    def watch(self, look: Look) -> Iterator[None]:
        """Write what the bake looks like every few seconds and at its end; that stays. Nothing to bake: nothing."""
        start = look()
        if start.answers >= start.planned:
            yield
            return
        ended = threading.Event()
        context = contextvars.copy_context()  # the run that the artifacts belong to
        writer = threading.Thread(
            target=context.run, args=(self._write, look, ended), daemon=True, name="bake-progress"
        )
        writer.start()
        try:
            yield
        finally:
            self.last = look()
            ended.set()
            writer.join(_LAST_WORD_S)

    def _write(self, look: Look, ended: threading.Event) -> None:
        bar: UUID | None = None
        table: UUID | None = None
        over = False
        while not over:
            over = ended.is_set()
            pulse = look()
            bar = _try(lambda: _show_bar(bar, pulse)) or bar  # noqa: B023 - called at once
            table = _try(lambda: _show_table(table, pulse)) or table  # noqa: B023
            ended.wait(_PROGRESS_EVERY_S)


def _show_bar(artifact: UUID | None, pulse: Pulse) -> UUID:
    share = 100 * pulse.answers / pulse.planned if pulse.planned else 100.0
    if artifact is None:
        return cast(UUID, create_progress_artifact(share, key="bake", description=pulse.sentence()))
    return cast(UUID, update_progress_artifact(artifact, share, description=pulse.sentence()))


def _show_table(artifact: UUID | None, pulse: Pulse) -> UUID:
    rows = [{"figure": name, "value": value} for name, value in pulse.figures().items()]
    if artifact is None:
        return cast(UUID, create_table_artifact(rows, key="bake-progress", description=f"Plan {pulse.plan_id}"))
    data = cast(str, TableArtifact(table=rows).format())
    get_client(sync_client=True).update_artifact(artifact_id=artifact, artifact=ArtifactUpdate(data=data))
    return artifact


def _try(write: Callable[[], T]) -> T | None:
    try:
        return write()
    except (httpx.HTTPError, OSError) as error:
        _logger.warning("an artifact could not be written, the night goes on: %s", error)
        return None
