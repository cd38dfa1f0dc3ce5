"""Prompts of the user's own file, with the answers from before and after training beside each other."""

from medray.reports.blocks import Section, Table, Text
from medray.reports.study import StudyData

_UNTUNED = ", untuned"


def answers(data: StudyData) -> Section | None:
    prompts, said = data.samples.get("prompts", []), data.samples.get("answers", {})
    best = data.board.best
    before, after = said.get(f"{best.base_model}{_UNTUNED}"), said.get(best.name)
    if not prompts or before is None or after is None:
        return None
    rows = [list(row) for row in zip(prompts, before, after, strict=True)]
    heads = ["prompt", f"{best.base_model} before training", f"{best.name}, the winner"]
    note = "Greedy answers of at most task.max_new_tokens tokens, as they were written; the prompts are those of task.sample_prompts."
    return Section(
        "samples",
        "Sample prompts",
        [Table("Answers before and after training", heads, rows, left=frozenset({0, 1, 2})), Text(note, is_note=True)],
    )
