"""The sentences on which an answer rests, with planted evidence and with tiny models."""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from support import tiny

from medray.client.answers import Citations
from medray.errors import ConfigError
from medray.registry.loading import LoadedRelease, load
from medray.tasks.base.citations import Attribution, SentencesError
from medray.text.sentences import Sentences

TEXT = "The trial was small. Deaths fell by half. Does it work?  Costs rose. Pain fell. It rained."
WORDS = {"half": 2.0, "Pain": 1.0, "rained": -1.0}  # in log-odds


def yes_and_no(texts: Sequence[str], answers: Sequence[int]) -> np.ndarray:
    """The log-probabilities of yes and no, whose odds follow from words."""
    odds = [sum(value for word, value in WORDS.items() if word in text) for text in texts]
    both = np.array([[-math.log1p(math.exp(-one)), -math.log1p(math.exp(one))] for one in odds])
    return both[:, list(answers)]


def attribution(text: str = TEXT, lengths: Sequence[int] = (1, 1)) -> Attribution:
    return Attribution(Sentences.of(text), yes_and_no, lengths)


@pytest.mark.document(
    "004",
    "for the future: sources are cited",
    where="`citations`",
    how="an answer cites sentences of the text that it was given; nothing looks up other sources",
)
def test_the_sentences_without_which_the_odds_fall_are_cited_strongest_first() -> None:
    yes, no = attribution().cite()
    assert [(one.text, one.effect) for one in yes.sentences] == [
        ("Deaths fell by half.", 2.0),
        ("Pain fell.", 1.0),
    ]
    assert [one.text for one in no.sentences] == ["It rained."]
    assert all(TEXT[one.start : one.end] == one.text for one in yes.sentences)

    def share(odds: float) -> float:
        return 1 / (1 + math.exp(-odds))

    assert yes.sufficiency == pytest.approx(share(2) - share(3))
    assert yes.comprehensiveness == pytest.approx(share(2) - share(-1))


def test_a_long_answer_counts_by_the_mean_of_its_tokens() -> None:
    yes, _ = attribution(lengths=(4, 1)).cite()
    whole, rest = (1 / (1 + math.exp(-odds)) for odds in (2, -1))
    assert yes.comprehensiveness == pytest.approx(whole**0.25 - rest**0.25)


def test_a_sentence_that_asks_is_never_left_out_and_one_always_stays() -> None:
    texts: list[str] = []

    def scores(own: Sequence[str], answers: Sequence[int]) -> np.ndarray:
        texts.extend(own)
        return yes_and_no(own, answers)

    Attribution(Sentences.of("Does it work? Deaths fell by half. Pain fell."), scores, (1,)).cite()
    assert all("Does it work?" in text for text in texts)
    assert all(len(text) > len("Does it work?") for text in texts)


@pytest.mark.parametrize("text", ["Deaths fell by half", "Is it so? Pain fell.", "", "It is. So."])
def test_where_no_sentence_matters_none_is_cited(text: str) -> None:
    assert attribution(text).cite() == [Citations(), Citations()]


def test_more_sentences_than_allowed_are_refused() -> None:
    assert len(attribution().cite(5)) == 2
    with pytest.raises(SentencesError, match="has 5 sentences, and at most 4 are left out"):
        attribution().cite(4)


LONG = "the tumour of the lung.\n\nThe surgery was in stage 2. Fever after infection! No growth."


@pytest.fixture(scope="module")
def choice() -> LoadedRelease:
    return load(tiny.checkpoint("choice"), precision="fp32")


def test_a_label_rests_on_what_its_probability_loses(choice: LoadedRelease) -> None:
    texts = [
        f"{one}.\n\n{other} was in stage 2. The renal group! No {last}."
        for one, other, last in permutations(
            ("Blood pressure", "Fever", "The tumour", "Glucose"), 3
        )
    ]
    examples = [
        (text, row, own)
        for text, row in zip(texts, choice.predict(texts), strict=True)
        if (own := choice.cite(text, row)).sentences
    ]
    assert len(examples) > len(texts) / 4  # or the test would show nothing
    for text, row, own in examples[:4]:
        sentences, place = Sentences.of(text), choice.task.labels.index(row.labels[0])
        changes = [text, *(sentences.without({number}) for number in range(4))]
        shares = [one.probabilities[place] for one in choice.predict(changes)]
        odds = [math.log(share / (1 - share)) for share in shares]
        effects = {span: odds[0] - odds[1 + at] for at, span in enumerate(sentences.spans)}
        spans = [(one.start, one.end) for one in own.sentences]
        assert spans[0] == max(effects, key=lambda span: effects[span])
        assert [one.effect for one in own.sentences] == pytest.approx(
            [effects[span] for span in spans], abs=1e-3
        )
        rest = sentences.without({sentences.spans.index(span) for span in spans})
        share = choice.predict([rest])[0].probabilities[place]
        assert own.comprehensiveness == pytest.approx(row.probabilities[place] - share, abs=1e-4)


def test_answers_to_questions_and_replies_are_cited_too(choice: LoadedRelease) -> None:
    (row,) = choice.predict([LONG])
    decisions = choice.decide(LONG, with_citations=True)
    assert decisions.citations == (choice.cite(LONG, row),)
    assert choice.decide(LONG).citations == ()
    decider = load(tiny.checkpoint("decisions"), precision="fp32")
    answers = decider.decide(LONG, with_citations=True)
    assert len(answers.citations) == len(answers.answers) == 3
    assert any(one.sentences for one in answers.citations)
    with pytest.raises(ConfigError, match="task decisions have no citations"):
        decider.cite(LONG, answers.rows[0])
    adviser = load(tiny.checkpoint("instruct"), precision="fp32")
    (reply,) = adviser.predict([LONG])
    assert adviser.cite(LONG, reply).sentences
    assert adviser.cite("fever", reply) == Citations()
