"""The sentences of a text on which an answer rests. A model reads the text again without each
sentence; the answer's log-odds fall most without those that carry it.

Two figures say how far the cited sentences carry the answer: sufficiency and comprehensiveness, as
in DeYoung et al. (2020), "ERASER". Sentences that ask a question are no evidence, so they always
stay. Knows no HTTP."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medray.client.answers import Citation, Citations
from medray.errors import ConfigError
from medray.evaluation.calibration import confidence, is_multi_label, matrix
from medray.records import CalibrationRecord
from medray.tasks.base.protocol import Calibrated, Task
from medray.tasks.base.questions import decide
from medray.text.sentences import Sentences
from medray.types import (
    Example,
    Floats,
    Floats32,
    Message,
    Prediction,
    Question,
    QuestionAnswer,
    TokenIds,
)

# Log-probabilities of some answers, by their numbers, after each of some texts.
Scores = Callable[[Sequence[str], Sequence[int]], Floats]
Predict = Callable[[Sequence[Example]], Sequence[Prediction]]
_MOST_CITATIONS = 3
_LEAST_EFFECT = 0.1  # of log-odds; arithmetic in bf16 alone changes them by hundredths
_LEAST_SHARE = 0.25  # of the strongest effect
_LEAST_LOG = -1e-12  # a probability next to 1
_TINY = 1e-300


class SentencesError(ConfigError):
    """A text has more sentences than may be left out. The message repeats nothing of it."""


@dataclass(frozen=True)
class Attribution:
    """A text in sentences, with a model's answers to it."""

    sentences: Sentences
    scores: Scores
    lengths: Sequence[int]  # tokens of each answer; 1 where its probability is one of labels

    def cite(self, most_sentences: int | None = None) -> list[Citations]:
        """Return the citations of each answer, of at most `most_sentences` sentences."""
        evidence = evidence_of(self.sentences, most_sentences)
        if len(evidence) < 2:  # without its only sentence, nothing of a text is left to compare
            return [Citations()] * len(self.lengths)
        texts = [self.sentences.text, *(self.sentences.without({one}) for one in evidence)]
        log_odds = _log_odds(self.scores(texts, range(len(self.lengths))))
        effects = (log_odds[0] - log_odds[1:]).T
        return [self._cite(answer, evidence, own) for answer, own in enumerate(effects)]

    def erase(self, answer: int, numbers: Collection[int]) -> tuple[float, float]:
        """Return sufficiency and comprehensiveness of some sentences for an answer."""
        others = set(evidence_of(self.sentences)) - set(numbers)
        texts = [
            self.sentences.text,
            self.sentences.without(others),
            self.sentences.without(numbers),
        ]
        whole, alone, without = np.exp(self.scores(texts, [answer])[:, 0] / self.lengths[answer])
        return float(whole - alone), float(whole - without)

    def _cite(self, answer: int, evidence: Sequence[int], effects: Floats) -> Citations:
        # One sentence always stays, so that the text without the cited ones is never empty.
        strongest = np.argsort(-effects, kind="stable")[: min(_MOST_CITATIONS, len(evidence) - 1)]
        least = max(_LEAST_EFFECT, _LEAST_SHARE * float(effects.max()))
        places = [int(place) for place in strongest if effects[place] >= least]
        if not places:
            return Citations()
        sufficiency, comprehensiveness = self.erase(answer, [evidence[place] for place in places])
        return Citations(
            sentences=tuple(
                self._citation(evidence[place], float(effects[place])) for place in places
            ),
            sufficiency=sufficiency,
            comprehensiveness=comprehensiveness,
        )

    def _citation(self, number: int, effect: float) -> Citation:
        start, end = self.sentences.spans[number]
        return Citation(
            start=start, end=end, text=self.sentences.text[start:end], effect=round(effect, 4)
        )


def evidence_of(sentences: Sentences, most: int | None = None) -> list[int]:
    """Return the numbers of the sentences that may be left out. Raise if they are more than
    `most`."""
    if not isinstance(most, int | None):
        raise SentencesError(f"citations: {most!r:.60} is no number of sentences; give a whole one")
    numbers = range(len(sentences.spans))
    evidence = [number for number in numbers if not sentences.is_question(number)]
    if most is not None and len(evidence) > most:
        raise SentencesError(
            f"citations: the text has {len(evidence)} sentences, and at most {most} are left out "
            "one by one; send a shorter text, or leave citations out"
        )
    return evidence


def of_labels(task: Calibrated, predict: Predict, text: str, prediction: Prediction) -> Attribution:
    """Attribute a prediction's labels. Of several labels, the least certain one counts, as in the
    prediction's confidence."""
    labels = np.array([[label in prediction.labels for label in task.labels]])

    def scores(texts: Sequence[str], answers: Sequence[int]) -> Floats:
        rows = predict([Example(str(number), each) for number, each in enumerate(texts)])
        sure = confidence(
            matrix(rows), labels.repeat(len(texts), axis=0), multi_label=is_multi_label(task)
        )
        return _log(sure)[:, None]

    return Attribution(Sentences.of(text), scores, [1])


def of_questions(
    task: Task,
    record: CalibrationRecord,
    predict: Predict,
    text: str,
    questions: Sequence[Question],
    answers: Sequence[QuestionAnswer],
) -> Attribution:
    """Attribute the answers to typed questions about a text."""

    def scores(texts: Sequence[str], numbers: Sequence[int]) -> Floats:
        own = [questions[number] for number in numbers]
        shares = [
            [
                answer.probabilities[answer.values.index(answers[number].value)]
                for number, answer in zip(numbers, decisions.answers, strict=True)
            ]
            for decisions in decide(task, record, predict, texts, own)
        ]
        return _log(np.array(shares))

    return Attribution(Sentences.of(text), scores, [1] * len(answers))


def of_reply(
    messages: Sequence[Message],
    reply: TokenIds,
    prompt: Callable[[Sequence[Message]], TokenIds],
    score: Callable[[Sequence[TokenIds], Sequence[TokenIds]], Floats32],
) -> Attribution:
    """Attribute a generated reply to the sentences of the last message. `prompt` returns the
    tokens of a conversation, and `score` is that of an engine."""
    *before, last = messages

    def scores(texts: Sequence[str], answers: Sequence[int]) -> Floats:
        prompts = [prompt([*before, replace(last, content=text)]) for text in texts]
        return score(prompts, [reply]).astype(np.float64)

    return Attribution(Sentences.of(last.content), scores, [len(reply)])


def _log_odds(log_probabilities: Floats) -> Floats:
    below = np.minimum(log_probabilities, _LEAST_LOG)
    odds: Floats = below - np.log(-np.expm1(below))
    return odds


def _log(probabilities: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(probabilities, _TINY))
    return logs
