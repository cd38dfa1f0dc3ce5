"""A probe that vLLM answers in bf16: near to what it should be, and to nothing else on the same
engine."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medray.engines.vllm import engine as vllm
from medray.errors import ArtifactError
from medray.serving import vllm_head
from medray.serving.schemas import AppOptions
from medray.serving.vllm import Adapter, ReleaseGroup
from medray.serving.vllm_head import VllmModels

ADVISER, NURSE, BASE = (
    np.array([[-53.0, -24.0]]),
    np.array([[-55.0, -24.0]]),
    np.array([[-54.2, -24.5]]),
)


def prove(
    monkeypatch: pytest.MonkeyPatch, opening: VllmModels, name: str, reference: Any, outputs: Any
) -> None:
    answered = {"release": outputs, "bare": BASE}
    monkeypatch.setattr(vllm_head, "probe_outputs", lambda task, engine: answered[engine.name])
    monkeypatch.setattr(vllm, "VllmEngine", lambda core, tokenizer: SimpleNamespace(name="bare"))
    manifest = SimpleNamespace(probe=SimpleNamespace(outputs=reference.tolist()), is_untuned=False)
    release: Any = SimpleNamespace(reference=name, manifest=manifest, task=None)
    engine: Any = SimpleNamespace(name="release", core=None, tokenizer=None)
    opening.check_probe(release, engine)


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> VllmModels:
    """One that the adviser was loaded into."""
    group = ReleaseGroup("vllm", ("adviser", "nurse"), Adapter(16, frozenset({"q_proj"})))
    models = VllmModels(
        group, AppOptions(releases=("adviser", "nurse"), precision="bf16"), threads=1, gpus=0
    )
    prove(monkeypatch, models, "adviser@1", ADVISER, ADVISER + 0.3)
    return models


def test_what_rounding_explains_is_proven_and_what_it_does_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, opening: VllmModels
) -> None:
    prove(monkeypatch, opening, "nurse@1", NURSE, NURSE - 0.3)
    with pytest.raises(
        ArtifactError,
        match=r"nurse@1: its probe on vLLM returns \[\[-53.0, -24.0\]\] instead",
    ):
        prove(monkeypatch, opening, "nurse@1", NURSE, ADVISER)


def test_within_rounding_no_other_on_the_engine_may_be_nearer(
    monkeypatch: pytest.MonkeyPatch, opening: VllmModels
) -> None:
    with pytest.raises(ArtifactError, match="outputs of its base without adapter"):
        prove(
            monkeypatch, opening, "other@1", np.add(BASE, [[1.2, 0.5]]), np.add(BASE, [[0.5, 0.1]])
        )
    with pytest.raises(
        ArtifactError, match="outputs of its base without adapter"
    ):  # an adapter that does nothing, which rounding would explain
        prove(monkeypatch, opening, "other@1", np.add(BASE, [[1.3, 0.5]]), BASE)
    prove(
        monkeypatch, opening, "other@1", np.add(BASE, [[1.3, 1.2]]), np.add(BASE, [[0.7, 0.7]])
    )  # far from its own, and farther from the base
    with pytest.raises(ArtifactError, match="outputs of adviser@1"):
        prove(
            monkeypatch,
            opening,
            "other@1",
            np.add(ADVISER, [[1.1, 0.0]]),
            np.add(ADVISER, [[0.2, 0.0]]),
        )
