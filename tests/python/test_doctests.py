"""The examples in the docstrings of the Python API run as they stand."""

import doctest
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import in_process, tiny

import medray
from medray.python import classifier, result, studies
from medray.registry import loading
from medray.registry.registry import Registry

MODULES = (medray, studies, result, classifier, loading)


@pytest.fixture
def names(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The names that the examples use, in a folder with a study and a release."""
    needs_run = request.node.callspec.params["module"] is result
    config = tiny.study(tmp_path)
    settings = config.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    registry = Registry(str(tmp_path / "runs"))
    release = registry.publish(tiny.checkpoint(), "cancer")
    registry.point("cancer", "best", release.record.version)
    monkeypatch.chdir(tmp_path)
    in_process.without_ray(monkeypatch)
    rng = random.Random(0)
    texts = [f"{tiny.text(rng, 8)} {('carcinoma', 'pressure')[at % 2]}" for at in range(40)]
    return {
        "medray": medray,
        "base": str(tiny.base(tmp_path)),
        "texts": texts,
        "labels": ["cancer", "other"] * 20,
        "rows": [
            {"text": text, "label": ("cancer", "other")[at % 2]} for at, text in enumerate(texts)
        ],
        "quick": {
            "watch": False,
            "base_models": [str(tiny.base(tmp_path))],
            "train": {"epochs": 1, "learning_rate": 0.01},
            "model": {"precision": "fp32"},
        },
        "finished": _run_folder(config) if needs_run else None,
    }


def _run_folder(config: Any) -> Path:
    return in_process.run(config).run.folder


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_of_docstrings_are_true(module: Any, names: dict[str, Any]) -> None:
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    examples = [test for test in finder.find(module, extraglobs=names) if test.examples]
    assert examples
    for test in examples:
        assert runner.run(test).failed == 0, test.name
