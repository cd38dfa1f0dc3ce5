"""Model cards of releases whose labels, names and notes are hostile. docs/guides/security.md."""

from pathlib import Path

import yaml
from support import tiny

from medray.registry import card
from medray.registry.registry import Registry
from medray.storage import checkpoint


def test_a_card_shows_labels_notes_and_names_of_others_as_plain_words(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    release = Registry(str(tmp_path)).publish(tiny.checkpoint(), "cancer")
    manifest = checkpoint.read(release.folder())
    labels = [evil, "[click](javascript:alert(3))", "a | b", "# heading\n# more", "not_cancer"]
    manifest_with_names = manifest.model_copy(
        update={
            "task": manifest.task.model_copy(
                update={"state": {**manifest.task.state, "labels": labels}}
            ),
            "base": manifest.base.model_copy(update={"note": evil, "source": f"base {evil}"}),
            "metrics": {evil: 1.0},
        }
    )
    notes = f"{evil}\n---\n# heading\n1. list\n| a | b |\rfirst\r# heading\nplain_words, here."
    text = card.render(
        release.record.model_copy(update={"notes": notes, "task_options": {evil: evil}}),
        manifest_with_names,
        merged=False,
    )
    header, body = text.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(header)["base_model"] == f"base {evil}"
    assert "<" not in body.replace("&lt;", "")
    assert "[click](" not in body
    assert "\n# heading" not in body.replace("\r", "\n")
    assert "\n---" not in body.replace("| --- |", "")
    assert "\n1. list" not in body
    assert "not_cancer" in body
    assert "plain_words, here." in body
