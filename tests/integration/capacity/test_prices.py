"""Prices: the dated table, and AWS's own answers (botocore's stubber, because moto's are constants or refusals)."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from capacity.prices import PriceError, SpotPrice, list_price, list_prices, placement_scores, spot_prices
from prebake.errors import InputError


@pytest.fixture
def ec2() -> Any:
    return boto3.client("ec2", region_name="us-east-2", aws_access_key_id="testing", aws_secret_access_key="testing")


def _price(zone: str, usd: str, hour: int) -> dict[str, Any]:
    return {
        "InstanceType": "g6.2xlarge",
        "AvailabilityZone": zone,
        "SpotPrice": usd,
        "ProductDescription": "Linux/UNIX",
        "Timestamp": datetime(2026, 1, 1, hour, tzinfo=UTC),
    }


def test_the_latest_price_of_each_zone_counts_over_all_pages(ec2: Any) -> None:
    first = {
        "SpotPriceHistory": [_price("us-east-2a", "0.30", 3), _price("us-east-2a", "0.45", 1)],
        "NextToken": "more",
    }
    second = {"SpotPriceHistory": [_price("us-east-2b", "0.31", 1), _price("us-east-2b", "0.32", 2)]}
    asked = {
        "InstanceTypes": ["g6.2xlarge"],
        "ProductDescriptions": ["Linux/UNIX"],
        "StartTime": ANY,
        "EndTime": ANY,
    }
    with Stubber(ec2) as stubber:
        stubber.add_response("describe_spot_price_history", first, asked)
        stubber.add_response("describe_spot_price_history", second, {**asked, "NextToken": "more"})
        found = spot_prices(["g6.2xlarge"], "us-east-2", client=ec2)
    assert found == [
        SpotPrice("g6.2xlarge", "us-east-2a", 0.30, datetime(2026, 1, 1, 3, tzinfo=UTC)),
        SpotPrice("g6.2xlarge", "us-east-2b", 0.32, datetime(2026, 1, 1, 2, tzinfo=UTC)),
    ]


def test_a_refusal_by_aws_names_what_was_asked(ec2: Any) -> None:
    with Stubber(ec2) as stubber:
        stubber.add_client_error("describe_spot_price_history", "UnauthorizedOperation", "no")
        with pytest.raises(PriceError, match=r"g6\.2xlarge in us-east-2"):
            spot_prices(["g6.2xlarge"], "us-east-2", client=ec2)


def test_placement_scores_by_zone_over_all_pages(ec2: Any) -> None:
    asked = {
        "InstanceTypes": ["g6.2xlarge"],
        "RegionNames": ["us-east-2"],
        "TargetCapacity": 4,
        "TargetCapacityUnitType": "units",
        "SingleAvailabilityZone": True,
    }
    first = {"SpotPlacementScores": [{"Region": "us-east-2", "AvailabilityZoneId": "use2-az1", "Score": 9}]}
    second = {"SpotPlacementScores": [{"Region": "us-east-2", "AvailabilityZoneId": "use2-az2", "Score": 3}]}
    with Stubber(ec2) as stubber:
        stubber.add_response("get_spot_placement_scores", {**first, "NextToken": "more"}, asked)
        stubber.add_response("get_spot_placement_scores", second, {**asked, "NextToken": "more"})
        scores = placement_scores(["g6.2xlarge"], ["us-east-2"], 4, client=ec2)
    assert scores == {"use2-az1": 9, "use2-az2": 3}


def test_the_table_dates_every_price() -> None:
    assert list_prices()
    assert all(row.as_of >= date(2026, 1, 1) and row.on_demand_usd > 0 for row in list_prices().values())


def test_spot_in_the_table_is_cheaper_than_on_demand() -> None:
    assert all(row.spot_usd is None or row.spot_usd < row.on_demand_usd for row in list_prices().values())


def test_a_machine_type_that_is_not_in_the_table_is_an_error_that_says_which_are() -> None:
    with pytest.raises(InputError, match=r"'h1\.large'.*known types: .*g6e\.xlarge"):
        list_price("h1.large", "us-east-1")
