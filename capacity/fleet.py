"""Machines as an EC2 Auto Scaling group: how many it has, and setting that, from zero and back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from capacity.notices import Ec2
from prebake.errors import PrebakeError, SettingsError


class FleetError(PrebakeError):
    """The cloud refused to change the number of machines."""


@dataclass(frozen=True)
class Group:
    """An Auto Scaling group now."""

    name: str
    least: int
    most: int
    desired: int
    machines: tuple[str, ...]
    """Instance ids of those in service."""

    @property
    def in_service(self) -> int:
        """How many are in service."""
        return len(self.machines)


class Fleet:
    """One Auto Scaling group. ``client`` is boto3's, by default made for ``region``."""

    def __init__(self, name: str, *, region: str | None = None, client: Any = None) -> None:
        self.name = name
        self._client = client or boto3.client("autoscaling", region_name=region)

    def group(self) -> Group:
        """The group now. Raises SettingsError where there is none of that name, FleetError where AWS refuses."""
        try:
            groups = self._client.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"]
        except (ClientError, BotoCoreError) as error:
            raise FleetError(f"Auto Scaling group {self.name}: cannot be read: {error}") from error
        if not groups:
            raise SettingsError(f"capacity.zones: no Auto Scaling group {self.name!r} in this account and region")
        found = groups[0]
        running = tuple(
            machine["InstanceId"] for machine in found["Instances"] if machine["LifecycleState"] == "InService"
        )
        return Group(self.name, found["MinSize"], found["MaxSize"], found["DesiredCapacity"], running)

    def scale(self, machines: int) -> int:
        """Ask for that many machines, within the group's own least and most; returns what was asked for."""
        group = self.group()
        desired = min(max(machines, group.least), group.most)
        if desired != group.desired:
            try:
                self._client.set_desired_capacity(
                    AutoScalingGroupName=self.name, DesiredCapacity=desired, HonorCooldown=False
                )
            except (ClientError, BotoCoreError) as error:
                raise FleetError(f"Auto Scaling group {self.name}: cannot be set to {desired}: {error}") from error
        return desired

    def leave(self, instance_id: str) -> None:
        """End one machine and want one fewer: what a worker does when there is no work left."""
        try:
            self._client.terminate_instance_in_auto_scaling_group(
                InstanceId=instance_id, ShouldDecrementDesiredCapacity=True
            )
        except (ClientError, BotoCoreError) as error:
            raise FleetError(f"machine {instance_id}: cannot leave {self.name}: {error}") from error


def leave_group(region: str | None = None, *, client: Any = None) -> None:
    """End the EC2 machine that this process runs on; its group wants one fewer from then on.

    Raises FleetError where this is no such machine or AWS refuses.
    """
    try:
        with httpx.Client(timeout=5, trust_env=False) as metadata:
            instance_id = Ec2(metadata).read("instance-id")
    except httpx.HTTPError as error:
        raise FleetError(f"capacity.leave: this machine's EC2 metadata service does not answer ({error!r})") from error
    Fleet("its group", region=region, client=client).leave(instance_id)
