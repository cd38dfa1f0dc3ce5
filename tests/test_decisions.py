"""Records of decisions have one form, a number each, and an index."""

import decisions


def test_the_index_is_that_of_the_records() -> None:
    assert decisions.INDEX.read_text(encoding="utf-8") == decisions.index()


def test_records_are_numbered_without_a_gap_and_short() -> None:
    entries = decisions.records()
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    assert all(entry.path.name.startswith(f"{entry.number:04d}-") for entry in entries)
    assert {entry.path.name: entry.num_lines for entry in entries if entry.num_lines > 25} == {}
