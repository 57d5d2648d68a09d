"""What the forms of nightly and backfill ask for, and what they refuse, without a server."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from flows.backfill import backfill
from flows.bake_worker import bake_worker
from flows.nightly import nightly
from flows.run import last_full_day, run_name

DAYS = {"start": "2026-11-01", "end": "2026-11-03"}


@pytest.mark.parametrize("flow", [nightly, backfill, bake_worker], ids=["nightly", "backfill", "bake-worker"])
def test_every_parameter_has_a_help_text(flow: Flow[..., Any]) -> None:
    for name, parameter in parameter_schema(flow).properties.items():
        assert parameter.get("description"), f"{flow.name}: {name} has no help text"


def test_a_backfill_needs_both_its_days_and_a_night_needs_nothing() -> None:
    assert parameter_schema(backfill).required == ["start", "end"]
    assert parameter_schema(nightly).required == []
    assert parameter_schema(bake_worker).required == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": "yesterday"},
        {"end": "2026-13-01"},
        {"redo": "everything"},
        {"routes": 7},
        {"wait_minutes": -1},
        {"wait_minutes": 1441},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused_before_anything_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterTypeError):
        backfill.validate_parameters(DAYS | wrong)


def test_words_of_the_form_become_the_types_of_the_night() -> None:
    values = backfill.validate_parameters(DAYS | {"redo": "counts", "wait_minutes": "5"})
    assert values["start"] == date(2026, 11, 1)
    assert values["redo"].counts
    assert values["wait_minutes"] == 5


@pytest.mark.parametrize(
    ("due", "day"),
    [
        ("2026-11-23T02:00:00+00:00", date(2026, 11, 22)),
        ("2026-11-23T00:00:00+00:00", date(2026, 11, 22)),
        ("2026-11-23T01:30:00+02:00", date(2026, 11, 21)),
    ],
)
def test_a_night_takes_the_last_full_day_before_it_was_due(
    due: str, day: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect.runtime.flow_run.scheduled_start_time", datetime.fromisoformat(due), raising=False)
    assert last_full_day() == day


def test_a_run_is_named_for_its_days_and_its_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.runtime.flow_run.parameters", {"routes": ["banking", "travel"]}, raising=False)
    assert run_name("nightly", "2026-11-22") == "nightly 2026-11-22 banking travel"
