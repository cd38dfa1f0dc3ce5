"""Explanations by integrated gradients."""

import random
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from medray.errors import ConfigError
from medray.registry.explanation import explain
from medray.registry.loading import LoadedRelease, load

TEXT = "The biopsy showed carcinoma,  and her pressure was normal."


@pytest.fixture(scope="module")
def release() -> LoadedRelease:
    return load(tiny.checkpoint())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "opt"])
def test_shares_add_up_to_the_difference_that_they_explain(family: str, tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path, "train.epochs=1", family=family), tmp_path)
    explanation = load(trial.run().checkpoint).explain(TEXT)
    assert explanation.error < 0.02
    total = sum(word.share for word in explanation.words)
    size = sum(abs(word.share) for word in explanation.words)
    assert total == pytest.approx(explanation.total, abs=0.05 * size)
    assert [TEXT[word.start : word.end] for word in explanation.words] == TEXT.split()


def test_words_that_decide_have_the_largest_shares(release: LoadedRelease) -> None:
    """Leave one word out at a time; the output changes most without the strongest word."""
    rng = random.Random(1)
    texts = [tiny.text(rng, 9) for _ in range(8)]
    agreements = 0
    for text in texts:
        explanation = release.explain(text)
        words = text.split()
        shorter = [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))]
        column = release.task.labels.index(explanation.label)
        without = release.predict_proba(shorter)[:, column]
        strongest = [word.share for word in explanation.words]
        agreements += int(np.argmax(strongest)) in np.argsort(without)[:3]
    assert agreements >= len(texts) / 2


def test_another_label_has_the_opposite_shares_of_two(release: LoadedRelease) -> None:
    first, second = (release.explain(TEXT, label=label) for label in release.task.labels)
    shares = np.array([[word.share for word in one.words] for one in (first, second)])
    assert np.allclose(shares[0], -shares[1], atol=1e-5)


def test_windows_of_a_long_text_share_its_output(tmp_path: Path) -> None:
    study = tiny.study(
        tmp_path, "train.epochs=1", "task.long_texts=windows", "task.max_length=16",
        "task.window_overlap=4",
    )  # fmt: skip
    release = load(tiny.trial(study, tmp_path).run().checkpoint)
    explanation = release.explain(TEXT * 3)
    assert explanation.error < 0.02
    assert len(explanation.words) == len((TEXT * 3).split())


@pytest.mark.parametrize("keep", ["start", "end"])
def test_words_that_a_cut_text_has_lost_have_no_share(keep: str, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "task.max_length=16", f"task.keep={keep}")
    release = load(tiny.trial(tiny.study(tmp_path, *settings), tmp_path).run().checkpoint)
    text = " ".join(["fever"] * 140)
    words = release.explain(text).words
    assert 5 <= len(words) <= 14
    assert (words[0].start == 0) == (keep == "start")
    assert (words[-1].end == len(text)) == (keep == "end")


def test_the_text_is_escaped_where_a_notebook_shows_it(release: LoadedRelease) -> None:
    html = release.explain("the <b>mass</b> grew")._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;mass&lt;/b&gt;" in html


def test_a_label_or_a_task_without_shares_is_named(release: LoadedRelease) -> None:
    with pytest.raises(ConfigError, match=r"label: none of the release's; allowed: cancer, other"):
        release.explain(TEXT, label="x")
    choice = load(tiny.checkpoint("choice"))
    with pytest.raises(ConfigError, match="choice has no head"):
        explain(choice.task, choice.model, choice.predict([TEXT])[0], TEXT, None)  # type: ignore[arg-type]
