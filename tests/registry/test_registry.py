import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from support import tiny

import medray
from medray.errors import ArtifactError, ConfigError
from medray.records import AbstentionRecord, CalibrationRecord, SliceRecord
from medray.registry import loading
from medray.registry.registry import Registry, TestRecord
from medray.types import Example


@pytest.fixture(scope="module")
def folder() -> Path:
    """One trained checkpoint for all tests here; none of them changes it."""
    return tiny.checkpoint()


def test_versions_count_up_and_aliases_point_at_them_with_their_history(
    folder: Path, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path))
    assert [registry.publish(folder, "cancer").record.version for _ in range(3)] == [1, 2, 3]
    registry.point("cancer", "best", 2)
    registry.point("cancer", "best", 3)
    registry.point("cancer", "best", 1)
    assert registry.resolve("cancer@best").reference == "cancer@1"
    assert registry.resolve("cancer@2").record.version == 2
    assert registry.resolve("cancer").record.version == 3
    assert [move.version for move in registry.history("cancer", "best")] == [2, 3, 1]
    assert tiny.aliases(registry, "cancer") == {"best": 1}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_two_publishers_at_once_get_two_versions_and_one_copy(folder: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        releases = list(
            pool.map(lambda _: Registry(str(tmp_path)).publish(folder, "cancer"), range(16))
        )
    assert sorted(release.record.version for release in releases) == list(range(1, 17))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        releases[0].record.content_id
    ]
    releases[0].verify()
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda version: Registry(str(tmp_path)).point("cancer", "best", version),
                range(1, 17),
            )
        )
    assert sorted(
        move.version for move in Registry(str(tmp_path)).history("cancer", "best")
    ) == list(range(1, 17))


def test_a_byte_changed_in_a_release_is_found_and_the_file_named(
    folder: Path, tmp_path: Path
) -> None:
    release = Registry(str(tmp_path)).publish(folder, "cancer")
    path = release.folder() / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors was changed"):
        release.verify()
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors was changed"):
        release.load()


def test_a_changed_manifest_cannot_vouch_for_changed_files(folder: Path, tmp_path: Path) -> None:
    release = Registry(str(tmp_path)).publish(folder, "cancer")
    path = release.folder() / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ArtifactError, match=r"manifest\.json was changed"):
        release.verify()


def test_a_release_predicts_from_a_text_to_a_named_label(folder: Path, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(folder, "cancer")
    registry.point("cancer", "best", 1)
    model = medray.load("cancer@best", storage_path=str(tmp_path))
    answers = model.predict(["tumour in the lung", "fever after infection"])
    assert [answer.labels[0] in ("cancer", "other") for answer in answers] == [True, True]
    assert sum(answers[0].probabilities) == pytest.approx(1)
    assert model.reference == "cancer@1"


INT8 = {
    "metric": "f1_macro",
    "plain": 0.9,
    "int8": 0.9,
    "agreement": 1.0,
    "num_rows": 12,
    "tolerance": 0.1,
    "calibration": {},
}


def test_a_release_that_an_earlier_medray_measured_in_8_bits_is_read_as_it_stands_and_answers(
    folder: Path, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(folder, "cancer")
    path = tmp_path / "releases" / "cancer" / "1.json"
    assert "int8" not in path.read_text()
    raw = json.dumps(json.loads(path.read_text()) | {"int8": INT8}).encode()
    path.write_bytes(raw)
    registry.point("cancer", "best", 1)
    release = registry.resolve("cancer@best")
    assert release.digest == hashlib.sha256(raw).hexdigest()
    release.verify()
    assert medray.load("cancer@best", storage_path=str(tmp_path)).predict(["tumour in the lung"])
    release.export(tmp_path / "card", merged=False)
    assert "8 bits" not in (tmp_path / "card" / "README.md").read_text()
    assert path.read_bytes() == raw


def test_an_empty_storage_path_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no release 'cancer'; publish one, or give another"):
        Registry(str(tmp_path)).resolve("cancer@best")


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_precision_that_there_is_not_is_refused(
    folder: Path, tmp_path: Path, precision: str
) -> None:
    Registry(str(tmp_path)).publish(folder, "cancer")
    with pytest.raises(
        ConfigError,
        match=f"cancer@1: precision '{precision}' is not known; allowed: bf16, fp16, fp32",
    ):
        medray.load("cancer@1", storage_path=str(tmp_path), precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("cancr@1", "has no release 'cancr'; .*did you mean 'cancer'"),
        ("cancer@7", "'cancer' has versions 1"),
        ("cancer@bets", "has no alias 'bets'; .*did you mean 'best'"),
        ("../cancer@1", "is not a name"),
        ("Cancer", "is not a name"),
    ],
)
def test_a_wrong_reference_says_what_there_is(
    folder: Path, tmp_path: Path, reference: str, message: str
) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(folder, "cancer")
    registry.point("cancer", "best", 1)
    with pytest.raises((ArtifactError, ConfigError), match=message):
        registry.resolve(reference)


def test_a_name_without_an_alias_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(folder, "cancer")
    with pytest.raises(ArtifactError, match="has no alias 'best'; there is none; name a version"):
        registry.resolve("cancer@best")


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "A", "x" * 65, "a@b"])
def test_a_name_cannot_leave_the_registry(folder: Path, tmp_path: Path, name: str) -> None:
    registry = Registry(str(tmp_path / "registry"))
    with pytest.raises(ConfigError, match="is not a name"):
        registry.publish(folder, name)
    registry.publish(folder, "cancer")
    with pytest.raises(ConfigError, match="is not a name"):
        registry.point("cancer", name, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"registry"}


def test_an_alias_that_looks_like_a_version_and_one_for_a_missing_version_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(folder, "cancer")
    with pytest.raises(ConfigError, match="looks like a version"):
        registry.point("cancer", "7", 1)
    with pytest.raises(ArtifactError, match="has versions 1"):
        registry.point("cancer", "best", 2)
    assert tiny.aliases(registry, "cancer") == {}


def test_only_a_whole_checkpoint_is_published(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        Registry(str(tmp_path)).publish(tmp_path, "cancer")
    with pytest.raises(ConfigError, match="is neither a folder nor an object store"):
        Registry("ftp://server/x")


def test_a_checkpoint_is_published_and_loaded_from_a_uri(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    release = Registry(str(tmp_path / "registry")).publish(f"file://{folder}", "cancer")
    assert loading.load(f"file://{folder}").manifest == loading.load(release.folder()).manifest


@pytest.mark.document(
    "000",
    "a text-classification pipeline answers with the tuned model",
    where="`medray export NAME FOLDER --merged`",
)
def test_an_export_is_a_plain_hub_folder_with_a_card(folder: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    release = Registry(str(tmp_path / "registry")).publish(
        folder, "cancer", notes="For trying out."
    )
    release.export(tmp_path / "merged", merged=True)
    text = "tumour in the lung"
    (plain,) = pipeline("text-classification", model=str(tmp_path / "merged"))(text)
    predictor = release.load(precision="fp32")
    (ours,) = predictor.task.predict(predictor.engine, [Example("0", text)])
    assert plain["label"] == ours.labels[0]
    assert plain["score"] == pytest.approx(max(ours.probabilities), abs=1e-5)
    release.export(tmp_path / "adapter", merged=False)
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= {
        p.name for p in (tmp_path / "adapter").iterdir()
    }
    card = (tmp_path / "adapter" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["pipeline_tag"]) == ("peft", "text-classification")
    for part in (
        "# cancer, version 1",
        "not a medical device",
        "Labels: cancer, other",
        "The test labels are unopened",
        "For trying out.",
    ):
        assert part in card
    with pytest.raises(ArtifactError, match="exists already"):
        release.export(tmp_path / "adapter", merged=False)


def test_a_bundle_is_a_storage_path_with_one_release_its_aliases_and_its_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path / "registry"))
    for _ in range(2):
        registry.publish(folder, "cancer")
    registry.publish(folder, "other")
    registry.point("cancer", "best", 1)
    registry.point("cancer", "best", 2)
    registry.point("cancer", "old", 1)
    registry.store.create("releases/cancer/2.abc.sig", b"two")
    registry.store.create("releases/cancer/1.abc.sig", b"one")
    registry.resolve("cancer@best").bundle(tmp_path / "bundle")
    alone = Registry(str(tmp_path / "bundle"))
    assert (alone.names(), alone.versions("cancer"), tiny.aliases(alone, "cancer")) == (
        ["cancer"],
        [2],
        {"best": 2},
    )
    assert alone.resolve("cancer@best").raw == registry.resolve("cancer@2").raw
    assert alone.store.read("releases/cancer/2.abc.sig") == b"two"
    shutil.rmtree(tmp_path / "registry")
    release = alone.resolve("cancer@best")
    release.verify()
    release.check_aliases()
    assert len(release.load(precision="fp32").task.labels) == 2
    with pytest.raises(ArtifactError, match="exists already"):
        release.bundle(tmp_path / "bundle")
    (release.folder() / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is missing"):
        release.bundle(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_card_shows_test_figures_and_warns_of_a_second_look(
    folder: Path, tmp_path: Path
) -> None:
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    test = TestRecord(metrics=metrics, num_rows=12, num_openings=2)
    release = Registry(str(tmp_path / "registry")).publish(folder, "cancer", test=test)
    release.export(tmp_path / "adapter", merged=False)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "test (12 rows)" in card
    assert "opened 2 times" in card


def test_the_card_tells_calibration_abstention_and_the_lowest_slice(
    folder: Path, tmp_path: Path
) -> None:
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    worst = SliceRecord(
        column="length",
        value="over 180 words",
        num_rows=66,
        metric="f1_macro",
        f1=0.81,
        low=0.7,
        high=0.9,
        num_compared=5,
        is_below=False,
    )
    test = TestRecord(
        metrics=metrics,
        num_rows=12,
        num_openings=1,
        ece=(0.06, 0.03),
        answered=(0.75, 0.97),
        worst_slice=worst,
    )
    rule = AbstentionRecord(precision=0.95, level=0.9, threshold=0.91, coverage=0.7)
    record = CalibrationRecord(temperature=1.7, abstention=rule, num_rows=199)
    release = Registry(str(tmp_path / "registry")).publish(
        folder, "cancer", test=test, calibration=record
    )
    release.export(tmp_path / "adapter", merged=False)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert (
        "temperature 1.70, fitted on 199 validation rows; expected calibration error on test "
        "rows 0.060 before, 0.030 after"
    ) in card
    assert (
        "below a confidence of 0.910, for a precision of 0.95. On test rows the coverage is 75% "
        "and "
        "the precision 0.970"
    ) in card
    assert (
        "length over 180 words, f1_macro 0.810 (95 % interval 0.700 to 0.900) on 66 rows, of 5 "
        "slices compared, within chance of all rows"
    ) in card
    assert Registry(str(tmp_path / "registry")).find("cancer", folder, record) is not None
    assert (
        Registry(str(tmp_path / "registry")).find("cancer", folder, CalibrationRecord()) is None
    )  # another rule is another version
