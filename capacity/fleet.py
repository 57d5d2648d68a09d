"""Machines as an EC2 Auto Scaling group: how many it has, and setting that, from zero and back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

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
    in_service: int


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
            raise SettingsError(f"capacity.group: no Auto Scaling group {self.name!r} in this account and region")
        found = groups[0]
        running = sum(machine["LifecycleState"] == "InService" for machine in found["Instances"])
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
