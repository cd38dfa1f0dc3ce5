"""Signatures of release records in the format of OpenSSF's model-signing, from the extra `sign`.

A record names its checkpoint by the hash of a manifest, which holds the hash of each file. So a
signature covers one small file. It needs no network."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray.errors import ArtifactError, ConfigError
from medray.storage import files

_PRIVATE = (
    "an elliptic-curve private key in PEM without a password (`openssl ecparam -name prime256v1 "
    "-genkey -noout`)"
)
_PUBLIC = "an elliptic-curve public key in PEM (`openssl ec -pubout`)"


@dataclass(frozen=True)
class Signature:
    bundle: bytes
    public_key: bytes  # PEM

    @property
    def key_id(self) -> str:
        return _key_id(self.public_key)


def sign(content: bytes, private_key: Path) -> Signature:
    signing, serialization = _libraries("signing")
    with _readable(private_key, _PRIVATE), _as_model(content) as (model, signature):
        signing.Config().use_elliptic_key_signer(private_key=private_key).sign(model, signature)
        public_key = serialization.load_pem_private_key(private_key.read_bytes(), None).public_key()
        return Signature(signature.read_bytes(), _pem(public_key, serialization))


def key_id(public_key: Path) -> str:
    return _key_id(read_key(public_key))


def read_key(public_key: Path) -> bytes:
    """Return a public key as PEM, in its canonical form."""
    _, serialization = _libraries("verifying")
    with _readable(public_key, _PUBLIC):
        return _pem(serialization.load_pem_public_key(public_key.read_bytes()), serialization)


def check(content: bytes, bundle: bytes, public_key: bytes, *, where: str) -> None:
    """Raise unless the bundle is a signature of exactly this content by the owner of the key."""
    verifying, _ = _libraries("verifying")
    with _as_model(content) as (model, signature):
        signature.write_bytes(bundle)
        key = signature.with_name("key.pem")
        key.write_bytes(public_key)
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=key).verify(model, signature)
        # The library parses untrusted input, and has no error class of its own.
        except Exception as err:
            reason = str(err).splitlines()[0][:120] if str(err) else type(err).__name__
            raise ArtifactError(
                f"{where}: its signature is not one of this record ({reason}); publish it again "
                "with --sign"
            ) from None


def _key_id(public_key: bytes) -> str:
    return files.hash_bytes(public_key)[:16]


def _pem(public_key: Any, serialization: Any) -> bytes:
    content: bytes = public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return content


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}; give {kind}") from None
    # The errors of cryptography for another kind of key, or a key with a password.
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{path}: is not such a key; give {kind}") from None


@contextmanager
def _as_model(content: bytes) -> Iterator[tuple[Path, Path]]:
    """Yield the content as a model of one file, which the library can sign, and the signature's
    path."""
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "release"
        model.mkdir()
        (model / "record.json").write_bytes(content)
        yield model, Path(place) / "signature.json"


def _libraries(part: str) -> tuple[Any, Any]:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{part}"), import_module(
            "cryptography.hazmat.primitives.serialization"
        )
    except ImportError as err:
        raise ConfigError(
            f"signatures need model-signing ({err.name} is not installed); pip install "
            "'medray[sign]'"
        ) from None
