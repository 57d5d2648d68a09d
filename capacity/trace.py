"""Availability and price traces: what spot capacity each zone had, tick by tick.

In: a folder in SkyNomad's layout, or our own table as CSV, Parquet or JSON (docs/spot.md gives the formats). Out: one
``Trace`` on a common grid of ticks. Memory: 12 bytes per zone and tick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from prebake.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Trace:
    """What each zone offered in each tick. A zone is any place and machine type that is bought by itself."""

    zones: tuple[str, ...]
    start: datetime
    tick_h: float
    available: Ints
    """Spot machines to be had, by tick and zone; 0: none, running ones are preempted."""
    spot_usd: Floats
    """Dollars per hour of a spot machine, by tick and zone."""
    on_demand_usd: Floats
    """Dollars per hour of an on-demand machine, by zone."""
    speed: Floats
    """Work that a machine does per hour, by zone: 1 everywhere unless machine types differ."""

    @property
    def ticks(self) -> int:
        """How many ticks there are."""
        return len(self.available)

    @property
    def hours(self) -> float:
        """How long it lasts."""
        return self.ticks * self.tick_h

    def time(self, tick: float) -> datetime:
        """When a tick begins."""
        return self.start + timedelta(hours=tick * self.tick_h)

    def window(self, first: int, ticks: int) -> Trace:
        """The same zones for ``ticks`` ticks from ``first``."""
        rows = slice(first, first + ticks)
        return Trace(
            self.zones,
            self.time(first),
            self.tick_h,
            self.available[rows],
            self.spot_usd[rows],
            self.on_demand_usd,
            self.speed,
        )


def load_trace(path: Path) -> Trace:
    """The trace in a CSV, Parquet or JSON file, or in a folder of zones in SkyNomad's layout.

    Raises InputError naming the file, the zone and what was expected.
    """
    if path.is_dir():
        return _load_folder(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}
    if path.suffix not in readers:
        raise InputError(f"{path}: not a trace; expected a folder of zones or a .csv, .parquet or .json file")
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such trace") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as a trace: {_words(error)}; docs/spot.md has the format") from None


def _words(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else (str(error).splitlines() or ["no content"])[0]


def _load_folder(folder: Path) -> Trace:
    files = sorted(folder.glob("*/full.json")) or sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder}: no trace here; expected ZONE/full.json or ZONE.json with metadata and data")
    zones = [_read_zone(file) for file in files]
    first = zones[0]
    for file, zone in zip(files, zones, strict=True):
        if abs(zone["tick_s"] - first["tick_s"]) > 1e-6:
            raise InputError(f"{file}: ticks of {zone['tick_s']} s beside {first['tick_s']} s; all zones need the same")
    tick = timedelta(seconds=first["tick_s"])
    begins = max(zone["start"] for zone in zones)
    skips = [round((begins - zone["start"]) / tick) for zone in zones]
    ticks = min(len(zone["available"]) - skip for zone, skip in zip(zones, skips, strict=True))
    if ticks < 1:
        raise InputError(f"{folder}: the zones' times do not overlap; give each trace of the same weeks")
    cut = [
        {**zone, **{key: zone[key][skip : skip + ticks] for key in ("available", "spot_usd")}}
        for zone, skip in zip(zones, skips, strict=True)
    ]
    return _trace({zone["name"]: zone for zone in cut}, begins, first["tick_s"])


def _read_zone(file: Path) -> dict[str, Any]:
    """One zone in SkyNomad's layout, where ``data`` is 1 where the machine was preempted or not to be had."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        metadata, preempted = content["metadata"], np.asarray(content["data"])
        price = metadata.get("price_info") or {}
        spot = np.asarray(content.get("prices") or np.full(len(preempted), float(price["price"])), np.float64)
        return {
            "name": metadata.get("zone") or file.parent.name,
            "start": _utc(metadata["start_time"]),
            "tick_s": float(metadata["gap_seconds"]),
            "available": _available_where_not_preempted(preempted),
            "spot_usd": spot[: len(preempted)],
            "on_demand_usd": float(price["on_demand_price"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a zone's trace: {_words(error)}; expected metadata, data and prices") from None


def _available_where_not_preempted(preempted: npt.NDArray[Any]) -> Ints:
    if len(preempted) == 0 or not np.isin(preempted, (0, 1)).all():
        raise ValueError("data must be a list of 0 (available) and 1 (preempted)")
    return np.asarray(1 - preempted, np.int32)


def _read_json(path: Path) -> Trace:
    content = json.loads(path.read_text(encoding="utf-8"))
    return _trace(content["zones"], _utc(content["start"]), float(content["tick_s"]))


def _read_csv(path: Path) -> Trace:
    return _from_table(pa.csv.read_csv(path))


def _read_parquet(path: Path) -> Trace:
    return _from_table(pa.parquet.read_table(path))


def _from_table(table: pa.Table) -> Trace:
    """Rows (time, zone, available, spot_usd, on_demand_usd[, speed]), one for each zone and tick."""
    rows = table.sort_by("time").to_pylist()
    times = sorted({_utc(row["time"]) for row in rows})
    if len(times) < 2:
        raise ValueError("it needs at least two times")
    steps = {(later - before).total_seconds() for before, later in pairwise(times)}
    if len(steps) > 1:
        raise ValueError(f"times must be evenly spaced, found steps of {min(steps):g} s and {max(steps):g} s")
    zones: dict[str, dict[str, Any]] = {}
    for row in rows:
        zone = zones.setdefault(str(row["zone"]), {"available": [], "spot_usd": []})
        zone["available"].append(row["available"])
        zone["spot_usd"].append(row["spot_usd"])
        zone["on_demand_usd"] = row["on_demand_usd"]
        zone["speed"] = row.get("speed", 1.0)
    for name, zone in zones.items():
        if len(zone["available"]) != len(times):
            raise ValueError(f"zone {name} has {len(zone['available'])} rows for {len(times)} times")
    return _trace(zones, times[0], steps.pop())


def _trace(zones: Mapping[str, Mapping[str, Any]], start: datetime, tick_s: float) -> Trace:
    if not zones:
        raise ValueError("it has no zones")
    ticks = len(next(iter(zones.values()))["available"])
    trace = Trace(
        tuple(zones),
        start,
        tick_s / 3600,
        np.asarray([zone["available"] for zone in zones.values()], np.int32).T,
        np.asarray([np.broadcast_to(zone["spot_usd"], ticks) for zone in zones.values()], np.float64).T,
        np.asarray([zone["on_demand_usd"] for zone in zones.values()], np.float64),
        np.asarray([zone.get("speed", 1.0) for zone in zones.values()], np.float64),
    )
    _check(trace)
    return trace


def _check(trace: Trace) -> None:
    if trace.tick_h <= 0 or trace.ticks == 0:
        raise ValueError("a tick must last longer than nothing, and there must be one")
    wrong: Sequence[tuple[str, npt.NDArray[np.bool_]]] = (
        ("available must be 0 or more", trace.available < 0),
        ("spot_usd must be above 0", ~(trace.spot_usd > 0)),
        ("on_demand_usd must be above 0", ~(trace.on_demand_usd > 0)),
        ("speed must be above 0", ~(trace.speed > 0)),
    )
    for expected, mask in wrong:
        if mask.any():
            zone = trace.zones[int(np.argwhere(mask)[0][-1])]
            raise ValueError(f"zone {zone}: {expected}")


def _utc(value: Any) -> datetime:
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
