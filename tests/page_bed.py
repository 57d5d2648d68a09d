"""What the tests of the gateway's page stand on: answers in table and snapshot, keys, and a client with one of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import httpx
import pyarrow as pa

from prebake.loading import load
from prebake.tables import ANSWERS
from storage.delta import DeltaTable
from storage.objects import open_objects
from tests.gateway_bed import SETTINGS, Running, answer_to, ask, publish, write_settings

ADMIN_KEY, CLIENT_KEY = "pbk-admin-key-of-the-tests", "pbk-client-key-of-the-tests"
KEYS = f"""
[[keys]]
name = "boss"
sha256 = "{sha256(ADMIN_KEY.encode()).hexdigest()}"
admin = true

[[keys]]
name = "app"
sha256 = "{sha256(CLIENT_KEY.encode()).hexdigest()}"
"""
APPROVAL = """
[[routes]]
name = "careful"
scope = "shared"
models = ["careful"]
approval = true
"""


def store_answers(folder: Path, texts: dict[tuple[str, str], str]) -> None:
    """Write answers (by prompt and model) into the answers table and a published snapshot, as a night does."""
    settings = load(write_settings(folder, SETTINGS + APPROVAL + KEYS))
    answers = {asked: answer_to(settings, ask(*asked), text) for asked, text in texts.items()}
    publish(folder, answers.values())
    now = datetime.now(UTC)
    rows = [
        {
            "day": now.date() - timedelta(days=1),
            "plan_id": "plan-1",
            "run_id": answer.run_id,
            "shard_id": 0,
            "fingerprint": answer.fingerprint,
            "route": answer.route,
            "scope": "shared",
            "prompt": prompt,
            "status": "answered",
            "finish_reason": answer.finish_reason,
            "message": answer.message_json.decode(),
            "error": None,
            "model": answer.model,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "mean_logprob": -0.1,
            "engine_s": 1.0,
            "baked_at": answer.baked_at,
            "expires_at": answer.expires_at,
        }
        for (prompt, _), answer in answers.items()
    ]
    table = DeltaTable(ANSWERS, open_objects(settings.store))
    table.append(pa.Table.from_pylist(rows, schema=ANSWERS.schema))


def path_of(folder: Path, text: str, model: str = "tiny") -> str:
    """The path of the page about the answer to this prompt."""
    settings = load(write_settings(folder, SETTINGS + APPROVAL + KEYS))
    return f"/admin/answers/{answer_to(settings, ask(text, model), '').fingerprint.hex()}"


def page_of(gateway: Running, password: str | None = ADMIN_KEY) -> httpx.Client:
    """A client of the page that presents this key."""
    auth = None if password is None else ("me", password)
    return httpx.Client(base_url=gateway.url, auth=auth, timeout=30)
