"""Options of the application and bodies of its HTTP routes. Imports neither Ray nor torch."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medray import plugins
from medray.config.schema import Section
from medray.config.trial import PrecisionChoice
from medray.tasks.base.route import Body, routes_of

RETRY_AFTER_S = 1
BODY_BYTES = 1 << 20
CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"
DECISIONS_PATH, SYSTEMONE_PATH = "/v1/decisions", "/v1/systemone"
EXPLAIN_PATH = "/v1/explain"


def path_of(task: str) -> str:
    """Return the path at which releases of a task answer."""
    if routes := routes_of(task):
        return routes[0].path
    is_known = task in plugins.names("tasks")
    has_questions = is_known and hasattr(plugins.find("tasks", task).Task, "question_rows")
    return DECISIONS_PATH if has_questions else CHAT_PATH


class Limits(Section):
    """Limits of one request, and of all that wait."""

    body_bytes: int = Field(BODY_BYTES, ge=1, description="larger bodies are refused (413)")
    inputs: int = Field(64, ge=1, description="texts per request")
    questions: int = Field(400, ge=1, description="typed questions per request")
    options: int = Field(255, ge=2, description="options of a typed question")
    sentences: int = Field(
        64, ge=1, description="sentences of a text with citations, each left out once"
    )
    messages: int = Field(1000, ge=1, description="messages per conversation")
    tokens: int = Field(
        32768,
        ge=1,
        description="tokens per request, including those of windows and those to generate",
    )
    explanation_tokens: int = Field(
        65536,
        ge=1,
        description=(
            "tokens that the model reads for an explanation, which needs at least 34 times those "
            "of the text; more points of its path are taken within this limit"
        ),
    )
    new_tokens: int = Field(1024, ge=1, description="tokens per generated answer")
    waiting_tokens: int = Field(
        262144, ge=1, description="tokens that wait in a replica; more are refused (429)"
    )
    timeout_s: float = Field(
        30.0,
        gt=0,
        description=(
            "seconds from arrival to answer; longer than a cold start if replicas scale to zero"
        ),
    )
    ongoing_requests: int = Field(
        64, ge=1, description="requests in a replica at a time; no batch has more of them"
    )
    queued_requests: int = Field(
        128,
        ge=-1,
        description="requests that wait for a replica; more are refused (429); -1 is no limit",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.waiting_tokens < self.tokens:
            raise ValueError(
                f"waiting_tokens {self.waiting_tokens}: it is below tokens {self.tokens}, so the "
                "queue cannot hold one request; raise it"
            )
        return self


class AppOptions(Section):
    """The `args` of an application in Ray Serve's YAML: its releases and their limits."""

    releases: tuple[str, ...] = Field(
        min_length=1,
        description="name@alias or name (its latest version), which are followed, or name@version",
    )
    storage_path: str = Field("runs", description="the folder that holds the releases")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        description=(
            "auto: vLLM answers for releases that talk if it is installed and supports them; vllm: "
            "it is an error if it does not"
        ),
    )
    precision: PrecisionChoice = Field(
        "auto",
        description=(
            "auto times fp32 and bf16 at every load; on vLLM it is bf16 if the hardware supports it"
        ),
    )
    token_budget: int = Field(
        4096,
        ge=1,
        description=(
            "tokens per batch, padding included; a longer text is a batch of its own; a GPU takes "
            "more by default, by its free memory"
        ),
    )
    generation_tokens: int = Field(
        16384,
        ge=1,
        description=(
            "tokens, padding included, that a replica's cache of keys and values holds; more wait; "
            "a GPU takes more by default, by its free memory"
        ),
    )
    disclaimer_in_content: bool = Field(
        True,
        description=(
            "generated answers end with the disclaimer; it is a field of the response either way"
        ),
    )
    replicas: int = Field(
        1,
        ge=1,
        description="replicas per release, unless its deployment in Serve's YAML sets them",
    )
    cpus: float = Field(1.0, ge=0, description="CPUs and threads per replica")
    gpus: float | None = Field(
        None,
        ge=0,
        description=(
            "GPUs per replica; by default one where the cluster has enough, an equal part of one "
            "where replicas are more, and 0 without GPUs"
        ),
    )
    follow_s: float = Field(
        2.0, gt=0, description="seconds between two checks of where an alias points"
    )
    retry_s: float = Field(
        60.0, gt=0, description="seconds before a release that failed to load is tried again"
    )
    tokens_file: str | None = Field(
        None, description="a file with one hexadecimal SHA-256 of a valid token per line"
    )
    require_signature: str | None = Field(
        None,
        description=(
            "a public key (PEM); a replica never switches to a version without its signature"
        ),
    )
    mask_identifiers: bool = Field(
        False,
        description=(
            "mask e-mail addresses, telephone and record numbers, dates and names after a title in "
            "each text before a model reads it"
        ),
    )
    flag_unlike_training: bool = Field(
        False,
        description=(
            "note texts whose length, language or (with a head for rows) embedding is unlike the "
            "release's training data"
        ),
    )
    explanations: bool = Field(
        False,
        description=(
            "answer at /v1/explain which words a label rests on, for classifications; it costs at "
            "least 34 readings of a text, and a second copy of a model that is not in fp32"
        ),
    )
    audit_log: str | None = Field(
        "~/.local/state/medray/audit.log",
        description=(
            "a file in a private folder of the user, with one line per request; null: Serve's own "
            "log files"
        ),
    )
    hosts: tuple[str, ...] = Field(
        (), description="host names that browsers may use besides localhost, if there are no tokens"
    )
    open_to_all: bool = Field(
        False, description="serve without tokens on addresses other than loopback"
    )
    limits: Limits = Limits()

    @field_validator("precision", mode="before")
    @classmethod
    def _without_int8(cls, value: Any) -> Any:
        if value == "int8":
            raise ValueError(
                "int8 is not supported, since bf16 was faster; allowed: auto, fp32, bf16, fp16"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        duplicates = sorted({name for name in self.releases if self.releases.count(name) > 1})
        if duplicates:
            raise ValueError(f"releases: {', '.join(duplicates)} is listed twice; list it once")
        return self


class ErrorDetail(Body):
    """The details of an error, as OpenAI's clients expect them."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Body):
    error: ErrorDetail


class InvalidPlace(Body):
    """What is wrong with a request, and where."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


class DetailBody(Body):
    """An error of the System One route."""

    detail: tuple[InvalidPlace, ...]


class ModelCard(Body):
    """One entry of /v1/models, as OpenAI's clients expect it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when this server started")
    owned_by: Literal["medray"] = "medray"


class ModelDetail(ModelCard):
    """The description of one model."""

    release: str
    version: int
    system: str | None = Field(
        None, description="the system prompt of a release that talks; a client's own follows it"
    )
    disclaimer: str | None = None


class SystemOneModel(Body):
    """One entry of /v1/models, as clients of the System One format expect it."""

    name: str
    description: str
    release_date: str = Field(description="the day when this server started")


class ModelList(Body):
    """The releases in two forms, so that clients of both formats find theirs."""

    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]
    models: tuple[SystemOneModel, ...]


class ReplicaReport(Body):
    """What one replica serves, and the error that keeps it from the version of its alias."""

    replica: str
    release: str
    version: int = Field(description="0 while the release is missing")
    precision: str
    generating: int = Field(0, description="texts that are generated or wait")
    error: str | None = None
    error_version: int | None = None


class ReleaseHealth(Body):
    status: Literal["ok", "loading", "degraded", "idle", "missing"] = Field(
        description=(
            "loading: no replica answers yet; idle: no replica runs until a request comes; "
            "missing: the release does not exist yet"
        )
    )
    error: str | None = Field(None, description="why it is missing")
    replicas: tuple[ReplicaReport, ...] = ()


class Health(Body):
    """The health of the service. Clients without access get only the status."""

    status: Literal["ok", "loading", "degraded"]
    releases: dict[str, ReleaseHealth] | None = None
