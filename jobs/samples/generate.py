"""Make the synthetic samples: `python jobs/samples/generate.py`. No sentence is from a real
abstract, no patient exists."""

import json
import random
import shutil
from pathlib import Path

PER_CLASS = 120
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
SHARED = (
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
STRONG = (
    "Histology showed an invasive {adj} carcinoma with nodal metastasis.",
    "Adjuvant chemotherapy was given after resection of the primary {organ} cancer.",
    "Five-year survival was {pct} percent for stage II {adj} tumours.",
    "The malignant {adj} cells expressed the oncogene in most of the specimens.",
    "Radiotherapy reduced local relapse of {organ} adenocarcinoma.",
)
WEAK = (
    "Staging was revised in {few} patients after surgery.",
    "Margins were positive in {few} of the resected specimens.",
    "Grade and size predicted the outcome independently.",
    "Disease-free survival was longer with the combined regimen.",
    "The growth had spread beyond the {organ} in {few} cases.",
)
OTHER = (
    "Blood pressure and {adj} function returned to normal within {k} weeks.",
    "Inflammation of the {organ} subsided with steroids.",
    "Bacterial cultures of {adj} fluid were positive in {few} cases.",
    "The {adj} obstruction was relieved by an endoscopic stent.",
    "Chronic {adj} insufficiency progressed slowly in the untreated group.",
    "Transplantation of the {organ} was followed by rejection in {few} patients.",
)
DECOYS = (
    "Malignancy was suspected at first, but biopsy showed a benign {adj} lesion.",
    "Patients with a history of cancer were excluded.",
    "No tumour was found at autopsy.",
    "The mass proved to be an abscess of the {organ}.",
    "The risk of {adj} cancer was not raised in this group.",
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


def abstract(rng: random.Random, label: str) -> tuple[str, str]:
    """Most texts of a class carry one of its sentences; some only weak ones, and both classes carry
    the other's words."""
    organ = rng.choice(sorted(ORGANS))
    draw = rng.random()
    if label == "cancer":
        told = rng.sample(STRONG, 1) if draw < 0.55 else rng.sample(WEAK, 2) if draw < 0.93 else []
        told += rng.sample(OTHER, rng.random() < 0.35) + rng.sample(DECOYS, rng.random() < 0.15)
    else:
        told = rng.sample(OTHER, 2) if draw < 0.6 else rng.sample(OTHER, 1) if draw < 0.93 else []
        told += rng.sample(DECOYS, rng.random() < 0.45) + rng.sample(WEAK, rng.random() < 0.12)
    sentences = told + rng.sample(SHARED, rng.randint(4, 9))
    rng.shuffle(sentences)
    title = (
        f"{rng.choice(('Outcome', 'Management', 'Course', 'Diagnosis'))} of "
        f"{rng.choice(ORGANS[organ])} disease of the {organ} in {rng.choice(DESIGNS)}."
    )
    return fill(rng, title, organ), " ".join(fill(rng, sentence, organ) for sentence in sentences)


def write(folder: Path) -> None:
    rng = random.Random(20261121)
    shutil.rmtree(folder / "abstracts", ignore_errors=True)
    number = 0
    for label in ("cancer", "non_cancer"):
        (folder / "abstracts" / label).mkdir(parents=True)
        for _ in range(PER_CLASS):
            number += 1
            title, text = abstract(rng, label)
            path = folder / "abstracts" / label / f"S{number:04d}.txt"
            path.write_text(
                f"<ID:S{number:04d}>\nTitle: {title}\nAbstract: {text}\n", encoding="utf-8"
            )
    with (folder / "findings.jsonl").open("w", encoding="utf-8") as file:
        for number in range(NUM_FINDINGS):
            labels = sorted(rng.sample(sorted(FINDINGS), rng.choice((1, 1, 2, 2, 3))))
            organ = rng.choice(sorted(ORGANS))
            sentences = [rng.choice(FINDINGS[label]) for label in labels] + [
                fill(rng, sentence, organ) for sentence in rng.sample(SHARED, 4)
            ]
            rng.shuffle(sentences)
            file.write(
                json.dumps({"id": f"F{number:04d}", "text": " ".join(sentences), "label": labels})
                + "\n"
            )


if __name__ == "__main__":
    write(Path(__file__).parent)
