"""Mentions that a notebook shows in color."""

from pathlib import Path

import pytest
from support import tiny

from medray.client.answers import MarkedText, MentionAnswer
from medray.errors import ConfigError
from medray.registry.loading import load

TEXT = "Aspirin <b>helps</b> against asthma."
MENTIONS = tuple(
    MentionAnswer(start=start, end=end, text=TEXT[start:end], kind=kind, confidence=None)
    for start, end, kind in ((0, 7, "drug"), (29, 35, "disease"), (31, 35, "drug"))
)


def test_mentions_are_marked_once_by_kind_and_the_text_is_escaped() -> None:
    view = MarkedText(TEXT, MENTIONS)
    html = view._repr_html_()
    assert html.count("<mark") == 2
    assert "Aspirin <small>drug</small></mark> &lt;b&gt;helps&lt;/b&gt; against <mark" in html
    assert "asthma <small>disease</small></mark>.</p>" in html
    first, second = (part.split('"')[1] for part in html.split("<mark ")[1:])
    assert first != second
    assert repr(view) == "drug: Aspirin (0 to 7)\ndisease: asthma (29 to 35)\ndrug: thma (31 to 35)"
    assert repr(MarkedText("none", ())) == "no mentions"


def test_a_release_without_mentions_is_named() -> None:
    with pytest.raises(ConfigError, match="finds no mentions; use a release of task tagging"):
        load(tiny.checkpoint()).mark(TEXT)


def test_a_tagger_marks_the_mentions_that_it_predicts(tmp_path: Path) -> None:
    study = tiny.mention_study(tmp_path, "{name: tagging, max_length: 64}", "train.epochs=2")
    release = load(tiny.trial(study, tmp_path).run().checkpoint)
    (prediction,) = release.predict([TEXT])
    mentions = release.mark(TEXT).mentions
    assert [(one.start, one.kind) for one in mentions] == sorted(
        (one.start, one.kind) for one in prediction.mentions
    )
