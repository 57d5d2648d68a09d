"""Times as logs write them, to microseconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from prebake.errors import SettingsError
from prebake.tables import TIME
from tasks.logs.trouble import RowError

_UTC: Final = ZoneInfo("UTC")
_read_iso: Final = datetime.fromisoformat
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_US: Final = 946_684_800_000_000  # 2000-01-01: anything before is a wrong unit or a broken clock
_LATEST_US: Final = 9_000_000_000_000_000  # 2255
_EXPECTED: Final = "expected ISO 8601 or seconds, milli-, micro- or nanoseconds since 1970"


def parse_time(value: Any, zone: tzinfo) -> int:
    """Microseconds since 1970 in UTC of an ISO 8601 text, a datetime or a number (its unit told by its size).

    A time that names no zone is taken in ``zone``; an hour that the clocks repeat is taken as its first pass.
    Raises RowError for anything else, and for times before the year 2000 or after 2255.
    """
    if isinstance(value, str):
        try:
            moment = _of_datetime(_read_iso(value), zone)
        except (ValueError, OverflowError):
            moment = _of_number_text(value)
    elif isinstance(value, datetime):
        moment = _of_datetime(value, zone)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        moment = _of_number(value)
    else:
        raise RowError(f"no time that can be read, {_EXPECTED}")
    if not _EARLIEST_US <= moment <= _LATEST_US:
        raise RowError("the time lies before the year 2000 or after 2255; is its unit right?")
    return moment


def parse_times(values: pa.BinaryArray, is_text: bool, zone: tzinfo, latest_us: int) -> npt.NDArray[np.int64]:
    """What :func:`parse_time` makes of the JSON texts or numbers, all at once; -1 for what it refuses or is later."""
    times = _of_plain_texts(values, zone) if is_text else None
    if times is None:
        found = values.dictionary_encode()
        each = [_or_refused(value, is_text, zone) for value in found.dictionary.to_pylist()]
        times = np.array(each, np.int64)[found.indices.to_numpy()]
    times[(times < _EARLIEST_US) | (times > min(_LATEST_US, latest_us))] = -1
    return times


def _of_plain_texts(values: pa.BinaryArray, zone: tzinfo) -> npt.NDArray[np.int64] | None:
    """Times as most programs write them, by Arrow; None if there are others among them, or some without their zone."""
    texts = values.cast(pa.string())
    for kind in (TIME, pa.timestamp("us")) if zone == _UTC else (TIME,):
        try:
            return np.array(texts.cast(kind).cast(pa.int64()))
        except pa.ArrowInvalid:
            continue
    return None


def _or_refused(value: bytes, is_text: bool, zone: tzinfo) -> int:
    try:
        return parse_time(value.decode() if is_text else orjson.loads(value), zone)
    except RowError:
        return -1


def _of_datetime(value: datetime, zone: tzinfo) -> int:
    if value.tzinfo is None:
        value = value.replace(tzinfo=zone)
    since = value - _EPOCH  # faster than dividing by a timedelta, exact where timestamp()'s double is not
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _of_number(value: float) -> int:
    try:
        for below, per_unit in ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1)):
            if value < below:
                return int(value * per_unit)
        return int(value // 1_000)
    except (OverflowError, ValueError):
        raise RowError(f"no time that can be read, {_EXPECTED}") from None


def _of_number_text(value: str) -> int:
    try:
        number = int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise RowError(f"no time that can be read, {_EXPECTED}") from None
    return _of_number(number)


def latest_us(now: datetime, max_future_hours: float) -> int:
    """The latest time a row may have, in microseconds since 1970."""
    return (now + timedelta(hours=max_future_hours) - _EPOCH) // timedelta(microseconds=1)


def zone_named(name: str) -> ZoneInfo:
    """The IANA time zone; SettingsError if there is none of that name."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # unknown; a folder of zones; a path out of them
        raise SettingsError(
            f"ingest.time_zone: {name!r} is no IANA time zone; expected one like Europe/Berlin"
        ) from None
