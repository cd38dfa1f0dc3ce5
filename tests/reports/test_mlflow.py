import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import run_files

from medray import cli
from medray.config import load
from medray.errors import ArtifactError, ConfigError
from medray.reports import mlflow
from medray.reports.study_data import gather
from medray.study import preflight


class ServerError(Exception):
    """Stands for MLflow's own exception."""


@dataclass
class Server:
    """The state of an MLflow server, as far as these tests read it."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, list[Any]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], int] = field(default_factory=dict)
    is_up: bool = True


class Client:
    """The calls of MlflowClient that a study makes."""

    server = Server()

    def __init__(self, tracking_uri: str, registry_uri: str) -> None:
        assert tracking_uri == registry_uri == "sqlite:///x.db"

    def get_experiment_by_name(self, name: str) -> Any:
        if not self.server.is_up:
            raise ServerError("no answer\nand a long traceback")
        return SimpleNamespace(experiment_id=name)

    def create_run(self, experiment: str, **arguments: Any) -> Any:
        name = f"r{len(self.server.runs)}"
        self.server.runs[name] = {
            "tags": dict(arguments.get("tags", {})),
            "params": {},
            "metrics": [],
            "files": [],
            "name": arguments["run_name"],
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=name, artifact_uri=f"artifacts/{name}"))

    def search_runs(
        self, experiments: list[str], filter_string: str, max_results: int
    ) -> list[Any]:
        conditions = {}
        for part in filter_string.split(" and "):
            name, _, value = part.partition(" = ")
            conditions[name.removeprefix("tags.").strip("`")] = value.strip("'")
        matches = [
            name
            for name, run in self.server.runs.items()
            if conditions.items() <= run["tags"].items()
        ]
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=name, artifact_uri=f"artifacts/{name}"))
            for name in matches[:max_results]
        ]

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        self.server.runs[run]["metrics"] += list(metrics)
        self.server.runs[run]["params"] |= dict(params)

    def log_artifact(self, run: str, path: str) -> None:
        self.server.runs[run]["files"].append(Path(path).name)

    def log_artifacts(self, run: str, folder: str, below: str) -> None:
        self.server.runs[run]["files"].append(below)

    def set_tag(self, run: str, name: str, value: str) -> None:
        self.server.runs[run]["tags"][name] = value

    def set_terminated(self, run: str, status: str, **_: Any) -> None:
        self.server.runs[run]["status"] = status

    def search_registered_models(self, filter_string: str) -> list[Any]:
        return [name for name in self.server.models if f"'{name}'" in filter_string]

    def create_registered_model(self, name: str) -> None:
        self.server.models[name] = []

    def search_model_versions(self, filter_string: str) -> list[Any]:
        return [
            version
            for name, model in self.server.models.items()
            if f"'{name}'" in filter_string
            for version in model
        ]

    def create_model_version(self, name: str, source: str, run: str, tags: dict[str, str]) -> Any:
        made_version = SimpleNamespace(
            version=len(self.server.models[name]) + 1, source=source, tags=tags
        )
        self.server.models[name].append(made_version)
        return made_version

    def set_registered_model_alias(self, name: str, alias: str, version: int) -> None:
        self.server.aliases[name, alias] = version


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    root, entities, exceptions = (
        ModuleType("mlflow"),
        ModuleType("mlflow.entities"),
        ModuleType("mlflow.exceptions"),
    )
    root.__spec__ = sys.modules["json"].__spec__
    Client.server = Server()
    root.MlflowClient = Client  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, at, step: (key, value, step)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
    exceptions.MlflowException = ServerError  # type: ignore[attr-defined]
    for module in (root, entities, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return Client.server


def test_a_study_its_trials_and_its_release_are_logged_once(server: Server, tmp_path: Path) -> None:
    run = run_files.run(tmp_path, histories=run_files.trials(num_failed=1))
    best, data = run.leaderboard().best, gather(run)
    release = mlflow.PublishedRelease(
        "made", 1, "best", "abc", run.checkpoint(best.name, best.step or 0)
    )
    files = [run.folder / "leaderboard.json"]
    parent = mlflow.log(data, "sqlite:///x.db", mark="one", files=files, release=release)
    assert mlflow.log(data, "sqlite:///x.db", mark="one", files=files, release=release) == parent
    assert len(server.runs) == 1 + len(run.records())
    assert server.runs[parent]["files"] == ["leaderboard.json"]
    assert ("test/f1_binary", best.test["f1_binary"], 0) in server.runs[parent]["metrics"]
    for record in run.records():
        (trial_run,) = (run for run in server.runs.values() if run["name"] == record.trial)
        assert trial_run["tags"]["mlflow.parentRunId"] == parent
        assert trial_run["params"]["lora.r"] == str(record.settings["lora.r"])
        assert trial_run["status"] == ("FAILED" if record.status == "failed" else "FINISHED")
        curve = [
            (step, value)
            for name, value, step in trial_run["metrics"]
            if name == "validation/f1_binary"
        ]
        assert curve == [(row.step, row.metrics["f1_binary"]) for row in run.history(record.trial)]
    (version,) = server.models["made"]
    assert version.tags == {"medray.content_id": "abc", "medray.release": "made@1"}
    assert server.aliases == {("made", "best"): 1}


def test_a_server_that_does_not_answer_is_one_sentence(server: Server, tmp_path: Path) -> None:
    server.is_up = False
    with pytest.raises(ArtifactError, match=r"^MLflow at sqlite:///x.db: no answer; "):
        mlflow.log(
            gather(run_files.run(tmp_path)), "sqlite:///x.db", mark="one", files=[], release=None
        )


def test_the_report_command_logs_a_run_of_before(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_files.run(tmp_path)
    assert cli.main(["report", str(run.folder), "--mlflow", "sqlite:///x.db"]) == 0
    assert "MLflow run r0" in capsys.readouterr().out
    assert set(server.runs["r0"]["files"]) == {"report.html", "leaderboard.json", "study.yaml"}


def test_a_study_that_logs_to_a_missing_mlflow_fails_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight.util, "find_spec", lambda name: None)
    study = run_files.study(tmp_path, mlflow={"tracking_uri": "sqlite:///x.db"})
    with pytest.raises(
        ConfigError, match=r"MLflow is not installed; pip install 'medray\[mlflow\]'"
    ):
        preflight.check(study)


def test_the_environment_says_where_mlflow_is_unless_the_study_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert load.tracking_uri(run_files.study(tmp_path)) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert load.tracking_uri(run_files.study(tmp_path)) == "http://tracker"
    assert (
        load.tracking_uri(run_files.study(tmp_path, mlflow={"tracking_uri": "sqlite:///x.db"}))
        == "sqlite:///x.db"
    )
