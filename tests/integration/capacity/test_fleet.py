"""An Auto Scaling group on a real HTTP server (moto): from zero, back to zero, never past its limits."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.stub import Stubber

from capacity.fleet import Fleet, FleetError
from prebake.errors import SettingsError


@pytest.fixture
def autoscaling(s3_server: str) -> Any:
    return boto3.client("autoscaling", endpoint_url=s3_server)


@pytest.fixture
def fleet(s3_server: str, autoscaling: Any) -> Fleet:
    """A group of at most three machines with none running."""
    name = f"bake-{uuid4().hex[:8]}"
    image = boto3.client("ec2", endpoint_url=s3_server).describe_images()["Images"][0]["ImageId"]
    autoscaling.create_launch_configuration(LaunchConfigurationName=name, ImageId=image, InstanceType="g6.2xlarge")
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchConfigurationName=name,
        MinSize=0,
        MaxSize=3,
        DesiredCapacity=0,
        AvailabilityZones=["us-east-1a"],
    )
    return Fleet(name, client=autoscaling)


def test_a_group_grows_from_zero_and_shrinks_back_to_it(fleet: Fleet) -> None:
    assert fleet.group().in_service == 0
    assert fleet.scale(2) == 2
    assert (fleet.group().desired, fleet.group().in_service) == (2, 2)
    assert fleet.scale(0) == 0
    assert (fleet.group().desired, fleet.group().in_service) == (0, 0)


def test_more_machines_than_the_group_allows_are_not_asked_for(fleet: Fleet) -> None:
    assert fleet.scale(99) == 3
    assert fleet.group().desired == 3


def test_a_machine_that_leaves_is_not_replaced(fleet: Fleet, autoscaling: Any) -> None:
    fleet.scale(2)
    found = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[fleet.name])["AutoScalingGroups"][0]
    fleet.leave(found["Instances"][0]["InstanceId"])
    assert (fleet.group().desired, fleet.group().in_service) == (1, 1)


def test_a_group_that_does_not_exist_is_named(autoscaling: Any) -> None:
    with pytest.raises(SettingsError, match="no Auto Scaling group 'nobody'"):
        Fleet("nobody", client=autoscaling).scale(1)


def test_a_refusal_by_aws_names_the_machine() -> None:
    client = boto3.client("autoscaling", region_name="us-east-1")  # moto answers this one with a crash
    with Stubber(client) as stubber:
        stubber.add_client_error("terminate_instance_in_auto_scaling_group", "ValidationError", "not found")
        with pytest.raises(FleetError, match="i-0123"):
            Fleet("bake", client=client).leave("i-0123")
