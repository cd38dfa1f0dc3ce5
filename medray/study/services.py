"""Services that answer typed questions, as references of a study: they are asked about validation
and test rows as any reader of their texts would be, without labels.

Answers are stored in the study's storage path by hashes of their requests, so that no request is
paid twice."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medray.config.reference import ReferenceConfig
from medray.errors import ConfigError
from medray.evaluation.calibration import is_multi_label
from medray.evaluation.leaderboard import Entry
from medray.evaluation.service_use import ServiceUse
from medray.storage import files
from medray.study.candidates import Candidate
from medray.study.service_client import Sleep, fail_on_content, post
from medray.tasks.base.decision_formats import OptionShares, read_response, request_body
from medray.tasks.base.protocol import Calibrated, QuestionTask, Task
from medray.tasks.base.questions import questions_of
from medray.types import Example, Prediction, Question, QuestionAnswer

_MOST_BYTES = 16 << 20  # of a stored answer


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """The answer to the questions about one text, as it is stored: no text and no secret."""

    shares: tuple[OptionShares | None, ...]
    input_tokens: int
    output_tokens: int
    seconds: float


@dataclass
class DecisionService:
    config: ReferenceConfig
    folder: Path  # of stored answers
    sleep: Sleep = time.sleep
    answers: dict[str, ServiceAnswer] = field(default_factory=dict)  # of this study, by request

    def check(self, task: Task, rows: Sequence[Example]) -> None:
        """Ask about the first row, so that a wrong reference ends a study before it trains."""
        if not isinstance(task, QuestionTask | Calibrated):
            raise ConfigError(
                f"references: task {task.options.name} has no questions to ask "
                f"{self.config.url}; remove the references"
            )
        self._ask(_inquiries(task, rows[:1])[0])

    def candidate(
        self, task: Task, validation: Sequence[Example], rows: Sequence[Example]
    ) -> Candidate:
        """Return the service's predictions of validation and test rows."""
        on_validation, on_test = (self._ask_all(task, part) for part in (validation, rows))
        entry = Entry(name=self.config.name, kind="reference", service=self.use())
        ms_per_row = 1000 * sum(answer.seconds for answer in on_test) / len(rows)
        first, second = (
            _predictions(task, part, answers)
            for part, answers in ((validation, on_validation), (rows, on_test))
        )
        if isinstance(task, Calibrated):
            task = task.tune(first, validation)
            first, second = (
                _without_refusals(task, task.decide(part), answers)
                for part, answers in ((first, on_validation), (second, on_test))
            )
        return Candidate(entry, task, first, second, ms_per_row)

    def use(self) -> ServiceUse:
        """Return what the requests of this study cost, those with stored answers included."""
        answers = self.answers.values()
        tokens = [sum(answer.input_tokens for answer in answers)]
        tokens.append(sum(answer.output_tokens for answer in answers))
        price = self.config.price_per_million
        return ServiceUse(
            url=self.config.url,
            num_requests=len(answers),
            num_refusals=sum(answer.shares.count(None) for answer in answers),
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            seconds=sum(answer.seconds for answer in answers),
            cost=None if price is None else sum(tokens) * price / 1e6,
        )

    def _ask_all(self, task: Task, rows: Sequence[Example]) -> list[ServiceAnswer]:
        inquiries = {self._key(row): row for row in _inquiries(task, rows)}
        executor = ThreadPoolExecutor(self.config.num_parallel)
        try:
            answers = dict(zip(inquiries, executor.map(self._ask, inquiries.values()), strict=True))
        finally:
            executor.shutdown(cancel_futures=True)
        return [answers[self._key(row)] for row in _inquiries(task, rows)]

    def _ask(self, inquiry: Example) -> ServiceAnswer:
        key = self._key(inquiry)
        if key not in self.answers:
            path = self.folder / key[:2] / f"{key}.json"
            self.answers[key] = _load_answer(path, inquiry.questions) or self._fetch(inquiry, path)
        return self.answers[key]

    def _body(self, inquiry: Example) -> dict[str, Any]:
        return request_body(self.config.form, self.config.model, inquiry.text, inquiry.questions)

    def _key(self, inquiry: Example) -> str:
        """Return the name under which the answer to a request is stored."""
        return files.hash_text([self.config.url, json.dumps(self._body(inquiry))])

    def _fetch(self, inquiry: Example, path: Path) -> ServiceAnswer:
        response = post(self.config, self._body(inquiry), sleep=self.sleep)
        try:
            content = read_response(self.config.form, response.content, inquiry.questions)
        except ValueError as err:
            fail_on_content(self.config, inquiry.id, str(err))
        answer = ServiceAnswer(
            content.shares, content.input_tokens, content.output_tokens, response.seconds
        )
        files.write(path, json.dumps(asdict(answer)).encode())
        return answer


def _load_answer(path: Path, questions: Sequence[Question]) -> ServiceAnswer | None:
    """Return a stored answer, or None where there is none that fits."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        raw = json.loads(path.read_bytes())
        answer = ServiceAnswer(
            tuple(own and tuple(map(float, own)) for own in raw["shares"]),
            int(raw["input_tokens"]),
            int(raw["output_tokens"]),
            float(raw["seconds"]),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    fits = [
        own is None or (len(own) == len(question.options) and abs(sum(own) - 1) < 1e-6)
        for own, question in zip(answer.shares, questions, strict=False)
    ]
    return answer if len(fits) == len(answer.shares) == len(questions) and all(fits) else None


def _inquiries(task: Task, rows: Sequence[Example]) -> list[Example]:
    """Return the rows as a service may see them: texts and questions, and no labels."""
    examples = [row.without_answer() for row in rows]
    if isinstance(task, QuestionTask):
        return task.with_answers(examples)
    return [replace(row, questions=questions_of(task)) for row in examples]


def _predictions(
    task: Task, rows: Sequence[Example], answers: Sequence[ServiceAnswer]
) -> list[Prediction]:
    if not isinstance(task, QuestionTask):
        return [
            Prediction(row.id, (), _label_shares(task, answer))
            for row, answer in zip(rows, answers, strict=True)
        ]
    return [
        Prediction(
            row.id,
            (),
            (),
            answers=tuple(
                QuestionAnswer(
                    question.name,
                    question.kind,
                    question.values,
                    own or _equal(len(question.options)),
                    abstained=own is None,
                    is_refusal=own is None,
                )
                for question, own in zip(row.questions, answer.shares, strict=True)
            ),
        )
        for row, answer in zip(_inquiries(task, rows), answers, strict=True)
    ]


def _label_shares(task: Task, answer: ServiceAnswer) -> OptionShares:
    """Return a probability per label: from the choice among them, or from a predicate for each."""
    if is_multi_label(task):
        return tuple(own[0] if own else 0.5 for own in answer.shares)
    return answer.shares[0] or _equal(len(task.labels))


def _without_refusals(
    task: Task, predictions: Sequence[Prediction], answers: Sequence[ServiceAnswer]
) -> list[Prediction]:
    """Return predictions without the labels about which the service refused to answer."""
    rows = []
    for row, answer in zip(predictions, answers, strict=True):
        per_label = answer.shares if is_multi_label(task) else answer.shares * len(task.labels)
        labels = {label for label, own in zip(task.labels, per_label, strict=True) if own}
        rows.append(replace(row, labels=tuple(label for label in row.labels if label in labels)))
    return rows


def _equal(count: int) -> OptionShares:
    return (1 / count,) * count
