"""A night of 2,000 prompts whose workers are killed at 100 random moments, beside the same night left in peace.

Real workers with real vLLM bake one plan, two at a time. What is killed: the worker itself, the engine's process, or
vLLM's core; by kill -9, or after a notice (SIGTERM, or the metadata service of EC2 played on this machine). A new
worker takes the place of a dead one. All figures are taken from outside:

- ``lost``, ``doubled``, ``wrong_finish``: the parts that the ledger counts, against the plan and against what the
  undisturbed night answered (status, finish reason, tokens, text; all requests are greedy).
- tokens baked again: a meter in vLLM's core counts the tokens generated (``_token_meter``), and a note is kept of how
  many tokens came with each prompt (``_chaos_worker``). What one worker added to an answer is what the next one that
  was asked for it got along, or the whole answer's tokens if there was no next one, less what it got along itself.
  Generated less added is lost; each worker meets at most one kill -9, which all of its loss is put down to.
  ``rebaked_share_with_notice`` is over all tokens generated; ``rebaked_s_without_notice`` is in seconds of an engine
  of that worker's own speed, the 99th percentile.
- ``notice_to_durable_p99_s``: from SIGTERM, or from the metadata service's answer, until the ledger has no shard leased
  by the worker: then all it finished is committed and its partial answers are kept. ``notice_to_exit_p99_s``: until
  the worker and its engine have ended too.
- ``orphans``: processes of a worker or of an engine's group that are alive 20 s after its death, by /proc.
"""

from __future__ import annotations

import math
import random
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import Measured
from benchmarks._chaos_life import Life, Orphans
from benchmarks._chaos_worker import read_asked
from benchmarks._plan import ROUTE, add_plan, limits, messages, uneven
from benchmarks._token_meter import read_meters
from prebake.settings import Capacity, Settings
from prebake.settings import Engine as EngineSettings
from prebake.settings import Store as StoreSettings
from storage.store import Store, open_store
from tests.tiny_model import make_tiny_model

KILLS = 100
PROMPTS_PER_KILL = 20
WORKERS = 2
SHARD = 50
# Four answers at a time: the tiny model is so fast that the night would be over before it could be disturbed.
ARGS = {
    "enforce_eager": True,
    "dtype": "bfloat16",
    "max_model_len": 512,
    "max_num_seqs": 4,
    "disable_log_stats": True,
    "logits_processors": ["benchmarks._token_meter:TokenMeter"],
}
TARGETS = ("worker", "engine", "core")
_TAKEN_AGAIN = 0.0001
_WARM_UP = 1  # an engine generates it before it is asked anything; it counts as lost like any other
_SAME = ("status", "finish_reason", "completion_tokens", "message")


def run(size: int = KILLS, *, prompts: int = 0, seed: int = 0) -> Measured:
    """Kill ``size`` times in a night of ``prompts`` (0: twenty a kill), or in several if one is over before."""
    with tempfile.TemporaryDirectory(prefix="prebake-chaos-") as folder:
        settings = _settings(Path(folder))
        with open_store(settings) as store:
            chaos = _Chaos(store, settings, Path(folder), prompts or PROMPTS_PER_KILL * size, size, random.Random(seed))
            return chaos.play()


def _settings(folder: Path) -> Settings:
    model = make_tiny_model(folder / "model")
    return Settings(
        store=StoreSettings(root=str(folder / "store")),
        engine=EngineSettings(model=str(model), args=ARGS, flush_s=1.0, partials_s=1.0, lease_s=10.0),
        capacity=Capacity(cloud="aws"),
        routes=(ROUTE,),
    )


class _Chaos:
    """One run: the night in peace, then nights with kills until there were enough."""

    def __init__(
        self, store: Store, settings: Settings, folder: Path, prompts: int, kills: int, chance: random.Random
    ) -> None:
        self._store, self._settings, self._folder = store, settings, folder
        self._prompts, self._kills, self._chance = prompts, kills, chance
        self._lock = threading.Lock()
        self._killed = Counter[str]()
        self._given = 0
        self._lives: list[Life] = []
        self._orphans = Orphans()
        self._nights: list[str] = []
        self._peace: dict[bytes, dict[str, Any]] = {}

    def play(self) -> Measured:
        """Play all of it and measure."""
        started = time.monotonic()
        self._rate = self._in_peace()
        peace_s = time.monotonic() - started
        with ThreadPoolExecutor(WORKERS) as slots:
            while self._given < self._kills or not self._nights:
                self._nights.append(f"night-{len(self._nights) + 1}")
                self._plan(self._nights[-1])
                playing = [slots.submit(self._slot) for _ in range(WORKERS)]
                for slot in playing:
                    slot.result()
        orphans = self._orphans.count()
        return self._measured(orphans, {"peace_s": peace_s, "chaos_s": time.monotonic() - started - peace_s})

    def _plan(self, plan_id: str) -> list[bytes]:
        lengths = limits(self._prompts, uneven(5.2, 0.7, 400))
        asked = [{"messages": messages(n), "params": {"max_tokens": length}} for n, length in enumerate(lengths)]
        return add_plan(self._store, plan_id, asked, shard_size=SHARD)

    def _in_peace(self) -> float:
        """Bake the night undisturbed; returns tokens per engine second."""
        self._plan("peace")
        with Life(self._settings, "peace", "peace", self._folder) as life:
            life.wait()
        if life.exit_code:
            raise RuntimeError(f"the undisturbed night failed: {life.complaint()}")
        self._peace = {row["fingerprint"]: row for row in self._rows("peace")}
        ((tokens, seconds),) = read_meters(life.folder)
        said = sum(row["completion_tokens"] for row in self._peace.values())
        # A step that is on its way when partial answers are kept is taken again, and counted twice.
        if not said <= tokens <= said * (1 + _TAKEN_AGAIN) + _WARM_UP or len(self._peace) != self._prompts:
            raise RuntimeError(f"the undisturbed night generated {tokens} tokens for {said} in its answers")
        return tokens / seconds

    def _slot(self) -> None:
        """Bring workers up one after another, until the night is baked."""
        while self._left_tokens() and not self._failed():
            with self._lock:
                name = f"life-{len(self._lives)}"
                life = Life(self._settings, self._nights[-1], name, self._folder)
                self._lives.append(life)
            with life:
                self._trouble(life)
                life.wait()
            self._orphans.watch(life.processes)

    def _failed(self) -> bool:
        # Whatever keeps workers from baking at all must end the benchmark, not start workers for ever.
        last = self._lives[-5:]
        return len(last) == 5 and all(life.exit_code not in (None, 0, -9, -15, 130) for life in last)

    def _trouble(self, life: Life) -> None:
        """At most one kill -9; after one that the worker survives, a notice."""
        if not self._take_kill():
            return
        target, notice = self._chance.choice(TARGETS), self._chance.random() < 0.5
        if not notice and not life.sleep(self._moment(life)):
            return self._return_kill()
        if notice:
            return self._notice(life)
        if target == "worker":
            life.kill()
        elif left := life.kill_engine(core=target == "core"):
            self._orphans.watch(left)
        else:
            return self._return_kill()
        self._count(f"kill_9_{target}")
        if target != "worker" and self._take_kill():
            self._notice(life)
        return None

    def _notice(self, life: Life) -> None:
        if not life.sleep(self._moment(life)):
            return self._return_kill()
        way = self._chance.choice(("sigterm", "metadata"))
        if not life.notice(metadata=way == "metadata"):
            return self._return_kill()
        return self._count(f"notice_{way}")

    def _moment(self, life: Life) -> float:
        """Seconds to wait: sometimes a moment while the engine loads, mostly one while it bakes."""
        if self._chance.random() < 0.15:
            return self._chance.uniform(0, 15)
        life.wait_until_baking()
        with self._lock:
            kills = max(1, self._kills - self._given + 1)
        return self._chance.expovariate(1 / max(0.2, self._left_tokens() / self._rate / kills))

    def _take_kill(self) -> bool:
        with self._lock:
            free = self._given < self._kills
            self._given += free
            return free

    def _return_kill(self) -> None:
        with self._lock:
            self._given -= 1

    def _count(self, name: str) -> None:
        with self._lock:
            self._killed[name] += 1

    def _left_tokens(self) -> int:
        """Tokens of this night's answers that are not in the store."""
        progress = self._store.ledger.progress(self._nights[-1])
        mean: float = sum(row["completion_tokens"] for row in self._peace.values()) / self._prompts
        return math.ceil((progress.answers - progress.rows) * mean)

    def _rows(self, plan_id: str) -> list[dict[str, Any]]:
        parts = self._store.ledger.parts(plan_id)
        return [row for part in parts for row in pq.read_table(BytesIO(self._store.objects.read(part.key))).to_pylist()]

    def _measured(self, orphans: int, figures: dict[str, float]) -> Measured:
        nights = [self._rows(night) for night in self._nights]
        found = [Counter(row["fingerprint"] for row in rows) for rows in nights]
        wrong = sum(any(row[n] != self._peace[row["fingerprint"]][n] for n in _SAME) for rows in nights for row in rows)
        generated, lost = self._losses(nights)
        noticed = sum(lost[life.name] for life in self._lives if not life.killed)
        durable = [life.durable_s for life in self._lives if life.durable_s is not None]
        rebaked_s = [
            max(0, lost[life.name]) / generated[life.name][0] * generated[life.name][1]
            if generated[life.name][0]
            else 0
            for life in self._lives
            if life.killed
        ]
        tokens = sum(count for count, _ in generated.values())
        ratios = {
            "kills": sum(self._killed.values()),
            "lost": sum(self._prompts - len(rows) for rows in found),
            "doubled": sum(count > 1 for rows in found for count in rows.values()),
            "wrong_finish": wrong,
            "rebaked_share_with_notice": noticed / tokens,
            "rebaked_s_without_notice": _p99(rebaked_s),
            "notice_to_durable_p99_s": _p99(durable),
            "notice_to_exit_p99_s": _p99([life.exit_s for life in self._lives if life.exit_s is not None]),
            "orphans": orphans,
        }
        sizes = {"prompts": self._prompts, "nights": len(nights), "workers": len(self._lives), "tokens": tokens}
        sizes |= dict(sorted(self._killed.items())) | {"leases_kept": sum(life.leases_kept for life in self._lives)}
        figures |= {
            "rebaked_share": sum(lost.values()) / tokens,
            "rebaked_s_mean": sum(rebaked_s) / max(1, len(rebaked_s)),
            "notice_to_durable_mean_s": sum(durable) / max(1, len(durable)),
            "engine_tokens_per_s": self._rate,
        }
        return Measured(ratios, sizes, figures)

    def _losses(self, nights: list[list[dict[str, Any]]]) -> tuple[dict[str, tuple[int, float]], Counter[str]]:
        """By worker: tokens generated and seconds of it; and tokens that it generated for nothing."""
        generated = {}
        lost = Counter[str]()
        asked: dict[tuple[str, bytes], list[tuple[float, str, int]]] = {}
        for life in self._lives:
            meters = list(read_meters(life.folder))
            generated[life.name] = (sum(tokens for tokens, _ in meters), sum(seconds for _, seconds in meters))
            lost[life.name] = generated[life.name][0]
            for fingerprint, when, tokens in read_asked(life.folder):
                asked.setdefault((life.plan_id, fingerprint), []).append((when, life.name, tokens))
        whole = {
            (night, row["fingerprint"]): row["completion_tokens"]
            for night, rows in zip(self._nights, nights, strict=True)
            for row in rows
        }
        for key, orders in asked.items():
            orders.sort()
            got = [tokens for _, _, tokens in orders] + [whole.get(key, 0)]
            for (_, name, _), before, after in zip(orders, got, got[1:], strict=False):
                lost[name] -= after - before
        return generated, lost


def _p99(values: list[float]) -> float:
    """The 99th percentile, by the nearest rank: of fewer than a hundred values the greatest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else 0.0
