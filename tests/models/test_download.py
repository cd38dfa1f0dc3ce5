"""Downloads from a server on loopback in place of the Hub: only files that transformers reads,
pinned to a commit, usable offline afterwards."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHERS = ("onnx/model.safetensors", "training_args.bin", "picture.png")


class Hub(BaseHTTPRequestHandler):
    """Serves the folder NAME below `root` as org/NAME."""

    root: Path
    downloads: list[str]

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == [""]:
            return self.send(b"", body)
        if parts[:2] == ["api", "models"]:
            folder = self.root / parts[3]
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "oid": "0" * 40,
                }
                for path in files
            ]
            siblings = [{"rfilename": entry["path"]} for entry in tree]
            info = {"id": f"org/{parts[3]}", "sha": COMMIT, "siblings": siblings}
            return self.send(json.dumps(tree if "tree" in parts else info).encode(), body)
        path = self.root / parts[1] / "/".join(parts[4:])
        if not path.is_file():
            return self.send(b"", body, status=404, **{"X-Error-Code": "EntryNotFound"})
        if body:
            self.downloads.append("/".join(parts[4:]))
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return self.send(content, body, **{"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def send(self, content: bytes, body: bool, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.root, Hub.downloads = tmp_path / "hub", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def repository(tmp_path: Path, name: str) -> Path:
    path = tiny.base(tmp_path).rename(tmp_path / "hub" / name)
    for other in OTHERS:
        (path / other).parent.mkdir(exist_ok=True)
        (path / other).write_bytes(b"not needed")
    return path


def ask(script: str, folder: Path, **env: str) -> str:
    clean = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        **env,
    }
    begin = "from medray.models import sources\nfrom medray.errors import ArtifactError\n"
    process = subprocess.run(
        [sys.executable, "-c", begin + script],
        capture_output=True,
        text=True,
        env=clean,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


RESOLVE = (
    "base = sources.resolve('org/{}')\nprint(base.revision, base.weight_hash, base.path.name, "
    "*sorted(path.name for path in base.path.iterdir()))"
)


def test_what_is_downloaded_is_what_transformers_reads_and_stays_usable_offline(
    hub: str, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    path = repository(tmp_path, "whole")
    ask("sources.config_dir('org/whole')", tmp_path, HF_ENDPOINT=hub)
    assert Hub.downloads == ["config.json"]
    output = ask(
        "try: sources.resolve('org/whole')\nexcept ArtifactError as err: print(err)",
        tmp_path,
        HF_HUB_OFFLINE="1",
    )
    assert "org/whole: " in output  # its config.json alone is in the cache now, which is not a base
    online = ask(RESOLVE.format("whole"), tmp_path, HF_ENDPOINT=hub)
    names = sorted(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
    assert online.split()[0] == online.split()[2] == COMMIT
    assert online.split()[3:] == names
    assert not set(OTHERS) & set(Hub.downloads)
    assert ask(RESOLVE.format("whole"), tmp_path, HF_HUB_OFFLINE="1") == online
    local = ask(f"print(sources.resolve({str(path)!r}).weight_hash)", tmp_path)
    assert online.split()[1] == local


def test_bin_weights_are_fetched_only_where_there_are_no_safetensors(
    hub: str, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    path = repository(tmp_path, "old")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    output = ask(RESOLVE.format("old"), tmp_path, HF_ENDPOINT=hub)
    assert "pytorch_model.bin" in output.split()
    assert "training_args.bin" not in output.split()
    (path / "pytorch_model.bin").unlink()
    output = ask(
        "try: sources.resolve('org/old')\nexcept ArtifactError as err: print(err)",
        tmp_path / "empty",
        HF_ENDPOINT=hub,
    )
    assert output.startswith(
        "org/old: has no weights that transformers reads; it needs model.safetensors or "
        "pytorch_model.bin"
    )


def test_without_a_network_nobody_waits_half_a_minute_for_each_base(tmp_path: Path) -> None:
    tries = (
        "import time\nstart = time.monotonic()\nfor name in ('org/one', 'org/two'):\n    try: "
        "sources.config_dir(name)\n    except ArtifactError as err: print(err)\nassert "
        "time.monotonic() - start < 15"
    )
    output = ask(
        tries, tmp_path, HF_ENDPOINT="http://127.0.0.1:9"
    )  # the port of "discard", where nothing listens
    assert output.count("is not in the local cache, and the Hub cannot be reached") == 2
