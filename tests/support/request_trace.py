"""Lists the files of medray that one HTTP request passes, from the socket to the answer: `python
tests/support/request_trace.py`. With a number, measures the CPU time of that many requests instead,
from the complete body to the answer and without the model.

The proxy's bounds, the ingress, the replica and a tiny model run in this process; only Serve
between them is left out. The ingress calls the replica itself, or as another deployment."""

import asyncio
import json
import logging
import os
import pickle
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import uvicorn
from starlette.types import ASGIApp, Message
from support import tiny
from uvicorn.protocols.http import auto

import medray
from medray.registry.registry import Registry
from medray.runtime.cluster import free_port
from medray.serving import front, ingress, replica
from medray.serving.ingress import Ingress, LocalCalls
from medray.serving.remote_calls import RemoteCalls
from medray.serving.replica import ReleaseReplica
from medray.serving.schemas import CHAT_PATH, DECISIONS_PATH, AppOptions
from medray.serving.text_model import TextModel
from medray.serving.vllm import ReleaseGroup

ROOT = Path(medray.__file__).parent
VALUES = ("types.py", "errors.py")  # values of every room, which are no step of a request
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {  # the kind of the tiny checkpoint, and the body
    "/v1/classify": ("study", {"text": "tumour in the lung"}),
    DECISIONS_PATH: (
        "study",
        {
            "input": "tumour in the lung",
            "questions": [
                {
                    "type": "choice",
                    "name": "label",
                    "instructions": "Is it about cancer?",
                    "choices": [{"value": "cancer"}, {"value": "other"}],
                }
            ],
        },
    ),
    CHAT_PATH: (
        "instruct",
        {"messages": [{"role": "user", "content": "glucose"}], "max_tokens": 4},
    ),
}


class Handle:
    """The handle of a deployment whose replica is an object of this process. Values are copied as
    between processes."""

    def __init__(self, target: Any, *, stream: bool = False) -> None:
        self.target, self.stream = target, stream

    def options(self, *, stream: bool) -> "Handle":
        return Handle(self.target, stream=stream)

    def __getattr__(self, method: str) -> SimpleNamespace:
        function = getattr(self.target, method)
        return SimpleNamespace(
            remote=lambda *args: (
                Pieces(function(*_copy(args))) if self.stream else _result(function(*_copy(args)))
            )
        )


class Pieces:
    """The stream of a call, like Serve's own generator of responses."""

    def __init__(self, generator: AsyncIterator[Any]) -> None:
        self.generator = generator

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> Any:
        return _copy(await anext(self.generator))

    def cancel(self) -> None:
        pass


async def _result(call: Any) -> Any:
    return _copy(await call)


def _copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


class Files:
    """Records the files of medray whose functions run, in any thread that starts afterwards."""

    def __init__(self) -> None:
        self.is_recording = False
        self.names: set[str] = set()
        self._of_code: dict[str, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """A profile function: Python calls it at each call of a function."""
        if self.is_recording and event == "call":
            path = frame.f_code.co_filename
            if path not in self._of_code:
                self._of_code[path] = (
                    str(Path(path).relative_to(ROOT)) if path.startswith(f"{ROOT}/") else None
                )
            if name := self._of_code[path]:
                self.names.add(name)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False


def files_of_request(path: str, *, is_remote: bool = False) -> tuple[str, ...]:
    """Return the files that the second request to a path passes, without values. The first request
    fills caches. With `is_remote`, the release is another deployment."""
    files = Files()
    kind, body = REQUESTS[path]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(threading.setprofile, threading.getprofile())
        threading.setprofile(files)
        url = stack.enter_context(serving(tiny.checkpoint(kind), place, is_remote=is_remote))
        request = urllib.request.Request(
            url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        for _ in range(2):
            files.names.clear()
            with files.recording(), urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200
                answer.read()
                time.sleep(0.2)  # the end of a request is recorded after its answer
    return tuple(sorted(files.names - set(VALUES)))


@contextmanager
def serving(checkpoint: Path, place: Path, *, is_remote: bool = False) -> Iterator[str]:
    """Serve a checkpoint's release at an address of this process."""
    options = _options(place, checkpoint)
    with application(options, is_remote=is_remote) as (app, _):
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=(port := free_port()), log_level="error")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(20)


def _options(place: Path, checkpoint: Path | None = None) -> AppOptions:
    """Publish a checkpoint, and return the options that serve it."""
    Registry(str(place)).publish(checkpoint or tiny.checkpoint(), "traced")
    return AppOptions(
        releases=("traced@1",),
        storage_path=str(place),
        precision="fp32",
        token_budget=256,
        follow_s=600,
        audit_log=None,
    )


@contextmanager
def application(
    options: AppOptions, *, is_remote: bool = False
) -> Iterator[tuple[ASGIApp, ReleaseReplica]]:
    """Build the ASGI application of a release, and its replica."""
    with ExitStack() as stack:
        for patch in _without_serve(front.environment(options.limits.body_bytes)):
            stack.enter_context(patch)
        head = ReleaseReplica(ReleaseGroup("transformers", options.releases), options)
        stack.callback(head.requests.shutdown)
        stack.callback(head.compute.shutdown)
        for follower in head.followers.values():
            stack.callback(follower.stop)
        handle: Any = Handle(head)
        calls = (
            RemoteCalls(options.limits, {"traced@1": handle}, {})
            if is_remote
            else LocalCalls(options.limits, head, handle)
        )
        (bounds,) = front.middlewares()
        yield bounds.cls(Ingress(options, calls).api(), **bounds.kwargs), head


def cpu_ms(number: int, *, num_clients: int) -> float:
    """Return the CPU milliseconds per request to /v1/classify with a text of 300 words, as so many
    clients send them. The model returns zeros, and no socket is read."""
    body = json.dumps({"text": "tumour in the lung " * 75}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b""}

    async def request(app: ASGIApp) -> None:
        messages: list[Message] = [{"type": "http.request", "body": body}]
        answers: list[Message] = []

        async def receive() -> Message:
            return messages.pop()

        async def send(message: Message) -> None:
            answers.append(message)

        await app(scope | {"headers": headers}, receive, send)
        assert answers[0]["status"] == 200

    async def client(app: ASGIApp, count: int) -> None:
        for _ in range(count):
            await request(app)

    async def measure(app: ASGIApp) -> float:
        await client(app, 50)
        start = time.process_time()
        count = number // num_clients
        await asyncio.gather(*(client(app, count) for _ in range(num_clients)))
        return 1000 * (time.process_time() - start) / (count * num_clients)

    with tempfile.TemporaryDirectory() as place:
        with application(_options(Path(place))) as (app, replica):
            model = replica.followers["traced@1"].model
            assert isinstance(model, TextModel)
            num_labels = len(model.task.labels)
            zeros = partial(np.zeros, dtype=np.float32)
            with mock.patch.object(
                model.batcher, "_outputs_of", lambda rows: zeros((len(rows), num_labels))
            ):
                return asyncio.run(measure(app))


def _without_serve(environment: Mapping[str, str]) -> Iterator[Any]:
    """Replace what a process of Serve has, and what must not change in this one."""
    client = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1"))
    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1})
    identity = SimpleNamespace(replica_id=SimpleNamespace(unique_id="traced"))
    yield mock.patch.dict(os.environ, environment)
    yield mock.patch.object(
        logging.getLogger("medray"), "handlers", [logging.NullHandler()]
    )  # those of a command called before
    yield mock.patch.object(logging.getLogger("medray"), "propagate", False)
    yield mock.patch.object(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    yield mock.patch.object(replica, "prepare")
    yield mock.patch.object(ingress, "_get_global_client", return_value=client)
    yield mock.patch.object(replica.ray, "get_runtime_context", return_value=context)
    yield mock.patch.object(replica.serve, "get_replica_context", return_value=identity)


def main() -> None:
    if number := int((sys.argv[1:] or ["0"])[0]):
        for num_clients in (1, 8):
            rounds = sorted(cpu_ms(number, num_clients=num_clients) for _ in range(5))
            print(f"{num_clients} clients: {rounds[2]:.2f} ms ({rounds[0]:.2f} to {rounds[4]:.2f})")
        return
    for path in REQUESTS:
        names = files_of_request(path)
        print(f"{path}: {len(names)} files", *names, sep="\n  ")


if __name__ == "__main__":
    main()
