"""Downloads the files of a base model from the Hugging Face Hub, with one-sentence errors. It
neither reads nor stores a token."""

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
# folders have other formats of the same weights (onnx/, gguf/), which transformers does not read
_IN_FOLDERS = ["*/*"]


def snapshot(model_id: str, revision: str | None, has_weights: Callable[[Path], bool]) -> Path:
    """Download one commit and return its folder, with weights as safetensors or else as *.bin."""
    with _clear_errors(model_id, revision):
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            folder = huggingface_hub.snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=[*_CONFIG_AND_TOKENIZER, weights],
                ignore_patterns=_IN_FOLDERS,
            )
            if has_weights(Path(folder)):
                break
    return Path(folder)


def config(model_id: str, revision: str | None) -> Path:
    with _clear_errors(model_id, revision):
        return Path(
            huggingface_hub.hf_hub_download(
                model_id, "config.json", revision=revision, local_files_only=not is_reached()
            )
        )


@cache
def is_reached() -> bool:
    """Return whether the Hub answers, with one request per process.

    Without a network, huggingface_hub would try for half a minute per file.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    end = time.monotonic() + constants.HF_HUB_ETAG_TIMEOUT  # for all attempts together
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
def _clear_errors(model_id: str, revision: str | None) -> Iterator[None]:
    token = "a token as HF_TOKEN or by `hf auth login`"
    try:
        yield
    except errors.GatedRepoError as err:
        raise ArtifactError(
            f"{model_id}: needs a license; accept it at https://huggingface.co/{model_id} and give "
            f"{token} of that account"
        ) from err
    except errors.RevisionNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: the Hub has no revision {revision!r} of this model"
        ) from err
    except errors.RepositoryNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: neither a folder nor a public model of the Hub; for a private model, "
            "give "
            f"{token}"
        ) from err
    except errors.LocalEntryNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: is not in the local cache, and the Hub cannot be reached; check the "
            "network and HF_HUB_OFFLINE"
        ) from err
    except errors.EntryNotFoundError as err:
        raise ArtifactError(
            f"{model_id}: has no config.json on the Hub; choose a model that transformers loads"
        ) from err
    except (errors.HFValidationError, HTTPError, OSError) as err:
        # The class and not the text: the address of a proxy may contain a password.
        raise ArtifactError(
            f"{model_id}: cannot be downloaded from the Hub: {type(err).__name__}{_status(err)}"
        ) from err


def _status(err: Exception) -> str:
    status = getattr(getattr(err, "response", None), "status_code", None)
    return f" (HTTP {status})" if status else ""
