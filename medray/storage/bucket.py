"""A bucket of S3, Google Cloud Storage or Azure: the connection by obstore, and messages for its
errors.

S3's endpoint, region and credentials come from boto3's settings, such as AWS_ENDPOINT_URL,
AWS_PROFILE and AWS_ACCESS_KEY_ID. The other two use obstore's, such as
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from medray.errors import ConfigError, MedrayError, UnreachableError

# botocore renews its credentials at least ten minutes before they end.
_CREDENTIALS_LIVE = timedelta(minutes=5)
_REPLY = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REQUEST = re.compile(r"performing (\w+) (\w+://[^/\s?]+)")
_METADATA_SERVICE = re.compile(r"//(169\.254\.169\.254|metadata)\b")
_BAD_PATH = re.compile(r"invalid path: .*?Path \"([^\"]*)\"")
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")


class Provider(NamedTuple):
    """A provider of object storage, with the words for messages about it."""

    name: str
    extra: str
    bucket: str
    credentials: str
    permissions: str


PROVIDERS = {
    "s3": Provider(
        "S3",
        "s3",
        "bucket",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
        "s3:ListBucket, s3:GetObject and s3:PutObject",
    ),
    "gs": Provider(
        "Google Cloud Storage",
        "cloud",
        "bucket",
        "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
        "storage.objects.list, storage.objects.get and storage.objects.create",
    ),
    "az": Provider(
        "Azure",
        "cloud",
        "container",
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or give the machine an "
        "identity",
        "listing, reading and writing blobs (Storage Blob Data Contributor)",
    ),
}


@dataclass(frozen=True)
class Bucket:
    """A bucket (a container in Azure) and the prefix in it below which objects are stored."""

    scheme: str
    name: str
    prefix: str  # ends with a slash unless it is empty

    @classmethod
    def parse(cls, uri: str) -> "Bucket":
        scheme, _, place = uri.partition("://")
        name, _, prefix = place.partition("/")
        if not name:
            kind = PROVIDERS[scheme].bucket
            raise ConfigError(f"{uri}: names no {kind}; write {scheme}://{kind.upper()}/PREFIX")
        return cls(scheme, name, f"{prefix.strip('/')}/".lstrip("/"))

    @property
    def provider(self) -> Provider:
        return PROVIDERS[self.scheme]

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.name}/{self.prefix}".rstrip("/")

    def connect(self) -> Any:
        """Return obstore's client for the objects below the prefix."""
        try:
            from obstore.exceptions import BaseError
            from obstore.store import AzureStore, GCSStore, S3Store

            s3 = _s3_settings(self.uri, self.provider) if self.scheme == "s3" else {}
        except ImportError as err:
            raise ConfigError(
                f"{self.uri}: {self.provider.name} needs {err.name}, which is not installed: pip "
                f"install 'medray[{self.provider.extra}]'"
            ) from None
        settings: dict[str, Any] = {
            "prefix": self.prefix or None,
            # A request may last a day, since a file may be large; a silent connection may not.
            "client_options": {
                "allow_http": True,
                "connect_timeout": "10s",
                "read_timeout": "60s",
                "timeout": "1day",
            },
            "retry_config": {"max_retries": s3.pop("max_retries", 4)},
        }
        try:
            return {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[self.scheme](
                self.name, **settings, **s3
            )
        except (BaseError, ValueError) as err:
            raise ConfigError(
                f"{self.uri}: {_one_line(err)}; {self.provider.credentials}"
            ) from None

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of obstore in the block into one of ours, with a message that says what to
        do."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as err:
            raise self._our_error(err) from None

    def _our_error(self, err: Exception) -> MedrayError:
        text, code = str(err), error_code(err)
        request, reply = _REQUEST.search(text), _REPLY.search(text)
        method, endpoint = request.groups() if request else ("a request", "the endpoint")
        status = int(reply.group(1)) if reply else None
        if _METADATA_SERVICE.search(endpoint):
            return ConfigError(
                f"{self.uri}: no credentials for {self.provider.name}: {self.provider.credentials}"
            )
        if code in NO_BUCKET:
            problem = f"there is no {self.provider.bucket} {self.name!r} at {endpoint}"
        elif status in (401, 403):
            problem = (
                f"{method} is refused ({code or status}); the credentials must be valid and allow "
                f"{self.provider.permissions}"
            )
        elif status == 501:
            feature = "a PUT with If-None-Match" if method == "PUT" else f"this {method}"
            problem = f"{method} failed: this endpoint does not support {feature}, which is needed"
        elif status is not None:
            message = _MESSAGE.search(text)
            problem = (
                f"{method} failed with {status} {code}: {message.group(1) if message else ''}"
            ).rstrip(": ")
        elif path := _BAD_PATH.search(text):
            problem = f"the object {path.group(1)!r} has a path outside its folder; remove it"
        elif "kind: Connect" in text:
            problem = f"Could not connect to the endpoint URL {endpoint}"
        else:
            problem = _one_line(err)
        return UnreachableError(f"{self.uri}: {problem}")


def _s3_settings(uri: str, provider: Provider) -> dict[str, Any]:
    """Return endpoint, region, credentials and number of retries from boto3's settings."""
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = botocore.session.Session()  # two threads must not create a shared session
        endpoint = session.create_client("s3").meta.endpoint_url
        credentials = session.get_credentials()
    except (BotoCoreError, ValueError) as err:  # ValueError: the endpoint is not a URL
        raise ConfigError(f"{uri}: {' '.join(str(err).split())}") from None
    if credentials is None:
        raise ConfigError(f"{uri}: no credentials for S3: {provider.credentials}")
    return {
        "endpoint": endpoint,
        "region": session.get_config_variable("region") or "us-east-1",
        "credential_provider": Boto3CredentialProvider(session, ttl=_CREDENTIALS_LIVE),
        "disable_bulk_delete": True,  # some services lack it
        "max_retries": int(session.get_config_variable("max_attempts") or 5) - 1,
    }


def error_code(err: Exception) -> str:
    """Return the service's error code, or an empty text."""
    match = _CODE.search(str(err))
    return match.group(1) if match else ""


def is_reply_lost(err: Exception) -> bool:
    """Return whether the request was sent and its result is unknown."""
    return _REPLY.search(str(err)) is None and "kind: Connect" not in str(err)


def _one_line(err: Exception) -> str:
    """Return obstore's message without its debugging lines, and without queries of URLs, which may
    hold a signature."""
    return re.sub(r"\?\S+", "", " ".join(str(err).partition("\n\nDebug source:")[0].split()))
