"""The settings: what there is to set, with types, defaults and meanings; ``prebake.loading`` reads them.

The names, defaults and descriptions here are the settings file's documentation (docs/configuration.md).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from prebake.keys import Key
from prebake.limits import Limits
from prebake.prices import GpuPrice, TokenPrice
from prebake.routes import Route, Routes

ENV_PREFIX = "PREBAKE_"


class Section(BaseModel):
    """A table of the settings file: closed, so that a misspelt key is an error and never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Store(Section):
    """Where everything that stays is kept."""

    root: str = Field(default="prebake-store", description="A folder, or s3://bucket/prefix.")
    ledger_url: str = Field(
        default="",
        description="SQLAlchemy URL of the ledger; empty: SQLite in the store's folder. PostgreSQL "
        "(postgresql+psycopg://...) as soon as workers run on more than one machine.",
    )
    s3_endpoint_url: str = Field(default="", description="Address of an S3-compatible store; empty: AWS.")
    keep_snapshots: int = Field(default=7, ge=1, description="Serving snapshots kept for rollback.")


class Privacy(Section):
    """How people are kept out of the store."""

    user_salt: SecretStr | None = Field(
        default=None,
        min_length=1,
        max_length=64,  # the longest key BLAKE2b takes (RFC 7693), in ASCII characters
        description="Secret that user ids are hashed with; set it by PREBAKE_PRIVACY__USER_SALT. Empty: a random "
        "one is made once and kept in the store's folder (local stores only).",
    )


class Columns(Section):
    """Where ``preset = "columns"`` finds each value: a column, or a dotted path into nested objects."""

    time: str = Field(default="timestamp", description="When the request came.")
    body: str = Field(default="", description="The whole request body as JSON; empty: built from the columns below.")
    messages: str = Field(default="messages", description="The messages, as a list or as JSON text.")
    prompt: str = Field(default="", description="A plain prompt, taken as one user message; used where set.")
    model: str = Field(default="model", description="The model's name.")
    user: str = Field(default="user", description="The user's id; hashed on the way in.")
    tenant: str = Field(default="", description="The tenant's id; empty: none.")
    prompt_tokens: str = Field(default="", description="Prompt tokens, if the log has them.")
    completion_tokens: str = Field(default="", description="Completion tokens, if the log has them.")


class Ingest(Section):
    """How query logs are read."""

    paths: tuple[str, ...] = Field(
        default=(),
        description="Files, globs or s3:// addresses that each night reads; the gateway's own log always is.",
    )
    preset: Literal["prebake", "openai", "litellm", "langfuse", "columns"] = Field(
        default="openai", description="The log's layout; columns: as [ingest.columns] says."
    )
    time_zone: str = Field(default="UTC", description="IANA zone of times that name none.")
    max_reject_share: float = Field(
        default=0.05, ge=0, le=1, description="The step fails when a larger share of the rows cannot be read."
    )
    max_row_bytes: int = Field(default=16 * 2**20, gt=0, description="Longer rows are rejected, in bytes.")
    max_future_hours: float = Field(
        default=24, ge=0, description="Rows dated further ahead than this are rejected, in hours."
    )
    columns: Columns = Columns()


class Mine(Section):
    """What counts as coming back."""

    window_days: int = Field(default=14, ge=1, description="Days of log that the plan looks back on.")
    memory_gb: float = Field(
        default=2, gt=0, description="Most memory that counting takes, in GB; the rest goes to disk."
    )
    threads: int = Field(default=0, ge=0, description="Threads that counting takes; 0: all cores.")


class Plan(Section):
    """What a night may spend. The tightest of the given budgets holds; none given: everything worth baking."""

    budget_usd: float | None = Field(default=None, ge=0, description="Most dollars of GPU time.")
    budget_gpu_s: float | None = Field(default=None, ge=0, description="Most seconds of GPU time.")
    budget_answers: int | None = Field(default=None, ge=0, description="Most answers.")
    shard_size: int = Field(default=256, ge=1, description="Answers in one shard, the unit of work and of loss.")


class Screen(Section):
    """What must not be baked whatever its value."""

    personal: bool = Field(default=True, description="Skip prompts with personal data.")
    live: bool = Field(default=True, description="Skip prompts whose answer depends on now, here or me.")
    phone_regions: tuple[str, ...] = Field(
        default=("US", "GB"), description="Regions whose national phone numbers are recognised (ISO 3166)."
    )


class Engine(Section):
    """The model that answers at night."""

    model: str = Field(default="", description="A folder or a Hugging Face name.")
    args: dict[str, Any] = Field(
        default_factory=dict, description="vLLM engine arguments, as EngineArgs names them, passed on unchanged."
    )
    max_in_flight: int = Field(
        default=0, ge=0, description="Requests inside the engine at once; 0: twice its max_num_seqs."
    )
    flush_s: float = Field(default=5.0, gt=0, description="Finished answers are kept safe at least this often, in s.")
    flush_answers: int = Field(default=256, ge=1, description="... and at least after this many answers.")
    partials_s: float = Field(
        default=0.0,
        ge=0,
        description="Tokens of unfinished answers are kept safe this often too, in s; 0: at a notice alone.",
    )
    lease_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="A shard whose worker is silent for this long goes to another one, in s.",
    )
    stall_s: float = Field(
        default=300.0, gt=0, description="An engine that makes no step for this long is started anew, in s."
    )
    logprobs: bool = Field(
        default=True,
        description="Count each answer's mean log-probability. Off, a small model is up to a quarter faster.",
    )
    memory_retries: int = Field(
        default=3,
        ge=0,
        description="So many times an engine that keeps running out of memory is started anew with halved limits.",
    )
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="Port where a bake shows its Prometheus metrics while it runs; 0: none."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of that port; 0.0.0.0: for other machines too.")


class Prices(Section):
    """What tokens cost online and what the night's machine costs."""

    online: dict[str, TokenPrice] = Field(
        default_factory=dict,
        description="By model name as clients write it; * and ? stand for any text, first match holds.",
    )
    gpu: GpuPrice = GpuPrice()


class Zone(Section):
    """A zone of machines: one EC2 Auto Scaling group of spot machines, one of on-demand machines, or either."""

    name: str = Field(description="Availability zone, as us-east-2a.")
    machine_type: str = Field(default="", description="EC2 type, as g6.2xlarge: by it live prices are asked.")
    spot_group: str = Field(default="", description="Auto Scaling group of its spot machines; empty: none are bought.")
    on_demand_group: str = Field(default="", description="... and of its on-demand machines.")
    spot_usd: float | None = Field(
        default=None, gt=0, description="Dollars per hour of a spot machine; empty: as AWS has it now."
    )
    on_demand_usd: float | None = Field(
        default=None, gt=0, description="... of an on-demand machine; empty: as prebake's dated table has it."
    )
    speed: float = Field(
        default=1.0, gt=0, description="Tokens per second over those of the machine that [prices.gpu] describes."
    )


class Capacity(Section):
    """How many machines bake, where, and when they are bought on demand."""

    workers: Literal["", "processes", "prefect", "groups"] = Field(
        default="",
        description="Where a night bakes. Empty: in its own process; processes: in worker processes on this machine, "
        "each on GPUs of its own; prefect: in runs of the deployment bake-worker; "
        "groups: on the machines of the zones, which it scales.",
    )
    deployment: str = Field(
        default="bake-worker/bake-worker", description="The Prefect deployment whose runs are the workers."
    )
    ready_h: float | None = Field(
        default=None,
        gt=0,
        description="Hours from a night's start until its answers must be ready: it takes as few workers as make "
        "that, and publishes then what it has. Empty: as many as allowed, until all is baked.",
    )
    decide_s: float = Field(default=120.0, gt=0, description="How often the machines of zones are decided on, in s.")
    max_machines: int = Field(default=4, ge=1, description="Most machines at once.")
    cold_start_h: float = Field(
        default=0.2, ge=0, description="From asking for a machine to its first answer, in hours; measure yours."
    )
    caution: float = Field(
        default=1.0,
        ge=1,
        description="How many times the work left must be in sight before dear zones are passed over.",
    )
    speed: float = Field(
        default=1.0,
        gt=0,
        description="Of the machine that a worker runs on, as its zone has it; where machines have several speeds, set "
        "it where each boots (PREBAKE_CAPACITY__SPEED).",
    )
    cloud: Literal["", "aws", "gcp", "azure"] = Field(
        default="", description="Whose preemption notices a worker listens for; empty: signals only."
    )
    margin_s: float = Field(
        default=20.0,
        ge=0,
        description="Where a notice says when the machine goes, what runs is stopped this long before, in s.",
    )
    rebalance: bool = Field(default=False, description="EC2's rebalance recommendation counts as a notice.")
    leave: bool = Field(
        default=False,
        description="A worker that finds no work left ends its EC2 machine; its Auto Scaling group wants one fewer.",
    )
    region: str = Field(default="", description="AWS region of the groups; empty: as the AWS configuration says.")
    zones: tuple[Zone, ...] = Field(default=(), description="The zones, for workers = groups.")


class Gateway(Section):
    """The online path."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8300, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    upstream: str = Field(
        default="http://127.0.0.1:8000/v1",
        pattern=r"^https?://[^/@?#\s]+(/[^@?#\s]*)?$",
        description="The model's OpenAI-compatible address, with /v1.",
    )
    upstream_key: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="Its API key, sent instead of the client's; set it by PREBAKE_GATEWAY__UPSTREAM_KEY.",
    )
    pass_unknown: bool = Field(
        default=False,
        description="Paths outside /v1 go to the upstream too, to its address without /v1; else they are not found.",
    )
    connect_timeout_s: float = Field(default=5, gt=0, description="Longest wait for a connection to it, in seconds.")
    timeout_s: float = Field(default=600, gt=0, description="Longest silence of the upstream, in seconds.")
    workers: int = Field(default=1, ge=1, description="Processes that share the port and the mapped snapshot.")
    hung_s: float = Field(
        default=60,
        gt=0,
        description="With several workers, one without a sign of life for this long is replaced, in s.",
    )
    drain_s: float = Field(default=120, gt=0, description="After SIGTERM, requests in flight may last this long, in s.")
    max_body_mb: float = Field(
        default=4, gt=0, description="Longer requests go to the upstream without being looked up, in MB."
    )
    cache_dir: str = Field(
        default="", description="Folder for snapshots fetched from S3; empty: prebake in the user's cache folder."
    )
    reload_s: float = Field(default=1.0, gt=0, description="How often a new snapshot is looked for, in seconds.")
    tenant_header: str = Field(
        default="",
        description="Request header that names the tenant; set only behind a proxy that sets it. Not beside [[keys]], "
        "which name tenants themselves.",
    )
    user_header: str = Field(default="", description="Request header that names the user; empty: the body's user.")
    access_log: bool = Field(
        default=False, description="Print one JSON line per request: path, status, outcome, time; no texts, no people."
    )
    log: bool = Field(default=True, description="Log requests for the next night.")
    log_sample: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the requests that is logged, by chance. min_count and min_users then count the sample.",
    )
    log_answers: bool = Field(
        default=False, description="Log the answers' texts too, up to 1 MB each; the nights do not need them."
    )
    log_segment_rows: int = Field(default=10_000, ge=1, description="Most rows in one segment of the request log.")
    log_flush_s: float = Field(default=5.0, gt=0, description="How often the request log is written, in seconds.")
    log_queue: int = Field(default=50_000, ge=1, description="Log rows held in memory; more are dropped and counted.")
    log_queue_mb: float = Field(default=64, gt=0, description="... and as many MB of request bodies.")
    limits: Limits = Limits()


class Near(Section):
    """Near misses: baked questions that are nearly what was asked. An extra; routes say what is done with them."""

    model: str = Field(
        default="", description="Folder of a static embedding as model2vec saves it; empty: no near misses are found."
    )
    pairs: str = Field(
        default="",
        description="Judged pairs (Parquet, CSV or JSON lines; columns route, asked, near, same) that each publish "
        "calibrates thresholds on; empty: nothing near is ever served.",
    )
    max_error: float = Field(
        default=0.01, gt=0, lt=1, description="Largest share of wrong answers among the near hits that are served."
    )
    confidence: float = Field(
        default=0.95, gt=0, lt=1, description="How sure the calibration must be of max_error before it serves any."
    )
    queue: int = Field(
        default=1000, ge=1, description="Misses waiting in memory to be compared; more are dropped and counted."
    )


class Settings(BaseSettings):
    """All settings. Load with :func:`prebake.loading.load`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    store: Store = Store()
    privacy: Privacy = Privacy()
    ingest: Ingest = Ingest()
    mine: Mine = Mine()
    screen: Screen = Screen()
    plan: Plan = Plan()
    engine: Engine = Engine()
    prices: Prices = Prices()
    capacity: Capacity = Capacity()
    gateway: Gateway = Gateway()
    near: Near = Near()
    aliases: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="One name for models that may share answers: alias = [names as clients write them].",
    )
    routes: tuple[Route, ...] = Field(
        default=(Route(name="default"),), description="The kinds of requests; the first that matches takes it."
    )

    keys: tuple[Key, ...] = Field(
        default=(), description="Who may use the gateway; none: everybody who reaches it. Make one with `prebake key`."
    )

    @model_validator(mode="after")
    def _keys_differ(self) -> Settings:
        for what, values in (("name", [k.name for k in self.keys]), ("sha256", [k.sha256 for k in self.keys])):
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise ValueError(f"two keys have the {what} {twice!r}; give each its own")
        if self.keys and self.gateway.tenant_header:
            raise ValueError("[[keys]] and gateway.tenant_header both name the tenant; remove one of them")
        return self

    @model_validator(mode="after")
    def _route_names_differ(self) -> Settings:
        names = [route.name for route in self.routes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two routes are called {name!r}; give each its own name")
        return self

    @model_validator(mode="after")
    def _near_has_a_model(self) -> Settings:
        for route in self.routes:
            if route.near != "off" and not self.near.model:
                raise ValueError(f"route {route.name!r} has near = {route.near!r}: set model in [near] to a folder")
            if route.near == "serve" and not self.near.pairs:
                raise ValueError(f"route {route.name!r} has near = 'serve': set pairs in [near] to judged pairs")
        return self

    @cached_property
    def route_table(self) -> Routes:
        """The routes, ready to match requests."""
        return Routes(self.routes, self.aliases)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what load() passes: it merges file and environment itself, to say where each value came from."""
        return (init_settings,)
