"""Invented messages to a clinic with the answers to five questions, for `generate.py`.

Every message names two matters, and one of them is settled, past or somebody else's. It names two
people, and one of them writes. Whether a reply is due, and whether the writer complains, stands in
words that both answers share. So the wording around the words decides. Each practice has wordings
of its own: a split by practice tests on some that no training row has. No writer exists."""

import random
from collections.abc import Iterator

import triage_wordings as wordings

NUM_PRACTICES, ROWS_PER_PRACTICE = 16, 36

WRITERS = {
    "patient": ("the patient", "the person under treatment", "the one you examined"),
    "relative": ("the mother", "the husband", "the grandson", "the sister"),
    "pharmacy": ("the pharmacist", "the drugstore", "the dispensing desk"),
    "colleague": (
        "the ward nurse",
        "the laboratory",
        "the hospital doctor",
        "the practice next door",
    ),
}
# The noun phrase of a matter says what it is about, and how soon somebody must act.
MATTERS = {
    ("appointment", "routine"): (
        "a checkup some time next year",
        "a date for the yearly visit",
        "a follow-up visit in spring",
    ),
    ("appointment", "soon"): (
        "a visit that has to move within the week",
        "a consultation before the weekend",
        "a booking for the coming days",
    ),
    ("appointment", "today"): (
        "a visit this afternoon",
        "a booking for today that is lost",
        "the consultation at four this evening",
    ),
    ("billing", "routine"): (
        "an old invoice for the files",
        "a new address for bills",
        "a receipt without any deadline",
    ),
    ("billing", "soon"): (
        "a payment due in a few days",
        "an invoice to be paid this week",
        "a bill with a reminder for Friday",
    ),
    ("billing", "today"): (
        "a payment that ends at midnight",
        "a bill that is due today",
        "an insurance claim that closes this evening",
    ),
    ("medication", "routine"): (
        "a repeat script for next season",
        "a larger pack of tablets some day",
        "a new print of the drug list",
    ),
    ("medication", "soon"): (
        "an inhaler that lasts a few days",
        "a supply of tablets that ends this week",
        "an ointment that itches a little",
    ),
    ("medication", "today"): (
        "insulin that ends tonight",
        "a wrong dose on today's script",
        "a drug missed this morning",
    ),
    ("medication", "emergency"): (
        "an overdose with loss of consciousness",
        "a reaction to tablets that stops the breathing",
        "an injection after which the throat swells shut",
    ),
    ("results", "routine"): (
        "a copy of an old scan",
        "the report of a yearly blood test",
        "a normal cholesterol value for the records",
    ),
    ("results", "soon"): (
        "a biopsy report expected this week",
        "a scan report needed in a few days",
        "a blood test to repeat before the weekend",
    ),
    ("results", "today"): (
        "an abnormal blood test of this morning",
        "a scan that must be read today",
        "a laboratory value to discuss this evening",
    ),
    ("symptoms", "routine"): (
        "a knee that has clicked for years",
        "an unchanged wart",
        "mild dry skin as in every winter",
    ),
    ("symptoms", "soon"): (
        "a cough for two weeks",
        "an earache that grows over days",
        "a wound that is red since the week began",
    ),
    ("symptoms", "today"): (
        "high fever since last night",
        "a swollen and painful calf this morning",
        "vomiting all day today",
    ),
    ("symptoms", "emergency"): (
        "crushing chest pain and collapse",
        "a drooping face with loss of speech",
        "a child with blue lips who gasps for air",
    ),
}


def rows() -> Iterator[dict[str, str]]:
    rng = random.Random(20261130)
    kinds = (
        wordings.CURRENT,
        wordings.OTHER,
        wordings.WRITER,
        wordings.REPLY,
        wordings.NO_REPLY,
        wordings.COMPLAINT,
        wordings.NO_COMPLAINT,
    )
    current, others, people, reply, no_reply, complaint, no_complaint = (
        rng.sample(kind, len(kind)) for kind in kinds
    )
    matters, writers = sorted(MATTERS), sorted(WRITERS)
    for number in range(NUM_PRACTICES * ROWS_PER_PRACTICE):
        practice = number // ROWS_PER_PRACTICE
        own = slice(practice, None, NUM_PRACTICES)
        topic, urgency = matters[number % len(matters)]
        other = rng.choice([pair for pair in matters if pair[0] != topic and pair[1] != urgency])
        writer, second = rng.sample(writers, 2)
        needs_reply, is_complaint = rng.random() < 0.5, rng.random() < 0.5
        sentences = [
            rng.choice(people[own]).format(
                a=rng.choice(WRITERS[writer]), b=rng.choice(WRITERS[second])
            ),
            rng.choice(current[own]).format(rng.choice(MATTERS[topic, urgency])),
            rng.choice(others[own]).format(rng.choice(MATTERS[other])),
            rng.choice((reply if needs_reply else no_reply)[own]),
            rng.choice((complaint if is_complaint else no_complaint)[own]),
        ]
        rng.shuffle(sentences)
        yield {
            "id": f"T{number:04d}",
            "practice": f"practice {practice + 1}",
            "message": " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences),
            "writer": writer,
            "topic": topic,
            "urgency": urgency,
            "needs_reply": "yes" if needs_reply else "no",
            "complaint": "yes" if is_complaint else "no",
            "source": "synthetic",
        }
