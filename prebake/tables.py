"""The tables between the steps, each declared once: name, type, unit and meaning of every column.

The same declaration is the Arrow schema that is written, the comment on the DuckDB view and the page in ``docs/tables.md``.
Types keep to what Delta Lake can store (no unsigned integers, no fixed-size binary).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
FINGERPRINT = pa.binary()
SKETCH_SIZE = 64  # distinct users are counted exactly below it: as many as a route may ask for


@dataclass(frozen=True)
class Column:
    """One column: ``unit`` is empty where the type says it all."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table: its columns in order and the columns its files are partitioned by.

    ``rows_together``: rows in a row group of its files, which is the least that a reader takes into memory.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ("day",)
    rows_together: int = 131_072

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, meanings and units as field metadata."""
        return pa.schema(
            [
                pa.field(
                    c.name,
                    c.type,
                    c.nullable,
                    {"meaning": c.meaning, "unit": c.unit} if c.unit else {"meaning": c.meaning},
                )
                for c in self.columns
            ]
        )


_DAY = Column("day", pa.date32(), "Day of the request", "UTC day")
_FINGERPRINT = Column("fingerprint", FINGERPRINT, "Key of the canonical request", "16 bytes")
_ROUTE = Column("route", pa.string(), "Route that took the request")
_SCOPE = Column(
    "scope", pa.string(), "Who may share the answer: 'shared' or 'tenant/<tenant>', after 'namespace/<name>/' if any"
)
_REQUEST = Column("request", pa.string(), "What the model is asked", "canonical JSON: messages, model, params")
_PROMPT = Column("prompt", pa.string(), "Text of the last user message")

QUERY_LOG = Table(
    "query_log",
    "Every request that was read, one row each; raw user ids are never here.",
    (
        _DAY,
        Column("ts", TIME, "When the request came", "UTC"),
        Column("route", pa.string(), "Route that took the request", nullable=True),
        Column("tenant", pa.string(), "Tenant who asked", nullable=True),
        Column("scope", pa.string(), _SCOPE.meaning, nullable=True),
        Column("user_hash", pa.int64(), "Salted hash of the user's id", nullable=True),
        Column("fingerprint", FINGERPRINT, _FINGERPRINT.meaning, "16 bytes", nullable=True),
        Column("bypass", pa.string(), "Why it can never be answered from the store", nullable=True),
        Column("turns", pa.int32(), "User messages in the conversation", "messages"),
        Column("model", pa.string(), "Model name as the client wrote it"),
        Column("request", pa.string(), _REQUEST.meaning, _REQUEST.unit, nullable=True),
        _PROMPT,
        Column("prompt_tokens", pa.int64(), "Prompt tokens, where the log has them", "tokens", nullable=True),
        Column("completion_tokens", pa.int64(), "Completion tokens, where the log has them", "tokens", nullable=True),
        Column(
            "cache",
            pa.string(),
            "What the gateway did: hit, near (a near question's answer), miss or bypass",
            nullable=True,
        ),
        Column("source", pa.string(), "Digest of the file the row came from"),
    ),
)

REJECTS = Table(
    "rejects",
    "Rows of the input that could not be read.",
    (
        Column("day", pa.date32(), "Day of the ingest", "UTC day"),
        Column("source", pa.string(), "Digest of the file the row came from"),
        Column("file", pa.string(), "File as it was named"),
        Column("line", pa.int64(), "Line or row in the file", "from 1"),
        Column("reason", pa.string(), "What was wrong, and what was expected"),
    ),
)

DAILY_COUNTS = Table(
    "daily_counts",
    "How often each fingerprint was asked on each day: the partial sums that a window merges.",
    (
        _DAY,
        _ROUTE,
        _SCOPE,
        _FINGERPRINT,
        Column("requests", pa.int64(), "Requests on that day", "requests"),
        Column(
            "user_sketch",
            pa.list_(pa.int64()),
            f"Smallest user hashes of the day, at most {SKETCH_SIZE}: counts distinct users exactly below that",
        ),
        Column("tenant_sketch", pa.list_(pa.int64()), f"Smallest tenant hashes of the day, at most {SKETCH_SIZE}"),
        Column("turns", pa.int32(), "User messages in the conversation", "messages"),
        Column("prompt_tokens", pa.int64(), "Sum over the rows that have a count", "tokens"),
        Column("completion_tokens", pa.int64(), "Sum over the rows that have a count", "tokens"),
        Column("counted", pa.int64(), "Rows that have token counts", "requests"),
        Column("first_seen", TIME, "First request of the day", "UTC"),
        Column("last_seen", TIME, "Last request of the day", "UTC"),
    ),
)

PLAN = Table(
    "plan",
    "What the night decided for each candidate, and why.",
    (
        Column("day", pa.date32(), "Last day of log the plan looked at; its answers serve the days after", "UTC day"),
        Column("plan_id", pa.string(), "The plan"),
        _FINGERPRINT,
        _ROUTE,
        _SCOPE,
        _REQUEST,
        _PROMPT,
        Column("requests", pa.int64(), "Requests in the window", "requests"),
        Column("users", pa.int64(), f"Distinct users in the window, exact below {SKETCH_SIZE}", "users"),
        Column("tenants", pa.int64(), f"Distinct tenants in the window, exact below {SKETCH_SIZE}", "tenants"),
        Column("expected_hits", pa.float64(), "Hits expected while the answer is good", "requests"),
        Column("value_usd", pa.float64(), "What the online path would spend on those hits", "dollars"),
        Column("cost_usd", pa.float64(), "What the night spends on the answer", "dollars"),
        Column("gpu_s", pa.float64(), "GPU time of the answer", "seconds"),
        Column("decision", pa.string(), "bake, keep or skip"),
        Column("reason", pa.string(), "Why"),
        Column("shard_id", pa.int32(), "Shard that bakes it", nullable=True),
        Column("position", pa.int32(), "Place in the shard", nullable=True),
    ),
    rows_together=2048,  # a worker reads it shard by shard
)

ANSWERS = Table(
    "answers",
    "Every answer the nights have written, and every prompt the engine refused.",
    (
        Column("day", pa.date32(), "The plan's day", "UTC day"),
        Column("plan_id", pa.string(), "Plan that asked for it"),
        Column("run_id", pa.string(), "Run that baked it"),
        Column("shard_id", pa.int32(), "Shard it was baked in"),
        _FINGERPRINT,
        _ROUTE,
        _SCOPE,
        _PROMPT,
        Column("status", pa.string(), "answered, truncated (cut off by the length limit) or refused (by the engine)"),
        Column("finish_reason", pa.string(), "As OpenAI names it: stop, length, tool_calls", nullable=True),
        Column("message", pa.string(), "The assistant message", "JSON", nullable=True),
        Column("error", pa.string(), "Why the engine refused", nullable=True),
        Column("model", pa.string(), "Model that answered"),
        Column("prompt_tokens", pa.int64(), "Prompt length", "tokens"),
        Column("completion_tokens", pa.int64(), "Answer length", "tokens"),
        Column("mean_logprob", pa.float64(), "Mean log-probability of the answer's tokens", "nats", nullable=True),
        Column("engine_s", pa.float64(), "Time from entering the engine to the last token", "seconds"),
        Column("baked_at", TIME, "When it was finished", "UTC"),
        Column("expires_at", TIME, "Until when it is good", "UTC"),
    ),
)

GATEWAY_LOG = Table(
    "gateway_log",
    "What the gateway notes of each request: Parquet segments under gateway-log/, read by ingest, no Delta table.",
    (
        Column("ts", TIME, "When the request came", "UTC"),
        Column("tenant", pa.string(), "Tenant who asked", nullable=True),
        Column("namespace", pa.string(), "Partition of the tenant's or the shared answers it asked in", nullable=True),
        Column("user_hash", pa.int64(), "Salted hash of the user's id", nullable=True),
        Column("body", pa.string(), "The request's body, without the fields that name people", "JSON"),
        Column("cache", pa.string(), "What the gateway did: hit, near (a near question's answer), miss or bypass"),
        Column("reason", pa.string(), "Why it was a miss or a bypass", nullable=True),
        Column("prompt_tokens", pa.int64(), "Prompt tokens, where known", "tokens", nullable=True),
        Column("completion_tokens", pa.int64(), "Completion tokens, where known", "tokens", nullable=True),
        Column("status", pa.int32(), "HTTP status of the answer; only answered requests (200) are counted"),
        Column(
            "sample_share",
            pa.float64(),
            "Share of the requests that were logged then: a row stands for 1 over it",
            nullable=True,
        ),
        Column(
            "answer",
            pa.string(),
            "The answer, where log_answers asks for it: a hit's message (JSON), or what the upstream sent (JSON, or events of a stream)",
            nullable=True,
        ),
    ),
    partition_by=(),
)

NEAR_MISSES = Table(
    "near_misses",
    "Misses of routes that record them, each with the baked question nearest to it, for judging whether one answer "
    "would do for both: Parquet segments under near-misses/, written by the gateway.",
    (
        Column("ts", TIME, "When the request came", "UTC"),
        _ROUTE,
        _SCOPE,
        Column("fingerprint", FINGERPRINT, "Key of the question that was asked", "16 bytes"),
        Column("asked", pa.string(), "Text of the question that was asked"),
        Column("near_fingerprint", FINGERPRINT, "Key of the nearest baked question", "16 bytes"),
        Column("near", pa.string(), "Text of the nearest baked question"),
        Column("similarity", pa.float32(), "Cosine of the angle between their embeddings", "-1 to 1"),
        Column("difference", pa.string(), "What keeps them apart whatever their similarity", nullable=True),
        Column("served", pa.bool_(), "Whether the near answer was served"),
        Column("snapshot", pa.string(), "Snapshot in which the nearest question was found"),
    ),
    partition_by=(),
)

# What the ledger knows, shown as a view beside the tables.
RUNS = Table(
    "runs",
    "Every run of the night and of its steps, from the ledger.",
    (
        Column("run_id", pa.string(), "The run; later ones sort after earlier ones"),
        Column("kind", pa.string(), "What ran: nightly, or one step"),
        Column("day", pa.date32(), "Day of the plan it worked on", "UTC day", nullable=True),
        Column("params", pa.string(), "What it was started with", "JSON"),
        Column("status", pa.string(), "running, or how it ended"),
        Column("started_at", TIME, "When it began", "UTC"),
        Column("finished_at", TIME, "When it ended", "UTC", nullable=True),
        Column("summary", pa.string(), "What it said at its end", "JSON"),
    ),
    partition_by=(),
)

# The newest row of each fingerprint, for questions about what is known now.
ANSWERS_CURRENT = Table(
    "answers_current",
    "The newest answer of each fingerprint; status and expires_at say whether it may be served.",
    ANSWERS.columns,
    partition_by=(),
)

TABLES = (QUERY_LOG, REJECTS, DAILY_COUNTS, PLAN, ANSWERS)
