"""A small HTTP server on loopback that speaks both formats of typed questions, well or badly."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
Shares = Callable[[str, str, list[str]], list[float] | None]  # of a text, a question, its options


@dataclass(frozen=True)
class Response:
    status: int = 200
    content: Any = None  # JSON, or bytes as they are
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    url: str = ""
    requests: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[str, Body], Response]) -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1; `answer` returns the response to a path and a body."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.requests.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            response = answer(self.path, body)
            content = response.content
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(response.status)
            for name, value in {"content-length": str(len(raw)), **response.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        server.url = f"http://127.0.0.1:{http_server.server_port}"
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            http_server.shutdown()
            thread.join()


def answering(shares: Shares) -> Callable[[str, Body], Response]:
    """Return an `answer` in the format of the path; `shares` gives the probabilities, or None for
    a refusal."""

    def answer(path: str, body: Body) -> Response:
        content = _systemone(body, shares) if "systemone" in path else _decisions(body, shares)
        return Response(content=content)

    return answer


def _decisions(body: Body, shares: Shares) -> Body:
    answers = []
    for question in body["questions"]:
        kind, name = question["type"], question["name"]
        options = question.get("choices") or question.get("levels") or []
        values = [option.get("value") or option["label"] for option in options]
        own = shares(body["input"], name, values or ["true", "false"])
        if own is None:
            answers.append({"type": "refusal", "name": name})
        elif kind == "predicate":
            answers.append({"type": kind, "name": name, "probability": own[0]})
        else:
            keys: list[Any] = values if kind == "choice" else list(range(len(values)))
            pairs = [
                {"value": key, "label": value, "probability": share}
                for key, value, share in zip(keys, values, own, strict=True)
            ]
            answers.append({"type": kind, "name": name, "probabilities": pairs[::-1]})
    usage = {"input_tokens": len(body["input"].split()), "output_tokens": 1, "total_tokens": 9}
    return {"model": body["model"], "answers": answers, "usage": usage}


def _systemone(body: Body, shares: Shares) -> Body:
    answers = {}
    for name, question in body["questions"].items():
        kind, values = question["type"], list(question["criteria"] or ["true", "false"])
        own = shares(body["state"], name, values)
        assert own is not None
        keys = [str(place) for place in range(len(values))] if kind == "score" else values
        by_value = dict(zip(keys, own, strict=True))
        answers[name] = {"type": kind, "noul": own[0], "probabilities": by_value}
    usage = {"input_tokens": len(body["state"].split()), "output_tokens": 1}
    return {"id": "1", "model": body["model"], "answers": answers, "usage": usage}
