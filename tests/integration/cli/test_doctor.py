"""What ``prebake doctor`` finds at the services it asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from typer.testing import CliRunner

from prebake.cli.app import app
from tests.integration.cli.test_commands import prebake

ZONES = """
[store]
root = "store"
[gateway]
upstream = "http://127.0.0.1:9/v1"
[capacity]
workers = "groups"
max_machines = 3
"""


def zone(name: str, machine_type: str) -> str:
    """A zone of the settings file."""
    return f'[[capacity.zones]]\nname = "{name}"\nmachine_type = "{machine_type}"\nspot_group = "spot-{name}"\n'


def findings(folder: Path, settings: str, about: str) -> list[dict[str, Any]]:
    """What doctor says of one thing, run in this process, so that a test may stand in for AWS."""
    file = folder / "prebake.toml"
    file.write_text(settings)
    run = CliRunner().invoke(app, ["--settings", str(file), "doctor", "--json"])
    assert run.exit_code == 1, run.output  # no model is set
    return [row for row in json.loads(run.stdout)["findings"] if row["what"].startswith(about)]


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client that doctor makes, for botocore's stubber: moto has no placement scores."""
    client = boto3.client("ec2", region_name="us-east-2", aws_access_key_id="testing", aws_secret_access_key="testing")
    monkeypatch.setattr("capacity.prices.boto3.client", lambda *_args, **_options: client)
    return client


def test_it_shows_awss_score_of_each_zone_where_spot_machines_are_bought(ec2: Any, tmp_path: Path) -> None:
    asked = {
        "InstanceTypes": ["g6.2xlarge", "g6e.xlarge"],
        "RegionNames": ["us-east-2"],
        "TargetCapacity": 3,
        "TargetCapacityUnitType": ANY,
        "SingleAvailabilityZone": True,
    }
    scores = [("use2-az2", 3), ("use2-az1", 9)]
    answer = {
        "SpotPlacementScores": [
            {"Region": "us-east-2", "AvailabilityZoneId": name, "Score": score} for name, score in scores
        ]
    }
    settings = ZONES + zone("us-east-2a", "g6e.xlarge") + zone("us-east-2b", "g6.2xlarge")
    with Stubber(ec2) as stubber:
        stubber.add_response("get_spot_placement_scores", answer, asked)
        found = findings(tmp_path, settings, "spot")
        stubber.assert_no_pending_responses()
    assert [(row["what"], row["state"], row["detail"]) for row in found] == [
        ("spot in use2-az1", "ok", "AWS gives 3 machines of g6.2xlarge or g6e.xlarge a score of 9 of 10"),
        ("spot in use2-az2", "ok", "AWS gives 3 machines of g6.2xlarge or g6e.xlarge a score of 3 of 10"),
    ]


def test_aws_that_refuses_its_scores_is_a_warning_with_a_remedy(ec2: Any, tmp_path: Path) -> None:
    with Stubber(ec2) as stubber:
        stubber.add_client_error("get_spot_placement_scores", "UnauthorizedOperation", "no")
        (found,) = findings(tmp_path, ZONES + zone("us-east-2a", "g6.2xlarge"), "spot")
    assert (found["what"], found["state"]) == ("spot in us-east-2", "warn")
    assert "UnauthorizedOperation" in found["detail"]
    assert "ec2:GetSpotPlacementScores" in found["remedy"]


def test_no_credentials_are_a_warning_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    (found,) = findings(tmp_path, ZONES + zone("us-east-2a", "g6.2xlarge"), "spot")
    assert found["state"] == "warn"
    assert "credentials" in found["detail"]


def test_who_buys_no_spot_machines_hears_nothing_of_them(tmp_path: Path) -> None:
    elsewhere = ZONES.replace('"groups"', '"processes"') + zone("us-east-2a", "g6.2xlarge")
    assert findings(tmp_path, elsewhere, "spot") == []


def prefect_server(folder: Path, **environment: str) -> Any:
    """What the command says of Prefect's server, with no profile of this machine's user."""
    run = prebake(folder, "doctor", "--json", PREFECT_HOME=str(folder / "prefect"), **environment)
    (found,) = [row for row in json.loads(run.stdout)["findings"] if row["what"] == "Prefect server"]
    return found


def test_a_prefect_server_that_is_not_there_is_a_warning_with_the_command_that_starts_one(tmp_path: Path) -> None:
    found = prefect_server(tmp_path, PREFECT_API_URL="http://me:secret@127.0.0.1:9/api")
    assert found["state"] == "warn"
    assert "127.0.0.1:9/api does not answer" in found["detail"]
    assert "secret" not in found["detail"]
    assert "prebake prefect" in found["remedy"]


def test_without_an_address_it_says_that_runs_start_a_temporary_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    found = prefect_server(tmp_path)
    assert found["state"] == "ok"
    assert "temporary server" in found["detail"]
    assert "prebake prefect" in found["remedy"]
