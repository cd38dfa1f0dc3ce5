"""Invented messages to a clinic with the answers to five questions, for `generate.py`. No sentence
is from a real message, and no writer exists."""

import random
from collections.abc import Iterator

NUM_MESSAGES = 420

# Who writes, by the first sentence.
WRITERS = {
    "patient": (
        "I have been with your practice for {n} years.",
        "This is about my own care.",
        "You saw me {n} weeks ago in room {n}.",
        "My file number ends in {n}{n}.",
        "I was in your waiting room last {day}.",
        "I am the one who wrote on {day}.",
    ),
    "relative": (
        "I am writing for my mother, who does not use a computer.",
        "My son is {n} years old and a patient of yours.",
        "My husband asked me to send this.",
        "I look after my grandfather, whom you know well.",
        "Our daughter came to you {n} weeks ago.",
        "I hold the proxy for my aunt.",
    ),
    "pharmacy": (
        "This is the pharmacy on the corner of Mill Street.",
        "Our dispensing desk has a customer of yours here.",
        "We are the chemist that fills your scripts on {day}.",
        "Counter {n} of the pharmacy speaking.",
        "Our pharmacist on duty has checked the list of your client.",
        "We deliver to the care home and keep its drug charts.",
    ),
    "colleague": (
        "I work on ward {n} of the district hospital.",
        "Our practice shares this case with yours.",
        "I am the community nurse for the north side.",
        "We referred this person to you in week {n}.",
        "The laboratory desk here, extension {n}{n}.",
        "I am the physiotherapist at the pool.",
    ),
}
# What it is about, and how urgent it is: each sentence has both.
MATTERS = {
    ("appointment", "routine"): (
        "The yearly check could be booked for some day in spring.",
        "A visit next month would be early enough.",
        "There is no hurry with the date of the follow-up.",
    ),
    ("appointment", "soon"): (
        "The visit of {day} has to move, preferably within this week.",
        "A slot in the coming days would help, as the cast is loose.",
        "Could the consultation take place before the weekend?",
    ),
    ("appointment", "today"): (
        "The door is closed and the visit was meant for this afternoon.",
        "The slot at {n} o'clock this evening cannot be kept.",
        "We stand at the desk now and nobody knows of the booking.",
    ),
    ("billing", "routine"): (
        "The invoice lists a service of {n} euros twice.",
        "The insurer wants a copy of the receipt for its files.",
        "Please note a new address for the statements.",
    ),
    ("billing", "soon"): (
        "The reminder sets a deadline in {n} days.",
        "The insurer closes the claim at the end of the week.",
        "A second notice came and adds a fee from {day}.",
    ),
    ("medication", "routine"): (
        "The repeat script will run out in about two months.",
        "The tablets could come in the larger pack next time.",
        "The list of drugs needs a new print at the next visit.",
    ),
    ("medication", "soon"): (
        "The inhaler has doses for {n} more days.",
        "The new ointment makes the skin itch a little.",
        "The brand is out of stock and a substitute is needed this week.",
    ),
    ("medication", "today"): (
        "The insulin in the fridge ends with tonight's dose.",
        "Two tablets too many were taken at lunch, without any effect so far.",
        "The dose on the script is ten times the usual one and cannot be handed out.",
    ),
    ("medication", "emergency"): (
        "A whole box of sleeping tablets is empty and the person hardly wakes.",
        "After the injection the lips swell and breathing is noisy.",
    ),
    ("results", "routine"): (
        "The cholesterol figures of last month may come by post.",
        "A copy of the old scan is wanted for the records.",
        "The report of the hearing test can wait for the next letter.",
    ),
    ("results", "soon"): (
        "The biopsy was taken {n} days ago and no word has come.",
        "The smear report is needed before the talk on {day}.",
    ),
    ("results", "today"): (
        "The potassium value of this morning is far above its range.",
        "The tracing from noon shows a rhythm that was not there before.",
    ),
    ("symptoms", "routine"): (
        "The knee clicks on stairs, as it has for years.",
        "A wart on the thumb has not changed since winter.",
    ),
    ("symptoms", "soon"): (
        "A cough has lasted {n} weeks and sleep is poor.",
        "The wound is red at one edge since {day}.",
        "The ear aches more than last week.",
    ),
    ("symptoms", "today"): (
        "Fever has been at 39 degrees since last night.",
        "The calf is swollen, warm and painful this morning.",
        "Nothing has stayed down for a whole day.",
    ),
    ("symptoms", "emergency"): (
        "There is a crushing pain in the chest that goes into the left arm.",
        "One side of the face droops and words come out wrong.",
        "The child turns blue at the lips and gasps.",
    ),
}
REQUESTS = (
    "Please call back on the usual number.",
    "Please write which of the two is right.",
    "We wait for your word.",
    "Tell us what to do next.",
    "A line in reply would be kind.",
    "When may we hear from you?",
)
NOTICES = (
    "This is for your information only.",
    "No reply is necessary.",
    "You need not call back.",
    "It is just so that you know.",
    "Please file this, that is all.",
    "Nothing has to be sent back.",
)
COMPLAINTS = (
    "This is the third message and I am losing patience.",
    "The tone at the desk was rude, and that is not acceptable.",
    "Being kept on hold for {n} minutes is a disgrace.",
    "I expected far better from this practice.",
    "Promises were made on {day} and not kept.",
    "I shall report this treatment to the board.",
)
THANKS = (
    "Thank you for the kind help of last time.",
    "Your staff were lovely, as ever.",
    "I hope the new rooms suit you well.",
    "With good wishes for the week.",
    "It rained here since {day}.",
    "The parking behind the house is much better now.",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def rows() -> Iterator[dict[str, str]]:
    rng = random.Random(20261130)
    matters = sorted(MATTERS)
    for number in range(NUM_MESSAGES):
        writer = sorted(WRITERS)[number % len(WRITERS)]
        topic, urgency = matters[number % len(matters)]
        needs_reply, is_complaint = rng.random() < 0.6, rng.random() < 0.3
        sentences = [
            rng.choice(WRITERS[writer]),
            rng.choice(MATTERS[topic, urgency]),
            rng.choice(REQUESTS if needs_reply else NOTICES),
            rng.choice(COMPLAINTS if is_complaint else THANKS),
        ]
        rng.shuffle(sentences)
        message = " ".join(sentences).format(n=rng.randint(2, 9), day=rng.choice(DAYS))
        yield {
            "id": f"T{number:04d}",
            "message": message,
            "writer": writer,
            "topic": topic,
            "urgency": urgency,
            "needs_reply": "yes" if needs_reply else "no",
            "complaint": "yes" if is_complaint else "no",
            "source": "synthetic",
        }
