"""A night on the machines of Auto Scaling groups: a real server (moto), and a worker thread on each of its machines."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import boto3
import pytest

from capacity.fleet import Fleet, leave_group
from prebake.errors import Interrupted, SettingsError
from prebake.prices import GpuPrice
from prebake.settings import Capacity, Prices, Settings, Zone
from prebake.settings import Engine as EngineSettings
from prebake.stop import Stop
from storage.store import Store
from tasks.bake import bake
from tasks.groups import leave
from tasks.machines import bake_on_machines
from tasks.night import machines_of
from tests.baking import PLAN_ID, add_plan, committed, question
from tests.integration.capacity.metadata import EC2, serve_metadata
from tests.integration.tasks.test_machines import Echo


@pytest.fixture
def aws(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Auto Scaling's client; what prebake makes of its own reaches the same server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    return boto3.client("autoscaling")


@pytest.fixture
def groups(aws: Any) -> dict[str, str]:
    """A spot and an on-demand group of one zone, empty."""
    image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
    names = {kind: f"{kind}-{uuid4().hex[:8]}" for kind in ("spot", "on_demand")}
    for name in names.values():
        aws.create_launch_configuration(LaunchConfigurationName=name, ImageId=image, InstanceType="g6.xlarge")
        aws.create_auto_scaling_group(
            AutoScalingGroupName=name,
            LaunchConfigurationName=name,
            MinSize=0,
            MaxSize=2,
            DesiredCapacity=0,
            AvailabilityZones=["us-east-1a"],
        )
    return names


@pytest.fixture
def settings(settings: Settings, groups: dict[str, str]) -> Settings:
    zone = Zone(
        name="us-east-1a",
        spot_group=groups["spot"],
        on_demand_group=groups["on_demand"],
        spot_usd=1.0,
        on_demand_usd=5.0,
    )
    capacity = Capacity(workers="groups", max_machines=2, cold_start_h=0.001, ready_h=1.0, decide_s=1.0, zones=(zone,))
    return settings.model_copy(
        update={
            "engine": EngineSettings(flush_s=0.1, flush_answers=8, lease_s=2.0),
            "capacity": capacity,
            "prices": Prices(gpu=GpuPrice(usd_per_hour=1.0)),
        }
    )


class Cloud:
    """Boots a bake worker on every machine that the groups have, and pulls the plug of those that are gone."""

    def __init__(self, store: Store, settings: Settings, groups: dict[str, str], gate: threading.Event) -> None:
        self._store, self._settings, self._gate = store, settings, gate
        self._groups = [Fleet(name) for name in groups.values()]
        self.booted: dict[str, Stop] = {}
        self.most = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def end(self) -> None:
        self._over.set()
        for stop in self.booted.values():
            stop.request("the test is over")
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            there = [machine for group in self._groups for machine in group.group().machines]
            self.most = max(self.most, len(there))
            for machine, stop in self.booted.items():
                if machine not in there:
                    stop.request("the machine is gone")
            for machine in set(there) - set(self.booted):
                self.booted[machine] = Stop()
                thread = threading.Thread(target=self._bake, args=(machine,))
                thread.start()
                self._threads.append(thread)

    def _bake(self, machine: str) -> None:
        engine, stop = Echo(gate=self._gate), self.booted[machine]
        with suppress(Interrupted):
            bake(self._store, self._settings, PLAN_ID, run_id=machine, owner=machine, engine=engine, stop=stop)


@pytest.fixture
def gate() -> threading.Event:
    """Shut: the workers answer nothing."""
    return threading.Event()


@pytest.fixture
def cloud(store: Store, settings: Settings, groups: dict[str, str], gate: threading.Event) -> Iterator[Cloud]:
    running = Cloud(store, settings, groups, gate)
    yield running
    running.end()


def _in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def _until(found: Any) -> None:
    for _ in range(600):
        if found():
            return
        threading.Event().wait(0.1)
    raise AssertionError("waited in vain")


def test_a_night_scales_up_outlives_a_preemption_and_leaves_no_machine(
    store: Store, settings: Settings, groups: dict[str, str], cloud: Cloud, gate: threading.Event
) -> None:
    planned = add_plan(store, settings, [question(n) for n in range(80)], shard_size=10)
    spot, on_demand = Fleet(groups["spot"]), Fleet(groups["on_demand"])

    def preempt() -> None:
        _until(lambda: store.ledger.progress(PLAN_ID).leased)
        (machine, *_) = spot.group().machines
        boto3.client("ec2").terminate_instances(InstanceIds=[machine])
        _until(lambda: cloud.booted[machine].requested and len(cloud.booted) > 1)
        gate.set()

    reaper = threading.Thread(target=preempt)
    reaper.start()
    make = machines_of(settings)
    assert make is not None
    report = bake_on_machines(store, settings, PLAN_ID, run_id="night", make=make, ready_at=_in_an_hour())
    reaper.join()
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert report.answers == 80
    assert len(cloud.booted) >= 2
    assert cloud.most <= 2
    assert (spot.group().desired, on_demand.group().desired) == (0, 0)


def test_a_night_that_is_stopped_leaves_no_machine_either(
    store: Store, settings: Settings, groups: dict[str, str], cloud: Cloud
) -> None:
    add_plan(store, settings, [question(n) for n in range(20)], shard_size=10)
    stop = Stop()
    make = machines_of(settings)
    assert make is not None
    waiting = threading.Thread(target=lambda: (_until(lambda: cloud.booted), stop.request("SIGTERM")))
    waiting.start()
    with pytest.raises(Interrupted, match="SIGTERM"):
        bake_on_machines(store, settings, PLAN_ID, run_id="night", make=make, ready_at=_in_an_hour(), stop=stop)
    waiting.join()
    assert (Fleet(groups["spot"]).group().desired, Fleet(groups["on_demand"]).group().desired) == (0, 0)


def test_a_worker_with_no_work_left_ends_its_machine_and_its_group_wants_one_fewer(
    settings: Settings, groups: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = Fleet(groups["spot"])
    spot.scale(2)
    machine, other = spot.group().machines
    with serve_metadata() as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        metadata.items[EC2 + "instance-id"] = machine
        leave(settings)
        assert spot.group().machines == (machine, other)
        leave(settings.model_copy(update={"capacity": settings.capacity.model_copy(update={"leave": True})}))
    assert (spot.group().desired, spot.group().machines) == (1, (other,))


def test_a_machine_that_is_none_of_ec2_cannot_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"capacity\.leave: this machine's EC2 metadata service does not answer"):
        leave_group()


def test_groups_without_a_deadline_are_a_setting_to_correct(settings: Settings) -> None:
    timeless = settings.capacity.model_copy(update={"ready_h": None})
    with pytest.raises(SettingsError, match=r"capacity\.ready_h"):
        machines_of(settings.model_copy(update={"capacity": timeless}))
