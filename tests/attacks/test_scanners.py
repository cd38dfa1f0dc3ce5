"""No text is scanned in a time that grows faster than its length, and no long one keeps others
waiting."""

import asyncio
import time
from collections.abc import Callable

import pytest

from medray.errors.redaction import redact
from medray.serving import notes
from medray.serving.notes import TrainingTexts, unlike
from medray.tasks.classification import ClassifyRequest
from medray.tasks.extraction import json_list
from medray.tasks.instruct import figures, safety
from medray.text import identifiers, language

# Beginnings of identifiers that go on and on, and texts that repeat one: what a pattern could try
# in many ways.
PARTS = {
    "a key and blanks": ("tel", " "),
    "another key and tabs": ("MRN", "\t"),
    "blanks": ("", " "),
    "keys": ("", "tel \t "),
    "keys with a word behind": ("", "MRN is "),
    "keys with digits": ("", "tel 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1_ "),
    "records": ("", "MRN 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1_ "),
    "digits": ("", "1"),
    "spaced digits": ("tel ", "1 "),
    "hyphens": ("", "1-"),
    "telephones": ("", " +1111111111111111111111111x"),
    "telephones in brackets": ("", " +1(1)1(1)1(1)1(1)1(1)1(1)x"),
    "letters": ("", "a"),
    "addresses": ("", " " + "a" * 64 + "@" + ("b" * 63 + ".") * 6),
    "half addresses": ("", "a@"),
    "names": ("Dr ", "Aa "),
    "titles": ("", "Dr "),
    "particles": ("Dr ", "van "),
    "patients": ("", "patient name "),
    "dates": ("", "12/"),
    "months": ("", "12 January "),
    "quotes": ("", '"'),
    "escapes": ('"', "\\"),
    "stops": ("", ". "),
    "refusals": ("", "i can not safely really "),
    "sorry": ("sorry", " but"),
    "lists": ("", '["a", '),
    "users": ("://", "://a:"),
    "users without an end": ("://", "a:"),
    "hosts": ("://", "x@://"),
    "queries": ("://", "?"),
    "parameters": ("://", "?a=%3F&"),
    "tokens": ("://", "eyJ-"),
    "keys of services": ("://", "sk-"),
    "references": ("://", "${env:"),
    "references that are hidden": ("://", "\x005\x00"),
    "passwords": ("://", "password "),
    "private keys": ("://", "-----BEGIN PRIVATE KEY-----"),
}
SCANNERS: dict[str, Callable[[str], object]] = {
    "identifiers": identifiers.mask,
    "language": language.guess,
    "likeness": lambda text: unlike(text, TrainingTexts(3, 300, {"en": 1.0})),
    "refusals": safety.is_refusal,
    "words": figures.words,
    "lists": json_list.read,
    "secrets": redact,
}


def text_of(part: str, length: int) -> str:
    start, part_to_repeat = PARTS[part]
    return (start + part_to_repeat * (length // len(part_to_repeat) + 1))[:length]


def seconds(scan: Callable[[str], object], text: str) -> float:
    start = time.thread_time()
    scan(text)
    return time.thread_time() - start


@pytest.mark.parametrize("scanner", SCANNERS)
@pytest.mark.parametrize("part", PARTS)
def test_the_time_of_a_scan_grows_with_the_length_and_no_faster(scanner: str, part: str) -> None:
    """Sixteen times the length may take fifty times as long; what grows with the square takes
    256."""
    scan, before = SCANNERS[scanner], 0.0
    for length in (1 << 10, 1 << 14, 1 << 18):
        duration = seconds(scan, text_of(part, length))
        assert duration < max(0.05, 50 * before), (
            f"{length} characters took {duration:.3f} s, a sixteenth of them {before:.3f} s"
        )
        before = duration
    assert before < 3


def test_positions_of_many_mentions_among_many_masks_take_a_moment() -> None:
    masked_text = identifiers.mask("Tumor +4912345678 " * 10_000)
    start = time.thread_time()
    places = [masked_text.original(at, at + 5) for at in range(0, 14 * 10_000, 14)]
    assert time.thread_time() - start < 1
    assert places[-1] == (18 * 9_999, 18 * 9_999 + 5)


def test_others_are_answered_while_a_long_text_is_masked() -> None:
    async def masked_beside_others() -> tuple[float, float]:
        start = time.monotonic()
        masking = asyncio.create_task(notes.mask(ClassifyRequest(text=text_of("records", 4 << 20))))
        longest = 0.0
        while not masking.done():
            start_of_request = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - start_of_request)
        assert (await masking).replacements[0].counts.keys() == {"record"}
        return longest, time.monotonic() - start

    longest, whole = asyncio.run(masked_beside_others())
    assert longest < 0.6 * whole
