"""The card of a release, from a checkpoint that was trained."""

import json
from pathlib import Path

import pytest
from support import tiny

from medray.data.formats.base.protocol import Form
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving import cards
from medray.storage import checkpoint


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    place = tmp_path_factory.mktemp("cards")
    table = place / "table.csv"
    rows = [
        f"{disease},{sign},fever,stage {number}"
        for number in range(12)
        for disease, sign in (("cancer", "tumour"), ("flu", "infection"))
    ]
    table.write_text("\n".join(["Disease,Symptom_1,Symptom_2,Symptom_3", *rows]) + "\n")
    trial = tiny.trial(
        tiny.study(
            place,
            f"data={{format: {{name: symptom_table, path: {table}}}, near_duplicate: 1.0}}",
            "task.positive_label=cancer",
            "train.epochs=1",
        ),
        place,
    )
    return Registry(str(place / "runs")).publish(trial.run().checkpoint, "symptoms")


def test_a_card_has_task_path_form_vocabulary_labels_and_figures(release: Release) -> None:
    served_card = cards.card(release)
    assert (served_card.release, served_card.version, served_card.task, served_card.path) == (
        "symptoms",
        1,
        "classification",
        "/v1/classify",
    )
    assert served_card.labels == ("cancer", "flu")
    assert served_card.form.parts == (("Patient presents with: ", "symptoms"),)
    assert [(field.name, field.kind) for field in served_card.form.fields] == [
        ("symptoms", "terms")
    ]
    assert {"fever", "infection", "stage 3", "tumour"} < set(served_card.terms)
    assert any(figure.validation is not None for figure in served_card.figures)
    assert served_card.sentences == (
        "The test labels are unopened. These are the validation metrics of the selection.",
    )
    assert release.record.content_id in served_card.origin["checkpoint"]


def test_a_model_from_another_trainer_takes_a_plain_text(release: Release) -> None:
    manifest = checkpoint.read(release.folder())
    assert (
        cards.form(manifest.model_copy(update={"trial": {"model": manifest.trial["model"]}}))
        == Form()
    )
    unknown = manifest.trial | {"data": {"format": {"name": "of_tomorrow", "path": "-"}}}
    assert cards.form(manifest.model_copy(update={"trial": unknown})) == Form()


def test_a_checkpoint_keeps_what_lengths_and_languages_its_data_had(
    release: Release, tmp_path: Path
) -> None:
    audit = cards.audit(release.folder())
    assert audit["words"] == {"p1": 7, "p99": 7}
    assert sum(audit["languages"].values()) == 24
    assert cards.audit(tmp_path) == {}
    (tmp_path / "audit.json").write_text(json.dumps([1]))
    assert cards.audit(tmp_path) == {}
