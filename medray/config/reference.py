"""The settings of a reference: a service that answers typed questions, beside which a study puts
its trials."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from medray.config.addresses import is_loopback
from medray.config.schema import Section
from medray.errors.redaction import REFERENCE
from medray.types import DecisionFormat

_FORMATS: tuple[DecisionFormat, ...] = ("decisions", "systemone")


class ReferenceConfig(Section):
    """A service that gets the texts and questions of validation and test rows, without answers."""

    url: str = Field(
        description=(
            "address of its route, such as https://HOST/v1/decisions or https://HOST/v1/systemone"
        )
    )
    model: str = Field(min_length=1, description="name of the model, as the service calls it")
    api: DecisionFormat | None = Field(
        None, description="format of the route; by default the last part of url"
    )
    token: str | None = Field(
        None, description="bearer token, only by reference: ${env:NAME} or ${file:PATH}"
    )
    allow_http: bool = Field(
        False, description="send texts and token to another machine without encryption"
    )
    price_per_million: float | None = Field(
        None, ge=0, description="price of a million tokens, in any currency"
    )
    num_parallel: int = Field(4, ge=1, le=64, description="most requests at a time")
    timeout_s: float = Field(60, gt=0, le=3600, description="seconds until a request is given up")

    @field_validator("token")
    @classmethod
    def _by_reference(cls, token: str | None) -> str | None:
        if token is not None and not REFERENCE.fullmatch(token):
            raise ValueError(
                "must be ${env:NAME} or ${file:PATH}, the name of what holds the token; no token "
                "is written into settings"
            )
        return token

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_address &= parts.port != 0
        except ValueError:
            is_address = False
        if not is_address or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("must be an address of the form https://HOST/PATH")
        if parts.username is not None or parts.query or parts.fragment or REFERENCE.search(url):
            raise ValueError(
                "must have no user, password, query or reference; name the secret in `token`"
            )
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.api is None and self.url.rsplit("/", 1)[-1] not in _FORMATS:
            raise ValueError(
                "url ends with neither /decisions nor /systemone; set api to the format of the "
                "route"
            )
        if urlsplit(self.url).scheme == "http" and not (self.is_local or self.allow_http):
            raise ValueError(
                "url would send texts to another machine without encryption; write https://, or "
                "set allow_http: true"
            )
        return self

    @property
    def form(self) -> DecisionFormat:
        if self.api is not None:
            return self.api
        return "systemone" if self.url.endswith("/systemone") else "decisions"

    @property
    def is_local(self) -> bool:
        return is_loopback(str(urlsplit(self.url).hostname))

    @property
    def name(self) -> str:
        """Return the name on the leaderboard."""
        return f"{self.model} at {self.url.partition('://')[2]}"
