"""A new task is one file of medray/tasks: it is configured, fitted, restored and served without an
edit of other files."""

import ast
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import medray
from medray import plugins, tasks
from medray.config.load import plugin_options
from medray.errors import ConfigError
from medray.registry.loading import LoadedRelease
from medray.serving.api import make_api
from medray.serving.schemas import Limits
from medray.serving.service import Event
from medray.serving.text_model import TextModel
from medray.tasks.base import protocol
from medray.tasks.base.protocol import Calibrated, Chatting, QuestionTask, TallyTask
from medray.tasks.base.route import Served, TextRequest, TextResponse, routes_of, served_tasks
from medray.types import Example

FILE = """
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from medray.config.schema import Section
from medray.evaluation.metrics import Metrics
from medray.tasks.base.protocol import TaskOptions
from medray.tasks.base.route import Route, TextRequest, TextResponse
from medray.types import Encoded, Prediction


class Options(TaskOptions):
    name: Literal["longest_word"]
    metric: str = "accuracy"


class LongestRequest(TextRequest):
    pass


class Answer(Section):
    word: str
    labels: tuple[str, ...] = ()


class LongestResponse(TextResponse):
    predictions: tuple[Answer, ...]


@dataclass(frozen=True)
class Task:
    options: Options
    labels: tuple[str, ...] = ()
    routes: ClassVar = (Route("/v1/longest", LongestRequest, LongestResponse),)

    @classmethod
    def fit(cls, options, examples, train=()):
        return cls(options)

    @classmethod
    def restore(cls, options, state):
        return cls(options)

    def state(self):
        return {}

    def head(self):
        return None

    def encode(self, examples, tokenizer):
        return [Encoded(row.id, (1,), ()) for row in examples]

    def loss(self, targets, row_ids):
        raise NotImplementedError

    def predict(self, engine, examples):
        return [Prediction(row.id, (), (), text=max(row.text.split(), key=len)) for row in examples]

    def probe(self, engine, examples):
        return np.zeros((len(examples), 1))

    def score(self, predictions, examples):
        return Metrics({"accuracy": 1.0}, len(examples))

    def respond(self, predictions):
        return tuple(Answer(word=row.text) for row in predictions)
"""


@pytest.fixture
def new_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "longest_word.py").write_text(FILE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    yield "longest_word"
    sys.modules.pop("medray.tasks.longest_word", None)
    vars(tasks).pop("longest_word", None)


class Service:
    """One release of the new task, answered by the head that a replica would have."""

    def __init__(self, head: TextModel) -> None:
        self.references, self.head, self.events = ("words@1",), head, []  # type: tuple[str, ...], TextModel, list[Event]

    async def answer(self, reference: str, request: TextRequest) -> TextResponse:
        return self.head.answer(request, limits=Limits(), deadline=time.monotonic() + 10)

    def record(self, event: Event) -> None:
        self.events.append(event)


def test_a_new_file_is_a_task_that_is_configured_restored_and_served(new_task: str) -> None:
    options = plugin_options("tasks", f"name={new_task}")
    task = protocol.restore(options.model_dump(), protocol.fit(options, [Example("", "")]).state())
    assert isinstance(task, Served)
    assert not isinstance(task, Calibrated | TallyTask | Chatting)
    assert new_task in served_tasks()
    anything: Any = None
    service: Any = Service(
        TextModel(
            LoadedRelease("words", 4, anything, anything, task, anything, "fp32"),
            anything,
            anything,
        )
    )
    http = TestClient(make_api(service, Limits(), None))
    answer = http.post("/v1/longest", json={"inputs": ["a longer text", "b"]})
    assert answer.json() == {
        "notes": [],
        "release": "words",
        "version": 4,
        "predictions": [{"word": "longer", "labels": []}, {"word": "b", "labels": []}],
    }
    assert http.post("/v1/longest", json={"text": ""}).status_code == 422
    document = http.get("/openapi.json").json()
    assert {"/v1/longest", "/v1/classify", "/v1/extract"} <= document["paths"].keys()
    assert "LongestResponse" in document["components"]["schemas"]


def test_without_its_file_nothing_knows_the_task() -> None:
    assert routes_of("longest_word") == ()
    with pytest.raises(ConfigError, match="'longest_word' is not known"):
        plugins.find("tasks", "longest_word")


def test_no_module_outside_the_folder_names_a_task() -> None:
    """But the guess of a first study, which writes one into YAML, and the classifier of
    scikit-learn, which is one. `choice` is a kind of search axis and of question as well, and
    `decisions` a form of requests."""
    root, names = Path(medray.__file__).parent, set(plugins.names("tasks"))
    problems = []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).as_posix()
        if place.startswith("tasks/") or place in ("data/first_study.py", "python/classifier.py"):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = {".".join([node.module, alias.name]) for alias in node.names}
                problems += [
                    f"{place}: {one}"
                    for one in modules
                    if any(f"{one}.".startswith(f"medray.tasks.{name}.") for name in names)
                ]
            elif (
                isinstance(node, ast.Constant)
                and node.value in names
                and node.value not in _OTHER_MEANINGS
            ):
                problems.append(f"{place}: {node.value!r}")
    assert problems == []


_OTHER_MEANINGS = {"choice", "decisions"}


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_every_task_is_calibrated_or_tallied_and_is_served_by_text_or_by_conversation(
    name: str,
) -> None:
    examples = [Example(str(number), "-", (label,)) for number, label in enumerate("abc")]
    options = plugins.find("tasks", name).Options(name=name)
    task = protocol.fit(options, examples)
    assert isinstance(task, Calibrated) != isinstance(task, TallyTask)
    assert [isinstance(task, kind) for kind in (Served, Chatting, QuestionTask)].count(True) == 1
    assert bool(routes_of(name)) == isinstance(task, Served)
