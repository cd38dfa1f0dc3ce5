import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import run_files

from medray import cli
from medray.evaluation.analysis import to_json
from medray.evaluation.leaderboard import Leaderboard
from medray.evaluation.pooling import Seeds
from medray.records import ReleaseRecord
from medray.registry import card
from medray.reports import html_report, svg
from medray.reports.study_data import gather
from medray.storage import checkpoint
from medray.study.run import Run

HOSTILE = ("<script>alert('ill')</script>", '"><img src=x onerror=alert(1)> & {{ 7 * 7 }}')


class PageText(HTMLParser):
    """Tags with what they hold, as a browser would build them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def render_page(run: Run) -> str:
    return html_report.render(html_report.compose(gather(run)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_files.run(tmp_path_factory.mktemp("whole"), histories=run_files.trials(num_failed=1))


def test_the_first_sentence_tells_what_won_with_its_figure_and_interval(whole: Run) -> None:
    best, report = whole.leaderboard().best, html_report.compose(gather(whole))
    assert best.test_interval is not None
    for part in (
        "small-encoder",
        f"{best.test['f1_binary']:.3f}",
        f"{best.test_interval.low:.3f} to {best.test_interval.high:.3f}",
        "160 test rows",
    ):
        assert part in report.headline


def test_figures_that_are_means_over_seeds_are_called_so_in_the_first_sentence(
    whole: Run, tmp_path: Path
) -> None:
    def with_seeds(board: Leaderboard) -> Leaderboard:
        seeds = Seeds(("a-000", "a-001", "a-002"), (0.9, 0.8, 0.85), (0.88, 0.86, 0.87), "a-000")
        return replace(board, entries=tuple(replace(entry, seeds=seeds) for entry in board.entries))

    assert "seeds" not in html_report.compose(gather(whole)).headline
    assert html_report.compose(gather(run_files.run(tmp_path, edit=with_seeds))).headline.endswith(
        "160 test rows, as the mean of 3 seeds."
    )


def test_every_section_is_there_and_every_chart_has_words_and_a_table_beside_it(whole: Run) -> None:
    report, page = html_report.compose(gather(whole)), PageText(render_page(whole))
    section_ids = [
        "study",
        "leaderboard",
        "against",
        "mistakes",
        "confidence",
        "slices",
        "training",
        "settings",
        "cost",
        "data",
        "repeat",
    ]
    assert [section.id for section in report.sections] == section_ids
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) >= 15
    assert all(len(str(attributes["aria-label"])) > 4 for attributes in drawings)
    assert page.count("th") > 50
    assert page.count("h1") == 1


def test_figures_of_the_page_are_those_of_the_run(whole: Run) -> None:
    text, board = PageText(render_page(whole)).text, whole.leaderboard()
    for entry in board.entries:
        if entry.validation:
            assert f"{entry.validation['f1_binary']:.3f}" in text, entry.name
        assert entry.name in text
    for record in whole.records():
        for row in whole.history(record.trial):
            assert f"{row.metrics['log_loss']:.3f}" in text
    test = run_files.analysis(board.winner).best.test
    for row in test.confusion:
        assert all(f" {count} " in text for count in row)
    assert f"ECE {test.before.ece:.3f}" in text
    assert f"ECE {test.after.ece:.3f}" in text
    assert "loss is not a number" in text
    assert "cd" * 32 in text


def test_dots_stand_where_their_figures_are(whole: Run) -> None:
    """The places of two trials and two ticks of the axis tell the same scale."""
    report = html_report.compose(gather(whole))
    drawing = next(
        chart.drawing for chart in report.charts() if chart.name == "leaderboard-validation"
    )
    entries = [entry for entry in whole.leaderboard().entries if entry.validation]
    dots = [mark for mark in drawing.marks if mark.tag in ("circle", "polygon")]
    assert len(dots) == len(entries)
    ticks = {
        float(mark.text or ""): float(mark.get("x") or 0)
        for mark in drawing.marks
        if mark.tag == "text" and "small" in (mark.get("class") or "")
    }
    (one, at_one), *_, (two, at_two) = sorted(ticks.items())
    for mark, entry in zip(dots, entries, strict=True):
        if mark.tag == "circle":
            value = one + (float(mark.get("cx") or 0) - at_one) / (at_two - at_one) * (two - one)
            assert value == pytest.approx(entry.validation["f1_binary"], abs=1e-3)


def test_judged_models_stand_at_their_test_figures_with_their_intervals(whole: Run) -> None:
    drawing = next(
        chart.drawing
        for chart in html_report.compose(gather(whole)).charts()
        if chart.name == "leaderboard-test"
    )
    texts = {mark.text for mark in drawing.marks if mark.tag == "text"}
    tips = {tip.text for mark in drawing.marks for tip in mark}
    finalists = [entry for entry in whole.leaderboard().entries if entry.test]
    assert len(finalists) == 3
    for entry in finalists:
        value, spread = entry.test["f1_binary"], entry.test_interval
        assert spread is not None
        assert f"{value:.3f}  ({spread.low:.3f} to {spread.high:.3f})" in texts
        assert any(tip and tip.endswith(f": {value:.4f}") for tip in tips)


def test_a_report_loads_nothing(whole: Run) -> None:
    page = PageText(render_page(whole))
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), f"{tag} {attributes}"
    assert "http" not in re.sub(r"http-equiv|HTTP", "", render_page(whole))
    assert not re.search(r"url\(|@import", svg.page_css())


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    def with_new_name(board: Leaderboard) -> Leaderboard:
        return replace(board, study=HOSTILE[0])

    made_run = run_files.run(tmp_path, labels=HOSTILE, column=HOSTILE[1], edit=with_new_name)
    record = made_run.records()[-1].model_copy(
        update={"error": HOSTILE[1], "settings": {"lora.r": HOSTILE[0], "a\x00b": "\x1b"}}
    )
    made_run.write(record)
    plain, hostile = (
        PageText(render_page(run_files.run(tmp_path / "plain"))),
        PageText(render_page(made_run)),
    )
    assert [tag for tag, _ in hostile.tags if tag in ("script", "img")] == ["script"]
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert HOSTILE[0] in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text


def test_a_report_shows_no_id_and_no_text_of_a_row(whole: Run) -> None:
    assert "row-" in (whole.folder / "analysis.json").read_text(encoding="utf-8")
    assert not re.search(r"row-\d", render_page(whole))


def test_an_older_run_has_a_report_without_what_it_lacks(tmp_path: Path) -> None:
    older = run_files.run(tmp_path, with_analysis=False)
    ids = [section.id for section in html_report.compose(gather(older)).sections]
    assert "confidence" not in ids
    assert "slices" not in ids
    assert "Confusion on 160 validation rows" in render_page(older)
    shutil.rmtree(older.folder / "trials" / older.leaderboard().winner / "checkpoints")
    assert "won" in render_page(older)


def test_one_trial_alone_has_a_report(tmp_path: Path) -> None:
    base = [{"source": run_files.BASES[0]}]
    alone = run_files.run(tmp_path, histories=run_files.trials()[:1], base_models=base, search={})
    report = html_report.compose(gather(alone))
    assert "chosen among 1 trial of small-encoder" in report.findings[0]
    assert "settings" not in [section.id for section in report.sections]
    assert "small-encoder-000" in render_page(alone)


def test_a_tie_is_reported_in_the_first_lines(tmp_path: Path) -> None:
    run = run_files.run(tmp_path, close=True)
    board = run.leaderboard()
    assert len(board.tied) == 2
    findings = html_report.compose(gather(run)).findings
    assert any(
        "which is a tie" in sentence
        and "large-decoder-000" in sentence
        and f"{board.winner} wins by its f1_binary" in sentence
        for sentence in findings
    )


def test_a_study_whose_test_rows_were_not_judged_says_so(tmp_path: Path) -> None:
    def without_test(board: Leaderboard) -> Leaderboard:
        entries = tuple(
            replace(entry, test={}, test_interval=None, ms_per_row=None) for entry in board.entries
        )
        return replace(board, entries=entries, comparisons=(), num_openings=0)

    report = html_report.compose(
        gather(run_files.run(tmp_path, edit=without_test, with_analysis=False))
    )
    assert "The test rows were not evaluated" in report.headline
    assert "against" not in [section.id for section in report.sections]


def test_the_card_of_a_release_tells_the_same_figures(whole: Run) -> None:
    best, board = whole.leaderboard().best, whole.leaderboard()
    folder = whole.checkpoint(best.name, best.step or 0)
    analysis = whole.analysis()
    assert analysis is not None
    test, content_id = card.test_record(board, best, analysis), checkpoint.content_id(folder)
    calibration = analysis.best.calibration
    record = ReleaseRecord(
        name="made",
        version=1,
        content_id=content_id,
        created="today",
        test=test,
        calibration=calibration,
    )
    card_text = card.render(record, checkpoint.read(folder), merged=False)
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", card_text, re.MULTILINE)
    assert len(rows) == len(best.test)
    text = PageText(render_page(whole)).text
    for row in rows:
        assert " ".join(row) in text
    sentences = [
        line
        for line in card_text.splitlines()
        if line.startswith(("Confidence:", "Abstention:", "Lowest slice"))
    ]
    assert len(sentences) == 3
    assert all(sentence in text for sentence in sentences)
    assert record.content_id in card_text
    assert record.content_id in text


def test_medray_report_writes_the_page_and_its_plots(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plots = tmp_path / "page.html", tmp_path / "plots"
    assert (
        cli.main(["report", str(whole.folder.parent), "--output", str(out), "--plots", str(plots)])
        == 0
    )
    assert out.read_text(encoding="utf-8") == render_page(whole)
    names = {path.stem for path in plots.glob("*.svg")}
    assert {
        "leaderboard-test",
        "confusion-test",
        "reliability-after",
        "risk-coverage",
        "slices",
        "cost-latency",
    } <= names
    assert len(names) == len(list(html_report.compose(gather(whole)).charts()))
    assert str(out) in capsys.readouterr().out


def test_medray_report_of_a_study_that_has_not_ended_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.start(run_files.study(tmp_path))
    assert cli.main(["report", str(run.folder)]) == 1
    assert "has not ended" in capsys.readouterr().err


def test_a_log_loss_study_has_no_intervals_and_says_so(tmp_path: Path) -> None:
    run = run_files.run(tmp_path, with_analysis=False)
    content = json.loads((run.folder / "leaderboard.json").read_text())
    for entry in content["entries"]:
        entry["test_interval"] = None
    (run.folder / "leaderboard.json").write_text(
        json.dumps({**content, "metric": "log_loss", "comparisons": [], "tied": []})
    )
    assert any(
        "log loss has no interval" in sentence
        for sentence in html_report.compose(gather(run)).findings
    )


def test_where_rows_have_several_labels_the_classes_are_a_table_instead_of_a_matrix(
    tmp_path: Path,
) -> None:
    run = run_files.run(tmp_path)
    whole_analysis = run_files.analysis(run.leaderboard().winner)
    best = whole_analysis.best
    bare = replace(
        best,
        test=replace(best.test, confusion=()),
        validation=replace(best.validation, confusion=()),
    )
    (run.folder / "analysis.json").write_bytes(
        to_json(replace(whole_analysis, multi_label=True, models=(bare,)))
    )
    report = html_report.compose(gather(run))
    assert not any(chart.name.startswith("confusion") for chart in report.charts())
    assert f"{best.test.per_class[0].f1.value:.3f}" in PageText(html_report.render(report)).text


def test_more_labels_than_a_matrix_can_show_are_left_to_the_table(tmp_path: Path) -> None:
    run = run_files.run(tmp_path)
    whole_analysis = run_files.analysis(run.leaderboard().winner)
    labels = tuple(f"condition {number}" for number in range(30))
    wide = replace(whole_analysis.best.test, confusion=tuple(tuple(range(30)) for _ in labels))
    (run.folder / "analysis.json").write_bytes(
        to_json(
            replace(
                whole_analysis, labels=labels, models=(replace(whole_analysis.best, test=wide),)
            )
        )
    )
    data = gather(run)
    assert "30 labels are too many" in PageText(html_report.render(html_report.compose(data))).text
