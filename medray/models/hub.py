"""Files of a base model from the Hugging Face Hub. What can go wrong there becomes one sentence; no
token is read or kept here."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client that it uses

from medray.errors import ArtifactError

_CONFIG_AND_TOKENIZER = ["*.json", "*.txt", "*.model", "*.jinja"]
_IN_FOLDERS = [
    "*/*"
]  # other formats of the same weights (onnx/, gguf/), which transformers does not read


def snapshot(model_id: str, revision: str | None, has_weights: Callable[[Path], bool]) -> Path:
    """The folder of one commit: its weights as safetensors, and only where it has none of those as
    *.bin."""
    with _explained(model_id, revision):
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            found = huggingface_hub.snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=[*_CONFIG_AND_TOKENIZER, weights],
                ignore_patterns=_IN_FOLDERS,
            )
            if has_weights(Path(found)):
                break
    return Path(found)


def config(model_id: str, revision: str | None) -> Path:
    with _explained(model_id, revision):
        return Path(
            huggingface_hub.hf_hub_download(
                model_id, "config.json", revision=revision, local_files_only=not is_reached()
            )
        )


@cache
def is_reached() -> bool:
    """Whether anything answers there, asked once: without a network huggingface_hub tries for half
    a minute for each file."""
    if constants.HF_HUB_OFFLINE:
        return False
    end = time.monotonic() + constants.HF_HUB_ETAG_TIMEOUT  # of all tries together
    for pause_s in (1, 1, 0):
        try:
            huggingface_hub.get_session().head(
                constants.ENDPOINT, timeout=max(end - time.monotonic(), 0.1)
            )
            return True
        except (HTTPError, OSError):
            if time.monotonic() + pause_s >= end:
                return False
            time.sleep(pause_s)
    return False


@contextmanager
def _explained(model_id: str, revision: str | None) -> Iterator[None]:
    token = "a token as HF_TOKEN or by `hf auth login`"
    try:
        yield
    except errors.GatedRepoError as err:
        raise ArtifactError(
            f"{model_id}: its licence must be accepted at https://huggingface.co/{model_id}, then "
            f"give {token} of the account that did"
        ) from err
    except errors.RevisionNotFoundError as err:
        raise ArtifactError(f"{model_id}: the Hub has no revision {revision!r} of it") from err
    except errors.RepositoryNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: the Hub knows no such model, or it is private: then give {token}; a "
            "folder of that name is not here either"
        ) from err
    except errors.LocalEntryNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: is not in the local cache and the Hub cannot be reached "
            "(HF_HUB_OFFLINE, or no network)"
        ) from err
    except errors.EntryNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: has no config.json on the Hub, so transformers cannot load it"
        ) from err
    except (errors.HFValidationError, HTTPError, OSError) as err:
        # The class and not the text: a proxy's address may hold a password.
        raise ArtifactError(
            f"{model_id}: cannot be fetched from the Hub: {type(err).__name__}{_status(err)}"
        ) from err


def _status(err: Exception) -> str:
    status = getattr(getattr(err, "response", None), "status_code", None)
    return f" (HTTP {status})" if status else ""
