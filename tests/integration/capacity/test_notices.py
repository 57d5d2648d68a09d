"""Preemption notices over HTTP, from doubles of the clouds' metadata services."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from capacity.notices import Azure, Ec2, Gcp, watch
from prebake.errors import SettingsError
from prebake.stop import Stop
from tests.baking import wait_until
from tests.integration.capacity.metadata import AZURE, AZURE_NAME, EC2, GCP, Metadata, azure_events, serve_metadata

NOTICE = '{"action": "terminate", "time": "2026-01-05T03:02:00Z"}'


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with serve_metadata() as state:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", state.url)
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{state.port}")
        monkeypatch.setenv("AZURE_METADATA_ENDPOINT", state.url)
        state.items[AZURE_NAME] = "bake_1"
        yield state


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=5, trust_env=False) as client:
        yield client


def test_ec2_without_a_notice_says_nothing(metadata: Metadata, client: httpx.Client) -> None:
    assert Ec2(client)() is None
    assert metadata.tokens_given == 1


def test_ec2_spot_notice_names_what_will_happen_and_when(metadata: Metadata, client: httpx.Client) -> None:
    metadata.items[EC2 + "spot/instance-action"] = NOTICE
    at = datetime(2026, 1, 5, 3, 2, tzinfo=UTC).timestamp()
    assert Ec2(client)() == ("EC2 spot notice: terminate at 2026-01-05T03:02:00Z", at)


@pytest.mark.parametrize("time", ["", ', "time": null', ', "time": "soon"', ', "time": 17'])
def test_a_spot_notice_whose_time_cannot_be_read_counts_at_once(
    metadata: Metadata, client: httpx.Client, time: str
) -> None:
    metadata.items[EC2 + "spot/instance-action"] = f'{{"action": "terminate"{time}}}'
    notice = Ec2(client)()
    assert notice
    assert notice.at == 0


def test_ec2_auto_scaling_terminations_count_though_they_give_no_spot_notice(
    metadata: Metadata, client: httpx.Client
) -> None:
    ask = Ec2(client)
    metadata.items[EC2 + "autoscaling/target-lifecycle-state"] = "InService"
    assert ask() is None
    metadata.items[EC2 + "autoscaling/target-lifecycle-state"] = "Terminated"
    assert ask() == ("EC2 Auto Scaling is terminating this machine", 0)


def test_ec2_rebalance_advice_counts_only_where_it_is_wanted(metadata: Metadata, client: httpx.Client) -> None:
    metadata.items[EC2 + "events/recommendations/rebalance"] = '{"noticeTime": "2026-01-05T03:00:00Z"}'
    assert Ec2(client)() is None
    assert Ec2(client, rebalance=True)() == ("EC2 rebalance recommendation", 0)


def test_ec2_token_is_kept_and_renewed_once_it_is_refused(metadata: Metadata, client: httpx.Client) -> None:
    ask = Ec2(client)
    ask()
    ask()
    assert metadata.tokens_given == 1
    metadata.tokens.clear()
    metadata.items[EC2 + "spot/instance-action"] = NOTICE
    notice = ask()
    assert notice
    assert notice.reason.startswith("EC2 spot notice")
    assert metadata.tokens_given == 2


@pytest.mark.parametrize("source", [Ec2, Gcp, Azure])
def test_a_failing_service_is_no_answer_and_no_notice(metadata: Metadata, client: httpx.Client, source: type) -> None:
    metadata.failures = 1
    with pytest.raises(httpx.HTTPError):
        source(client)()


def test_gcp_preempted(metadata: Metadata, client: httpx.Client) -> None:
    metadata.items[GCP] = "FALSE"
    assert Gcp(client)() is None
    metadata.items[GCP] = "TRUE"
    assert Gcp(client)() == ("GCP preemption notice", 0)


def test_azure_preempt_event_among_others(metadata: Metadata, client: httpx.Client) -> None:
    metadata.items[AZURE] = azure_events("Reboot")
    assert Azure(client)() is None
    metadata.items[AZURE] = azure_events("Reboot", "Preempt")
    at = datetime(2026, 1, 5, 3, 0, 30, tzinfo=UTC).timestamp()
    assert Azure(client)() == ("Azure preemption notice: not before Mon, 05 Jan 2026 03:00:30 GMT", at)


def test_an_azure_event_that_has_begun_has_no_time_any_more(metadata: Metadata, client: httpx.Client) -> None:
    metadata.items[AZURE] = azure_events("Preempt", not_before="")
    assert Azure(client)() == ("Azure preemption notice: not before now", 0)


def test_azure_events_of_the_scale_sets_other_machines_are_theirs(metadata: Metadata, client: httpx.Client) -> None:
    ask = Azure(client)
    metadata.items[AZURE] = azure_events("Preempt", "Terminate", of="bake_11")
    assert ask() is None
    metadata.items[AZURE] = azure_events("Terminate")
    notice = ask()
    assert notice
    assert notice.reason.startswith("Azure termination notice")
    assert metadata.asked.count(AZURE_NAME) == 1


def test_a_notice_requests_the_stop(metadata: Metadata) -> None:
    stop = Stop()
    with watch(stop, "aws", poll_s=0.01):
        assert not stop.wait(0.2)
        metadata.items[EC2 + "spot/instance-action"] = NOTICE
        assert stop.wait(10)
    assert stop.reason.startswith("EC2 spot notice")
    assert stop.notice
    assert stop.at_once


def test_what_runs_may_go_on_until_the_margin_before_the_machine_goes(metadata: Metadata) -> None:
    in_two_minutes = (datetime.now(UTC) + timedelta(minutes=2)).isoformat()
    metadata.items[EC2 + "spot/instance-action"] = f'{{"action": "terminate", "time": "{in_two_minutes}"}}'
    for margin_s, at_once in (20, False), (130, True):
        stop = Stop()
        with watch(stop, "aws", margin_s=margin_s, poll_s=0.01):
            assert stop.wait(10)
        assert stop.at_once is at_once


def test_whoever_asks_after_a_notice_means_at_once() -> None:
    stop = Stop()
    stop.request("EC2 spot notice", notice=True, until=time.time() + 100)
    assert stop.requested
    assert not stop.at_once
    stop.request("SIGTERM")
    assert stop.at_once
    assert stop.reason == "EC2 spot notice"


def test_failures_before_a_notice_delay_it_and_are_not_read_as_one(metadata: Metadata) -> None:
    stop = Stop()
    metadata.failures = 3
    metadata.items[GCP] = "FALSE"
    with watch(stop, "gcp", poll_s=0.01):
        wait_until(lambda: metadata.failures == 0, within_s=10)
        assert not stop.wait(0.1)
        metadata.items[GCP] = "TRUE"
        assert stop.wait(10)


def test_that_no_notice_can_arrive_is_told_once_with_the_hop_limit(
    metadata: Metadata, caplog: pytest.LogCaptureFixture
) -> None:
    metadata.silent = True
    with watch(Stop(), "aws", poll_s=0.01):
        wait_until(lambda: len(metadata.asked) == 2, within_s=10)
        assert not caplog.records
        wait_until(lambda: len(metadata.asked) >= 5, within_s=10)
        metadata.silent = False
        wait_until(lambda: metadata.tokens_given == 1, within_s=10)
    (told,) = caplog.messages
    assert "no notice can arrive" in told
    assert "set the EC2 instance's metadata hop limit to 2" in told


@pytest.mark.parametrize("answer", ["", "[]", "{}", "<html>"])
def test_an_answer_that_makes_no_sense_is_no_notice(metadata: Metadata, answer: str) -> None:
    stop = Stop()
    metadata.items[AZURE] = answer
    with watch(stop, "azure", poll_s=0.01):
        assert not stop.wait(0.2)
    assert metadata.asked


def test_where_there_is_no_service_the_watch_does_no_harm_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        stop = Stop()
        with watch(stop, "aws", poll_s=0.01):
            assert not stop.wait(0.2)


def test_an_unknown_cloud_is_refused_and_no_cloud_is_not_asked(metadata: Metadata) -> None:
    with watch(Stop(), "", poll_s=0.01):
        pass
    assert not metadata.asked
    with pytest.raises(SettingsError, match="unknown cloud 'moon'"), watch(Stop(), "moon"):
        pass
