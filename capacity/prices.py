"""What machines cost: live from AWS, or from a dated table where AWS cannot be asked.

In: machine types and regions. Out: spot prices per zone, placement scores per region, on-demand prices from the table.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from prebake.errors import InputError, PrebakeError

TABLE = Path(__file__).with_name("prices.csv")
# Prices and scores are advice: whoever asks goes on without, and must not wait minutes for an address that is silent.
_CONFIG: Final = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 2})


class PriceError(PrebakeError):
    """The cloud does not say what its machines cost."""


@dataclass(frozen=True)
class ListPrice:
    """A machine type's price in the dated table."""

    machine_type: str
    region: str
    on_demand_usd: float
    spot_usd: float | None
    """Dollars per hour, where the table has it: a level seen then, not a price now."""
    as_of: date


@dataclass(frozen=True)
class SpotPrice:
    """The latest spot price of a machine type in a zone."""

    machine_type: str
    zone: str
    usd: float
    since: datetime


@cache
def list_prices() -> dict[tuple[str, str], ListPrice]:
    """The dated table, by machine type and region."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [
            ListPrice(
                row["machine_type"],
                row["region"],
                float(row["on_demand_usd"]),
                float(row["spot_usd"]) if row["spot_usd"] else None,
                date.fromisoformat(row["as_of"]),
            )
            for row in csv.DictReader(file)
        ]
    return {(row.machine_type, row.region): row for row in rows}


def list_price(machine_type: str, region: str) -> ListPrice:
    """One row of the dated table. Raises InputError where it is not in it."""
    try:
        return list_prices()[machine_type, region]
    except KeyError:
        known = ", ".join(sorted({name for name, _ in list_prices()}))
        raise InputError(
            f"no list price of {machine_type!r} in {region!r}; known types: {known}. Set the price in the settings"
        ) from None


def spot_prices(machine_types: list[str], region: str, *, client: Any = None) -> list[SpotPrice]:
    """The latest Linux spot price of each type in each zone of the region, by type and zone, as AWS has it now."""
    now = datetime.now(UTC)
    latest: dict[tuple[str, str], SpotPrice] = {}
    request = {
        "InstanceTypes": machine_types,
        "ProductDescriptions": ["Linux/UNIX"],
        "StartTime": now - timedelta(hours=1),  # answers with the price in force then and each change since
        "EndTime": now,
    }
    try:
        ec2 = client or _ec2(region)
        for page in ec2.get_paginator("describe_spot_price_history").paginate(**request):
            for row in page["SpotPriceHistory"]:
                found = SpotPrice(
                    row["InstanceType"], row["AvailabilityZone"], float(row["SpotPrice"]), row["Timestamp"]
                )
                key = (found.machine_type, found.zone)
                if key not in latest or latest[key].since < found.since:
                    latest[key] = found
    except (ClientError, BotoCoreError) as error:
        raise PriceError(f"spot prices of {', '.join(machine_types)} in {region}: {error}") from error
    return [latest[key] for key in sorted(latest)]


def placement_scores(
    machine_types: list[str], regions: list[str], machines: int, *, client: Any = None
) -> dict[str, int]:
    """AWS's advice by zone id, 1 to 10: how likely it is to grant that many spot machines now. Not a promise."""
    request = {
        "InstanceTypes": machine_types,
        "RegionNames": regions,
        "TargetCapacity": machines,
        "TargetCapacityUnitType": "units",
        "SingleAvailabilityZone": True,
    }
    scores: dict[str, int] = {}
    token: dict[str, str] = {}
    try:
        ec2 = client or _ec2(regions[0])
        while True:
            answer = ec2.get_spot_placement_scores(**request, **token)
            scores |= {row["AvailabilityZoneId"]: row["Score"] for row in answer["SpotPlacementScores"]}
            if not answer.get("NextToken"):
                return scores
            token = {"NextToken": answer["NextToken"]}
    except (ClientError, BotoCoreError) as error:
        raise PriceError(f"spot placement scores of {', '.join(machine_types)}: {error}") from error


def _ec2(region: str) -> Any:
    return boto3.client("ec2", region_name=region, config=_CONFIG)
