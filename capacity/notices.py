"""Notices: asks the cloud every few seconds whether this machine is about to be taken, and tells a ``Stop``.

In: the metadata service of AWS, GCP or Azure, on the link-local network. Out: ``stop.request(reason)``, until shortly
before the machine goes where the notice says when. Best effort on both sides: no answer is never read as a notice, and
a machine may go without one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal, NamedTuple, Protocol

import httpx

from prebake.errors import SettingsError
from prebake.stop import Stop

POLL_S = 5.0
"""How often; AWS advises 5 s (EC2 user guide, Spot Instance interruption notices)."""
_LONGEST_WAIT_S = 60.0
_SILENT = 3
"""Failures in a row after which it is told that no notice can arrive."""
_TIMEOUT_S = 1.0
_TOKEN_TTL_S = 21600

_AZURE_ENDS: Final = {"Preempt": "Azure preemption notice", "Terminate": "Azure termination notice"}
"""By the type of event: a spot machine is evicted, a scale set ends one of its machines."""

Cloud = Literal["", "aws", "gcp", "azure"]
_logger = logging.getLogger(__name__)


class Notice(NamedTuple):
    """Why the machine goes, and when: in seconds since 1970, 0 where the cloud does not say."""

    reason: str
    at: float = 0.0


class Ask(Protocol):
    """Asks once; returns the notice if there is one. Raises httpx.HTTPError where there was no answer."""

    remedy: str
    """What to look at where there is never an answer."""

    def __call__(self) -> Notice | None: ...


class Ec2:
    """EC2's instance metadata service, version 2: spot notices, rebalance advice, Auto Scaling's own terminations.

    The address is AWS_EC2_METADATA_SERVICE_ENDPOINT where that is set, as for boto3. Containers on a bridge network
    need the instance's hop limit to be 2: with 1, the answer to the request for a token never arrives.
    """

    remedy = (
        "in a container on a bridge network, set the EC2 instance's metadata hop limit to 2 "
        "(aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2)"
    )

    def __init__(self, client: httpx.Client, *, rebalance: bool = False) -> None:
        self._client = client
        self._rebalance = rebalance
        self._base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
        self._token = ""

    def __call__(self) -> Notice | None:
        if action := self.read("spot/instance-action"):
            notice = json.loads(action)
            at = notice.get("time")
            return Notice(f"EC2 spot notice: {notice['action']} at {at or 'once'}", _at(datetime.fromisoformat, at))
        if self.read("autoscaling/target-lifecycle-state") == "Terminated":
            return Notice("EC2 Auto Scaling is terminating this machine")
        if self._rebalance and self.read("events/recommendations/rebalance"):
            return Notice("EC2 rebalance recommendation")
        return None

    def read(self, path: str) -> str:
        """The item, or nothing where there is none (404). A refused token (401) is renewed once."""
        for attempt in range(2):
            if not self._token:
                self._token = self._new_token()
            headers = {"X-aws-ec2-metadata-token": self._token}
            response = self._client.get(f"{self._base}/latest/meta-data/{path}", headers=headers)
            if response.status_code != httpx.codes.UNAUTHORIZED or attempt:
                break
            self._token = ""
        if response.status_code == httpx.codes.NOT_FOUND:
            return ""
        return response.raise_for_status().text.strip()

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
        return self._client.put(f"{self._base}/latest/api/token", headers=headers).raise_for_status().text


class Gcp:
    """Compute Engine's metadata server; its address is GCE_METADATA_HOST where that is set, as for Google's own."""

    remedy = "is this a machine of GCP that may reach its metadata server?"

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
        self._url = f"http://{host}/computeMetadata/v1/instance/preempted"

    def __call__(self) -> Notice | None:
        response = self._client.get(self._url, headers={"Metadata-Flavor": "Google"}).raise_for_status()
        return Notice("GCP preemption notice") if response.text.strip() == "TRUE" else None


class Azure:
    """Azure's scheduled events; its address is AZURE_METADATA_ENDPOINT where that is set.

    Every machine of a scale set or an availability set hears the events of all: its own name tells which concern it.
    """

    remedy = "is this a machine of Azure that may reach its metadata service?"

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        base = os.environ.get("AZURE_METADATA_ENDPOINT", "http://169.254.169.254").rstrip("/")
        self._events_url = f"{base}/metadata/scheduledevents?api-version=2020-07-01"
        self._name_url = f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        self._name = ""

    def __call__(self) -> Notice | None:
        self._name = self._name or self._get(self._name_url).text.strip()
        for event in self._get(self._events_url).json()["Events"]:
            if event["EventType"] in _AZURE_ENDS and self._name in event["Resources"]:
                not_before = event.get("NotBefore")  # empty once the event has begun
                reason = f"{_AZURE_ENDS[event['EventType']]}: not before {not_before or 'now'}"
                return Notice(reason, _at(parsedate_to_datetime, not_before))
        return None

    def _get(self, url: str) -> httpx.Response:
        return self._client.get(url, headers={"Metadata": "true"}).raise_for_status()


def _at(read: Callable[[str], datetime], text: str) -> float:
    """Seconds since 1970; 0 for what is no time, because a notice counts without one."""
    try:
        return read(text).timestamp()
    except (TypeError, ValueError):
        return 0.0


@contextmanager
def watch(
    stop: Stop, cloud: Cloud, *, margin_s: float = 0.0, poll_s: float = POLL_S, rebalance: bool = False
) -> Iterator[None]:
    """Poll in a thread of its own for as long as the block runs; the first notice requests the stop.

    Where it says when the machine goes, what runs may go on until ``margin_s`` before that, by this machine's clock. No
    cloud: nobody is asked. ``rebalance``: EC2's advice, which may come long before a notice or without one, counts as a
    notice too.
    """
    if not cloud:
        yield
        return
    ended = threading.Event()
    # No proxy: the service is on the machine's own link, and refuses forwarded requests.
    with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
        ask = _source(cloud, client, rebalance)
        thread = threading.Thread(target=poll, args=(ask, stop, ended, poll_s, margin_s), name="notices", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def poll(ask: Ask, stop: Stop, ended: threading.Event, poll_s: float, margin_s: float) -> None:
    """Ask until a notice came, the block ended or somebody else stopped; wait longer while there is no answer."""
    wait_s = poll_s
    failures, told = 0, False
    while not ended.is_set() and not stop.requested:
        try:
            notice = ask()
            wait_s, failures = poll_s, 0
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:  # no answer, or none that is one
            notice = None
            wait_s, failures = min(wait_s * 2, _LONGEST_WAIT_S), failures + 1
            if failures == _SILENT and not told:
                told = True
                _logger.warning(
                    "capacity.cloud: %d times no answer (%r), so no notice can arrive; %s", failures, error, ask.remedy
                )
        if notice:
            stop.request(notice.reason, notice=True, until=notice.at - margin_s)
        ended.wait(wait_s)


def _source(cloud: str, client: httpx.Client, rebalance: bool) -> Ask:
    match cloud:
        case "aws":
            return Ec2(client, rebalance=rebalance)
        case "gcp":
            return Gcp(client)
        case "azure":
            return Azure(client)
    raise SettingsError(f"capacity.cloud: unknown cloud {cloud!r}; expected aws, gcp or azure")
