"""The controller on a real Auto Scaling server (moto), with time and prices in the test's hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
import pytest

from capacity.controller import Controller, check_zones
from capacity.fleet import Fleet
from capacity.policy import Limits
from prebake.errors import SettingsError
from prebake.settings import Zone

STEP_H = 0.1


@dataclass
class Clock:
    """Hours that pass when the test says so."""

    hours: float = 0.0

    def __call__(self) -> float:
        return self.hours * 3600


class Dry:
    """boto3's client, but one group never gets a machine, as where a zone has none to give."""

    def __init__(self, client: Any, group: str) -> None:
        self._client, self._group = client, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def describe_auto_scaling_groups(self, **request: Any) -> Any:
        found = self._client.describe_auto_scaling_groups(**request)
        for group in found["AutoScalingGroups"]:
            if group["AutoScalingGroupName"] == self._group:
                group["Instances"] = []
        return found


@pytest.fixture
def autoscaling(s3_server: str) -> Any:
    return boto3.client("autoscaling", endpoint_url=s3_server)


@pytest.fixture
def zones(s3_server: str, autoscaling: Any) -> tuple[Zone, Zone]:
    """Two zones with empty groups, the first the cheaper one; on demand costs five times as much."""
    image = boto3.client("ec2", endpoint_url=s3_server).describe_images()["Images"][0]["ImageId"]
    run = uuid4().hex[:8]

    def group(kind: str, zone: str) -> str:
        name = f"{kind}-{zone}-{run}"
        autoscaling.create_launch_configuration(LaunchConfigurationName=name, ImageId=image, InstanceType="g6.xlarge")
        autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=name,
            LaunchConfigurationName=name,
            MinSize=0,
            MaxSize=4,
            DesiredCapacity=0,
            AvailabilityZones=[zone],
        )
        return name

    def zone(name: str, spot_usd: float) -> Zone:
        return Zone(
            name=name,
            spot_group=group("spot", name),
            on_demand_group=group("on-demand", name),
            spot_usd=spot_usd,
            on_demand_usd=5.0,
        )

    return zone("us-east-1a", 1.0), zone("us-east-1b", 1.2)


@dataclass
class Night:
    """A controller, its clock, and what its groups have."""

    controller: Controller
    clock: Clock
    autoscaling: Any

    def step(self, work_h: float = 20.0, left_h: float = 24.0, **options: Any) -> None:
        options = {"step_h": STEP_H, "most": 100} | options
        self.controller.step(work_h=work_h, left_h=left_h, **options)
        self.clock.hours += STEP_H

    def sizes(self) -> dict[str, int]:
        names = [n for zone in self.controller.zones for n in (zone.spot_group, zone.on_demand_group)]
        return {name: Fleet(name, client=self.autoscaling).group().desired for name in names}

    def spot(self) -> int:
        return sum(size for name, size in self.sizes().items() if name.startswith("spot"))

    def on_demand(self) -> int:
        return sum(size for name, size in self.sizes().items() if name.startswith("on-demand"))


@pytest.fixture
def night(zones: tuple[Zone, Zone], autoscaling: Any) -> Callable[..., Night]:
    def make(client: Any = None) -> Night:
        clock = Clock()
        limits = Limits(max_machines=4, cold_start_h=0.2)
        return Night(Controller(zones, limits, autoscaling=client or autoscaling, clock=clock), clock, autoscaling)

    return make


def test_time_in_hand_buys_spot_only_and_no_work_left_means_no_machine_left(night: Callable[..., Night]) -> None:
    running = night()
    running.step()
    assert 0 < running.spot() <= 4
    assert running.on_demand() == 0
    running.step(work_h=0.0)
    assert running.controller.machines() == 0


def test_at_the_line_machines_are_bought_on_demand(night: Callable[..., Night]) -> None:
    running = night()
    running.step(work_h=20.0, left_h=5.25)
    assert running.on_demand() > 0
    assert running.spot() + running.on_demand() <= 4


def test_no_more_machines_than_find_work_are_asked_for(night: Callable[..., Night]) -> None:
    running = night()
    running.step(most=1)
    assert running.spot() + running.on_demand() == 1


def test_a_zone_that_gives_nothing_is_left_for_another_and_asked_again_later(
    night: Callable[..., Night], zones: tuple[Zone, Zone], autoscaling: Any
) -> None:
    running = night(Dry(autoscaling, zones[0].spot_group))
    asked, other = [], []
    for _ in range(12):
        running.step(work_h=20.0, left_h=8.0)
        sizes = running.sizes()
        asked.append(sizes[zones[0].spot_group])
        other.append(sizes[zones[1].spot_group])
    assert asked[0] > 0
    assert 0 in asked
    assert any(asked[asked.index(0) :])
    assert max(other) > 0


def test_a_preempted_machine_is_seen_and_its_place_is_filled(
    night: Callable[..., Night], zones: tuple[Zone, Zone], s3_server: str
) -> None:
    running = night()
    for _ in range(3):
        running.step()
    before = running.spot()
    (first, *_) = [zone for zone in zones if running.sizes()[zone.spot_group]]
    machine = Fleet(first.spot_group, client=running.autoscaling).group().machines[0]
    boto3.client("ec2", endpoint_url=s3_server).terminate_instances(InstanceIds=[machine])
    seen = running.controller._seen
    running.step()
    assert running.controller._seen.preemptions.sum() == seen.preemptions.sum() + 1
    assert running.spot() >= min(before, 1)
    assert machine not in Fleet(first.spot_group, client=running.autoscaling).group().machines


def test_letting_machines_go_is_no_preemption(night: Callable[..., Night]) -> None:
    running = night()
    running.step()
    running.step(work_h=0.0)
    running.step(work_h=0.0)
    running.step(work_h=0.0)
    assert running.controller._seen.preemptions.sum() == 0


def test_nothing_runs_that_the_budget_cannot_pay_until_the_next_decision(night: Callable[..., Night]) -> None:
    running = night()
    running.step(budget_usd=2.1 * STEP_H)
    assert running.spot() == 2
    running.step(budget_usd=0.0)
    assert running.controller.machines() == 0


def test_what_its_machines_cost_is_counted(night: Callable[..., Night]) -> None:
    running = night()
    running.step(most=1)
    running.step(most=1)
    running.step(most=1)
    assert running.controller.spent_usd == pytest.approx(2 * STEP_H * 1.0)


def test_a_controller_that_was_killed_and_started_again_goes_on_with_what_there_is(
    night: Callable[..., Night], zones: tuple[Zone, Zone], autoscaling: Any
) -> None:
    first = night()
    first.step()
    sizes = first.sizes()
    machines = {name: Fleet(name, client=autoscaling).group().machines for name in sizes}
    second = night()
    second.step()
    assert second.sizes() == sizes
    assert {name: Fleet(name, client=autoscaling).group().machines for name in sizes} == machines
    second.controller.stop()
    assert second.controller.machines() == 0


def test_zones_without_on_demand_machines_cannot_keep_a_deadline() -> None:
    with pytest.raises(SettingsError, match="no zone has an on_demand_group"):
        check_zones([Zone(name="us-east-1a", spot_group="spot", spot_usd=1.0)])
    with pytest.raises(SettingsError, match="no zone has an on_demand_group"):
        check_zones([])


def test_a_zone_whose_price_nobody_can_know_is_named() -> None:
    with pytest.raises(SettingsError, match="us-east-1a: give its machine_type"):
        check_zones([Zone(name="us-east-1a", spot_group="spot", on_demand_group="dear", on_demand_usd=5)])
