"""Names say what a thing is: CONTRIBUTING.md, Words."""

from pathlib import Path

import names


def test_no_name_is_a_participle() -> None:
    bound = [
        f"{entry.path.relative_to(names.ROOT)}:{entry.line}: {entry.name}"
        for top in ("medray", "jobs", "tests")
        for path, tree in names.trees([names.ROOT / top]).items()
        for entry in names.participles(path, tree)
    ]
    assert bound == []


def test_names_of_classes_and_files_have_one_meaning() -> None:
    package = names.trees([names.ROOT / "medray"])
    assert names.classes_of_two_meanings(package) == {}
    assert names.files_of_two_meanings(list(package)) == {}


def test_a_name_in_two_places_is_reported(tmp_path: Path) -> None:
    for part in ("left", "right"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "row.py").write_text("class Row: ...\nclass Options: ...\n")
    modules = names.trees([tmp_path])
    assert set(names.classes_of_two_meanings(modules)) == {"Row"}
    assert set(names.files_of_two_meanings(list(modules))) == {"row"}


def test_a_participle_is_the_last_word_of_a_name() -> None:
    participles = ("found", "_of_held", "Described", "rows_told", "lastAsked")
    assert [name for name in participles if not names.is_participle(name)] == []
    others = (
        "seed",
        "found_rows",
        "LoadedRelease",
        "is_known",
        "num_failed",
        "Encoded",
        "entry",
        "_",
        "red",
    )
    assert [name for name in others if names.is_participle(name)] == []
