"""The page about query logs: its example lines are read by the layouts they are examples of."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import orjson

from prebake.settings import Columns
from tasks.logs.presets import PRESETS, preset_named

PAGE = (Path(__file__).parents[3] / "docs" / "logs.md").read_text(encoding="utf-8")


def test_every_preset_has_a_line_that_it_reads() -> None:
    lines = re.findall(r"```json\n(.*?)\n```", PAGE)
    assert len(lines) == len(PRESETS)
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    columns = Columns(**tomllib.loads(settings)["ingest"]["columns"])
    for name, line in zip(PRESETS, lines, strict=True):
        assert f"| `{name}` |" in PAGE
        entry = preset_named(name, columns if name == "columns" else None)(orjson.loads(line))
        assert entry.time in ("2026-10-12T12:00:00Z", 1_791_806_400)
        assert (entry.tenant, entry.user or entry.user_hash) in (("acme", "ann"), ("acme", 81))
        assert entry.body["model"] == "m"
        assert entry.body["messages"] == [{"role": "user", "content": "Hi"}]
