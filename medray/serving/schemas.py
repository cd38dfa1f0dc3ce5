"""What the application is configured with, and what its HTTP bodies look like. Knows neither Ray
nor torch."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medray.config.schema import Section
from medray.config.study import PrecisionChoice
from medray.serving.auth import BODY_BYTES
from medray.tasks.base.route import Body

RETRY_AFTER_S = 1
CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"


class Limits(Section):
    """What one request, and all waiting ones, may ask for."""

    body_bytes: int = Field(
        BODY_BYTES, ge=1, description="larger bodies are refused while they are read (413)"
    )
    inputs: int = Field(64, ge=1, description="texts in a request")
    messages: int = Field(1000, ge=1, description="messages of a conversation")
    tokens: int = Field(
        32768,
        ge=1,
        description="tokens in a request, windows included, and those it asks to be generated",
    )
    new_tokens: int = Field(1024, ge=1, description="tokens of a generated answer")
    waiting_tokens: int = Field(
        262144, ge=1, description="tokens waiting in a replica; more are refused (429)"
    )
    timeout_s: float = Field(
        30.0,
        gt=0,
        description=(
            "from arrival to answer; must be longer than a cold start where replicas scale to zero"
        ),
    )
    ongoing_requests: int = Field(
        64, ge=1, description="requests in a replica at a time; bounds a batch from above"
    )
    queued_requests: int = Field(
        128,
        ge=-1,
        description="requests waiting for a replica; more are refused (429), -1 is no bound",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.waiting_tokens < self.tokens:
            raise ValueError(
                f"waiting_tokens {self.waiting_tokens} and tokens {self.tokens}: a request that "
                "is allowed must fit the queue"
            )
        return self


class AppOptions(Section):
    """`args` of an application in Ray Serve's YAML: which releases, and within which limits."""

    releases: tuple[str, ...] = Field(
        min_length=1,
        description="name@alias (followed), name (its latest, followed) or name@version",
    )
    storage_path: str = Field("runs", description="the folder that holds the releases")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        description=(
            "auto: releases that talk are answered by vLLM where it is installed and takes them; "
            "vllm: it is an error where not"
        ),
    )
    precision: PrecisionChoice = Field(
        "auto",
        description=(
            "auto times fp32 and bf16 at every load; on vLLM it is bf16 where the hardware "
            "multiplies it"
        ),
    )
    token_budget: int = Field(
        4096, ge=1, description="tokens of a batch, padding included; a longer text goes alone"
    )
    generation_tokens: int = Field(
        16384,
        ge=1,
        description=(
            "tokens, padding included, whose keys and values a replica keeps while it generates; "
            "more wait"
        ),
    )
    disclaimer_in_content: bool = Field(
        True,
        description=(
            "a generated answer ends with the disclaimer, which is a field of the answer either way"
        ),
    )
    replicas: int = Field(
        1,
        ge=1,
        description="of each release, where its deployment in Serve's YAML says nothing else",
    )
    cpus: float = Field(
        1.0, ge=0, description="CPUs of a replica, which computes with as many threads"
    )
    follow_s: float = Field(
        2.0, gt=0, description="how often a replica looks where its alias points"
    )
    retry_s: float = Field(
        60.0, gt=0, description="how long a release that failed to load is left alone"
    )
    tokens_file: str | None = Field(
        None, description="a SHA-256 in hexadecimal per line: the tokens that may ask"
    )
    require_signature: str | None = Field(
        None,
        description=(
            "a public key (PEM): a version that its holder did not sign is never switched to, and "
            "the one before still answers"
        ),
    )
    mask_identifiers: bool = Field(
        False,
        description=(
            "e-mail, telephone, record numbers, dates and names behind a title are masked before a "
            "model reads a text"
        ),
    )
    flag_unlike_training: bool = Field(
        False,
        description=(
            "say where a text's length, language or, with a head for rows, embedding is unlike "
            "those of the release's data"
        ),
    )
    audit_log: str | None = Field(
        "~/.local/state/medray/audit.log",
        description=(
            "a file in a folder of the user's own, which gets a line per request; null: Serve's "
            "own log files get it"
        ),
    )
    hosts: tuple[str, ...] = Field(
        (), description="names that browsers may ask besides localhost, where there are no tokens"
    )
    open_to_all: bool = Field(
        False, description="let an address other than loopback answer without tokens"
    )
    limits: Limits = Limits()

    @field_validator("precision", mode="before")
    @classmethod
    def _without_int8(cls, value: Any) -> Any:
        if value == "int8":
            raise ValueError(
                "answers in 8 bits are gone, since bf16 was faster; allowed: auto, fp32, bf16, fp16"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = sorted({name for name in self.releases if self.releases.count(name) > 1})
        if twice:
            raise ValueError(f"releases: {', '.join(twice)} stand there twice")
        return self


class ErrorDetail(Body):
    """As OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Body):
    error: ErrorDetail


class ModelCard(Body):
    """One entry of /v1/models, in the shape that OpenAI clients know."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when this server started")
    owned_by: Literal["medray"] = "medray"


class ModelDetail(ModelCard):
    """What somebody who asks it should know."""

    release: str
    version: int
    system: str | None = Field(
        None, description="the system prompt of a release that talks; a client's own comes after it"
    )
    disclaimer: str | None = None


class ModelList(Body):
    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


class ReplicaReport(Body):
    """What one replica serves, and why it does not serve what its alias says."""

    replica: str
    release: str
    version: int = Field(description="0 while its release is missing")
    precision: str
    generating: int = Field(0, description="texts under way, waiting ones included")
    error: str | None = None
    error_version: int | None = None


class ReleaseHealth(Body):
    status: Literal["ok", "loading", "degraded", "idle", "missing"] = Field(
        description=(
            "loading: no replica answers yet; idle: there is none until somebody asks; missing: "
            "the release is not there yet"
        )
    )
    error: str | None = Field(None, description="why it is missing")
    replicas: tuple[ReplicaReport, ...] = ()


class Health(Body):
    """Details are for those who may ask; a load balancer gets the status alone."""

    status: Literal["ok", "loading", "degraded"]
    releases: dict[str, ReleaseHealth] | None = None
