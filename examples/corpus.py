"""The example's words: real questions by intent (examples/data), our answers (answers.toml), two system prompts.

In: the two Parquet files and the TOML file beside this module. Out: plain dictionaries keyed by intent.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import pyarrow.parquet as pq

HERE: Final = Path(__file__).parent
OUT_OF_SCOPE: Final = "oos"  # the intent that CLINC150 gives to requests no assistant can serve

RouteName = Literal["banking", "assistant"]
ROUTES: Final[tuple[RouteName, ...]] = ("banking", "assistant")

_FILES: Final[Mapping[RouteName, str]] = {"banking": "banking77.parquet", "assistant": "clinc150.parquet"}
SYSTEM: Final[Mapping[RouteName, str]] = {
    "banking": "You are the help desk of a mobile bank.",
    "assistant": "You are a personal assistant.",
}


@dataclass(frozen=True)
class Question:
    """One question that somebody really asked."""

    text: str
    intent: str
    split: str


@cache
def questions(route: RouteName) -> tuple[Question, ...]:
    """All distinct questions of a route in the order of the file; of equal texts the first stands."""
    rows = pq.read_table(HERE / "data" / _FILES[route], columns=["text", "intent", "split"]).to_pylist()
    return tuple({row["text"]: Question(**row) for row in reversed(rows)}.values())[::-1]


@cache
def answers(route: RouteName) -> Mapping[str, str]:
    """The answer to each intent of a route."""
    with (HERE / "answers.toml").open("rb") as file:
        table: dict[str, str] = tomllib.load(file)[route]
    return table
