"""Tests of `medray init` as a new user runs it."""

from pathlib import Path

import pytest

from medray import cli
from medray.config.load import load_study

SAMPLES = Path(__file__).parents[2] / "jobs" / "samples"


@pytest.mark.document("004", "for the future: more medical domains", where="`medray init DATA`")
def test_a_first_study_is_written_accepted_by_a_dry_run_and_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(SAMPLES / "notes.csv")
    assert cli.main(["init", data]) == 1
    message = "there are two labels, 'cancer' (360 rows), 'no_cancer' (360 rows)"
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["init", data, "--positive", "cancer"]) == 0
    output = capsys.readouterr().out
    for part in (
        "720 rows, format delimited, text note",
        "one label per row",
        "95 % have at most",
        "study.yaml is written",
    ):
        assert part in output
    assert cli.main(["study", "study.yaml", "--dry-run"]) == 0
    before = Path("study.yaml").read_bytes()
    assert cli.main(["init", data, "--positive", "no_cancer"]) == 1
    assert "study.yaml: exists already" in capsys.readouterr().err
    assert Path("study.yaml").read_bytes() == before


def test_columns_and_the_file_are_named_by_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{number};first {number};second {number};{'abc'[number % 3]}" for number in range(30)]
    Path("rows.csv").write_text("\n".join(["n;one;two;three", *rows]))
    assert cli.main(["init", "rows.csv"]) == 1
    assert "add --text-column COLUMN; the columns are n, one, two, three" in capsys.readouterr().err
    command = [
        "init",
        "rows.csv",
        "--text-column",
        "one",
        "--text-column",
        "two",
        "--label-column",
        "three",
        "--id-column",
        "n",
        "--output",
        "deep/first.yaml",
    ]
    assert cli.main(command) == 0
    options = load_study(["deep/first.yaml"]).data.format.model_dump()
    assert (options["text"], options["label"], options["id"], options["delimiter"]) == (
        ("one", "two"),
        "three",
        "n",
        ";",
    )
