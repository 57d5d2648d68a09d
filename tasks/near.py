"""The near index of a snapshot, and the thresholds beside it. In: answers, plan, judged pairs. Out: ``near.mdb``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from prebake.manifest import NEAR
from prebake.near import Embedding, question_of, without_question
from prebake.request import fingerprint_of
from prebake.settings import Settings
from storage.near_index import Question, build_near_index
from storage.scratch import open_scratch
from storage.store import Store
from tasks.calibrate import calibrate

_BATCH: Final = 10_000
# Whole answers in words only: a call of tools answers one request, not another like it.
_SQL: Final = """
    select distinct on (answers.fingerprint) answers.fingerprint, answers.route, answers.scope, plan.request
    from answers join plan using (plan_id, fingerprint)
    where answers.route in (select unnest($routes)) and answers.expires_at > $now
      and answers.status = 'answered' and answers.finish_reason = 'stop'
    order by answers.fingerprint
"""


def write_near(store: Store, settings: Settings, now: datetime, folder: Path) -> dict[str, Any]:
    """Write the near index into ``folder``; returns what the manifest says of it. Nothing where no route wants it.

    Raises SettingsError if the embedding cannot be loaded, InputError if the judged pairs cannot be read.
    """
    if all(route.near == "off" for route in settings.routes):
        return {}
    embedding = Embedding(settings.near.model)
    build_near_index(folder / NEAR, near_questions(store, settings, now), embedding)
    return {"near": calibrate(settings, embedding)}


def near_questions(store: Store, settings: Settings, now: datetime) -> Iterator[Question]:
    """The questions of one turn and no tools that have an answer at ``now`` on a route that looks for near misses.

    A question whose key is another under today's settings is left out: its answer cannot be asked for either.
    """
    routes = {route.name: route for route in settings.routes if route.near != "off" and route.enabled}
    with open_scratch(settings) as connection:
        connection.register("answers", store.answers.scan())
        connection.register("plan", store.plan.scan())
        reader = connection.sql(_SQL, params={"routes": list(routes), "now": now}).to_arrow_reader(_BATCH)
        for batch in reader:
            for row in batch.to_pylist():
                request, route, scope = orjson.loads(row["request"]), routes[row["route"]], row["scope"]
                text = question_of({**request["params"], "messages": request["messages"]})
                if text is not None and fingerprint_of(request, route, scope) == row["fingerprint"]:
                    group = fingerprint_of(without_question(request), route, scope)
                    yield Question(row["fingerprint"], group, text)
