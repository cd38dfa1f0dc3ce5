"""Invented messages to a clinic with the answers to five questions, for `generate.py`.

Every message names two matters, and one of them is settled. It names two people, and one of them
writes. Names and matters end their sentences, and sentences stand in any order. So neither words
nor pairs of words tell what is current and who writes: the sentence around a name does. No writer
exists."""

import random
from collections.abc import Iterator

NUM_ROWS = 360

WRITERS = {
    "patient": ("the patient", "the person under treatment"),
    "relative": ("the mother", "the husband", "the sister"),
    "colleague": ("the ward nurse", "the laboratory", "the hospital doctor"),
}
SENDERS = ("I am {}.", "Signed by {}.", "Greetings from {}.")
MENTIONS = ("You know {}.", "A copy goes to {}.", "Greetings to {}.")
# The noun phrase of a matter says what it is about, and how soon somebody must act.
MATTERS = {
    ("appointment", "routine"): ("a checkup next year", "a visit in spring"),
    ("appointment", "soon"): ("a visit this week", "a booking for the coming days"),
    ("appointment", "today"): ("a visit this afternoon", "a booking for today"),
    ("billing", "routine"): ("an old invoice", "a receipt without any deadline"),
    ("billing", "soon"): ("an invoice due this week", "a payment due in a few days"),
    ("billing", "today"): ("a payment that ends tonight", "an invoice due today"),
    ("medication", "routine"): ("a pack of tablets for next season", "a new drug list"),
    ("medication", "soon"): ("an inhaler that lasts a few days", "a refill before the weekend"),
    ("medication", "today"): ("a vial of insulin that ends tonight", "a drug missed this morning"),
    ("symptoms", "routine"): ("an unchanged wart", "a knee that has clicked for years"),
    ("symptoms", "soon"): ("a cough for two weeks", "an earache that grows over days"),
    ("symptoms", "today"): ("a high fever since last night", "a chest pain since this morning"),
}
CURRENT = ("I write about {}.", "Please see to {}.", "Now there is {}.")
OTHER = ("I do not write about {}.", "Please forget {}.", "Last time it was {}.")
REPLY = {
    "yes": ("Please call me back.", "I wait for an answer.", "Could you write to me?"),
    "no": ("Please do not call me back.", "I wait for no answer.", "You need not write to me."),
}
COMPLAINT = {
    "yes": ("Your desk was not friendly.", "I am not happy with you.", "Nobody listened to me."),
    "no": ("Your desk was friendly.", "I am happy with you.", "Everybody listened to me."),
}


def rows() -> Iterator[dict[str, str]]:
    rng = random.Random(20261130)
    matters, writers = sorted(MATTERS), sorted(WRITERS)
    for number in range(NUM_ROWS):
        topic, urgency = matters[number % len(matters)]
        other = rng.choice([pair for pair in matters if pair[0] != topic and pair[1] != urgency])
        writer, second = rng.sample(writers, 2)
        needs_reply, complaint = rng.choice(("yes", "no")), rng.choice(("yes", "no"))
        sentences = [
            rng.choice(SENDERS).format(rng.choice(WRITERS[writer])),
            rng.choice(MENTIONS).format(rng.choice(WRITERS[second])),
            rng.choice(CURRENT).format(rng.choice(MATTERS[topic, urgency])),
            rng.choice(OTHER).format(rng.choice(MATTERS[other])),
            rng.choice(REPLY[needs_reply]),
            rng.choice(COMPLAINT[complaint]),
        ]
        rng.shuffle(sentences)
        yield {
            "id": f"T{number:04d}",
            "message": " ".join(sentences),
            "writer": writer,
            "topic": topic,
            "urgency": urgency,
            "needs_reply": needs_reply,
            "complaint": complaint,
            "source": "synthetic",
        }
