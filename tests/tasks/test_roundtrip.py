"""What is kept of predictions and handed between processes comes back as it was."""

import json
from dataclasses import asdict
from pathlib import Path

from medray.registry.predictions import read_predictions
from medray.types import Example, Mention, Message, Prediction


def test_stored_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    values = [
        Prediction("a", ("yes",), (0.25, 0.75), confidence=0.75),
        Prediction("b", (), (), text="Drink water.", figures={"overlap": 0.5, "refused": 0.0}),
        Prediction("c", (), (), mentions=(Mention(3, 9, "asthma", "Disease"),)),
    ]
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in values]
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    assert read_predictions(tmp_path) == values
    older = (
        '{"row_id": "d", "labels": ["no"], "probabilities": [0.6, 0.4], "confidence": null, '
        '"abstained": false}\n'
    )
    (tmp_path / "predictions.jsonl").write_text(older)
    assert read_predictions(tmp_path) == [Prediction("d", ("no",), (0.6, 0.4))]


def test_an_example_comes_back_as_it_was_and_gives_nothing_of_its_answer_away() -> None:
    turns = (
        Message("user", "What is a biopsy?"),
        Message("assistant", "A sample."),
        Message("user", "Does it hurt?"),
    )
    example = Example(
        "a",
        "Does it hurt?",
        ("x",),
        None,
        {"year": "2010"},
        "f:1",
        (Mention(0, 4, "Does", "Word"),),
        turns,
        "A little.",
    )
    assert Example.from_dict(json.loads(json.dumps(asdict(example)))) == example
    hidden = example.without_answer()
    assert (hidden.labels, hidden.mentions, hidden.response) == ((), (), "")
    assert (hidden.text, hidden.turns, hidden.metadata) == (example.text, turns, example.metadata)
