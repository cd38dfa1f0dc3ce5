"""Writes the synthetic samples: `python jobs/samples/generate.py`. No sentence is from a real text,
and no patient exists."""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import notes
import triage

NUM_FINDINGS = 200

ORGANS = {
    "lung": ("pulmonary", "bronchial", "airway", "lobar"),
    "liver": ("hepatic", "biliary", "portal", "hepatocellular"),
    "colon": ("colonic", "rectal", "mucosal", "colorectal"),
    "breast": ("mammary", "ductal", "axillary", "lobular"),
    "kidney": ("renal", "tubular", "glomerular", "ureteral"),
    "skin": ("cutaneous", "dermal", "epidermal", "melanocytic"),
    "prostate": ("prostatic", "perineal", "urethral", "glandular"),
    "stomach": ("gastric", "antral", "pyloric", "gastroesophageal"),
}
DESIGNS = (
    "a prospective cohort",
    "a retrospective review",
    "a randomised trial",
    "a case-control study",
    "a consecutive series",
    "a pilot study",
)
SENTENCES = (
    "We studied {n} patients in {design} between {y1} and {y2}.",
    "Median age was {age} years and {m} were men.",
    "Biopsy specimens were read by two pathologists who did not know the clinical course.",
    "Computed tomography and ultrasound of the {organ} were repeated after {k} months.",
    "Follow-up ranged from {k} to {k2} months, and {few} patients were lost to it.",
    "Multivariate analysis adjusted for age, sex and smoking.",
    "Serum markers were measured before treatment and every {k} weeks thereafter.",
    "Complications occurred in {few} cases and none was fatal.",
    "The {adj} tissue was examined by immunohistochemistry.",
    "Differences between the groups were significant (p less than 0.0{d}).",
    "The {adj} lesion was removed completely in {few} of the cases.",
    "Recurrence was seen in {few} patients, most of them within {k} months.",
    "Quality of life improved in both groups.",
    "These findings suggest that {adj} involvement deserves closer attention.",
    "Larger studies are needed before the method can be recommended.",
)
FINDINGS = {
    "cardiac": (
        "The ejection fraction was reduced.",
        "An arrhythmia was recorded on the electrocardiogram.",
        "Coronary narrowing was seen at angiography.",
    ),
    "infectious": (
        "Blood cultures grew staphylococci.",
        "Fever settled after antibiotics.",
        "A viral titre rose fourfold.",
    ),
    "metabolic": (
        "Fasting glucose was above the normal range.",
        "Insulin resistance was found.",
        "Lipids were raised in most subjects.",
    ),
    "neurologic": (
        "Seizures recurred within a month.",
        "Nerve conduction was delayed.",
        "A lesion of the white matter was seen.",
    ),
    "respiratory": (
        "Forced expiratory volume fell.",
        "Bronchial reactivity was increased.",
        "Oxygen saturation dropped at night.",
    ),
}


def fill(rng: random.Random, sentence: str, organ: str) -> str:
    first = rng.randint(1978, 1988)
    return sentence.format(
        n=rng.randint(18, 420),
        design=rng.choice(DESIGNS),
        y1=first,
        y2=first + rng.randint(2, 6),
        age=rng.randint(34, 71),
        m=rng.randint(9, 60),
        organ=organ,
        adj=rng.choice(ORGANS[organ]),
        k=rng.randint(2, 12),
        k2=rng.randint(18, 90),
        few=rng.randint(2, 17),
        pct=rng.randint(21, 88),
        d=rng.randint(1, 5),
    )


def write(folder: Path) -> None:
    write_table(folder / "notes.csv", list(notes.rows()))
    write_table(folder / "triage.csv", list(triage.rows()))
    rng = random.Random(20261121)
    with (folder / "findings.jsonl").open("w", encoding="utf-8") as file:
        for number in range(NUM_FINDINGS):
            labels = sorted(rng.sample(sorted(FINDINGS), rng.choice((1, 1, 2, 2, 3))))
            organ = rng.choice(sorted(ORGANS))
            sentences = [rng.choice(FINDINGS[label]) for label in labels] + [
                fill(rng, sentence, organ) for sentence in rng.sample(SENTENCES, 4)
            ]
            rng.shuffle(sentences)
            file.write(
                json.dumps({"id": f"F{number:04d}", "text": " ".join(sentences), "label": labels})
                + "\n"
            )


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write(Path(__file__).parent)
