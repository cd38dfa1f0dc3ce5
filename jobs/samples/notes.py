"""Synthetic clinical notes for `make quickstart`: does this patient have cancer now?

Every note names a cancer. It is present, or else absent, past, a relative's, excluded or feared.
Half of the notes name another disease too, in the other of the two states. So both classes share
their words, and the sentence around the cancer decides. Each clinic has sentences and diseases of
its own: a split by clinic tests on wordings that no training row has. No patient exists."""

import random
from collections.abc import Iterator

NUM_CLINICS, ROWS_PER_CLINIC = 20, 36
DOUBLE = 0.5  # share of the notes that name another disease beside the cancer

# Twenty sentences per context: one for each clinic.
NOT_NOW = (
    # absent
    "No sign of {}.",
    "Negative for {}.",
    "Denies {}.",
    "Imaging is without features of {}.",
    "Nothing on the scan points to {}.",
    "Does not have {}.",
    "Free of {}.",
    "Lacks the characteristics of {}.",
    "Never diagnosed with {}.",
    "Not {}.",
    "There is no {}.",
    "Absence of {} on CT.",
    "The specimen contains no {}.",
    "Shows neither symptoms nor signs of {}.",
    "{} was not found.",
    "The slides do not show {}.",
    "No trace of {}.",
    "Clear of {} on every test.",
    "Unaffected by {}.",
    "We see nothing that would suggest {}.",
    # a relative's
    "Mother had {}.",
    "Family history of {}.",
    "A sister lives with {}.",
    "Father: {}.",
    "The patient's spouse has {}.",
    "Two cousins have {}.",
    "A grandmother died of {}.",
    "A half-brother suffers from {}.",
    "Reports that a nephew has {}.",
    "{} runs in the family.",
    "An uncle was treated for {}.",
    "Maternal {}.",
    "The patient's daughter was found to have {}.",
    "A parent succumbed to {}.",
    "Both siblings were affected by {}.",
    "A son is being treated for {}.",
    "Lost a wife to {}.",
    "Paternal aunt with {}.",
    "Several relatives had {}.",
    "Cares for a husband with {}.",
    # past
    "Treated for {} in 2009 without relapse.",
    "History of {}, resolved.",
    "Had {} in childhood.",
    "Former {}, discharged from surveillance.",
    "Status post {} in 2004.",
    "Recovered from {} as a young adult.",
    "Once had {}.",
    "Past medical history includes {}, healed.",
    "Cured of {} in 2015.",
    "Five years clear of {}.",
    "{} ten years ago, fully cured.",
    "Survivor of {}.",
    "Previous {}, no longer present.",
    "In complete remission from {} since 2011.",
    "Remote {}, inactive.",
    "Overcame {} decades ago.",
    "{} in 1998 has not returned.",
    "Successfully operated on for {} long ago.",
    "Prior {}, gone.",
    "Used to have {}.",
    # excluded
    "Biopsy ruled out {}.",
    "MRI excluded {}.",
    "The search for {} came back empty.",
    "Histology does not support {}.",
    "We can dismiss {}.",
    "{} has been eliminated from the differential.",
    "The laboratory disproved {}.",
    "PET argues against {}.",
    "The board rejected {}.",
    "The suspicion of {} was refuted.",
    "The initial impression of {} was wrong.",
    "Sent to us as {}, mistakenly.",
    "The work-up for {} was unremarkable.",
    "What looked like {} is a normal variant.",
    "Earlier reports of {} were in error.",
    "Thought at first to be {}, but it is not.",
    "Mislabeled as {} in the old chart.",
    "Further tests overturned the diagnosis of {}.",
    "{} was suspected but not confirmed.",
    "Cytology is inconsistent with {}.",
    # feared
    "Afraid of getting {}.",
    "Screening for {} is due next year.",
    "Counseled about the risk of {}.",
    "Should {} ever occur, the plan will change.",
    "Wonders about the possibility of {}.",
    "Read about {} on the internet.",
    "Advised to stop smoking to lower the chance of {}.",
    "The new drug may rarely cause {}.",
    "Joined a program to prevent {}.",
    "Would like a test for {}.",
    "Worried that it could be {}.",
    "A vaccine against {} was offered.",
    "At increased risk for {}.",
    "If {} develops, surgery is planned.",
    "Asks how likely {} is.",
    "Requests information on {}.",
    "Follows a diet to avoid {}.",
    "Gene testing for {} was discussed.",
    "Concerned about {} because of a neighbor's illness.",
    "Might get {} later in life.",
)
NOW = (
    "Has {}.",
    "Current diagnosis: {}.",
    "CT shows {}.",
    "Positive for {}.",
    "The specimen shows {}.",
    "Under treatment for {} since spring.",
    "Suffers from {}.",
    "Presents with {}.",
    "Active {}.",
    "Biopsy confirmed {}.",
    "Histology is diagnostic of {}.",
    "Admitted with {}.",
    "The cause is {}.",
    "The final diagnosis is {}.",
    "Seen for {}.",
    "Newly found {}.",
    "Undergoes therapy of {}.",
    "Known {}, under our care.",
    "The surgeons encountered {}.",
    "Further tests established {}.",
    "Takes medication for {}.",
    "Follow-up of {}.",
    "Stable {} on therapy.",
    "The current problem is {}.",
    "Infusion today for {}.",
    "The patient's {} is progressing.",
    "Attends because of {}.",
    "Bothered by {}.",
    "The findings fit {}.",
    "Has developed {}.",
    "Imaging is consistent with {}.",
    "The laboratory proved {}.",
    "Referred with {}.",
    "Continued care for {}.",
    "Ongoing {}.",
    "{} was demonstrated.",
    "The board agreed on {}.",
    "Turned out to be {}.",
    "The resected tissue contained {}.",
    "Problem list: {}.",
    "{} is plainly seen.",
    "Is being treated for {}.",
    "Living with {}.",
    "{}, confirmed this month.",
    "Diagnosed with {} last week.",
    "Symptoms are due to {}.",
    "The true reason is {}.",
    "Cytology is that of {}.",
    "Hospitalized because of {}.",
    "The nodule is {}.",
    "Affected by {} at present.",
    "Needs surgery for {}.",
    "{} causes pain.",
    "Started on drugs against {}.",
    "Worsening {}.",
    "Today's imaging shows {}.",
    "{} was recognized yesterday.",
    "The scan reveals {}.",
    "Carries a diagnosis of {}.",
    "Receives treatment of {}.",
)
CANCERS = (
    "lung cancer", "follicular lymphoma", "breast cancer", "melanoma", "renal cell carcinoma",
    "acute myeloid leukemia", "colorectal cancer", "glioblastoma", "prostate cancer",
    "ovarian cancer", "pancreatic cancer", "hepatocellular carcinoma", "gastric cancer",
    "multiple myeloma", "thyroid cancer", "pleural mesothelioma", "bladder cancer",
    "osteosarcoma", "cervical cancer", "small cell lung cancer", "Hodgkin lymphoma",
    "esophageal cancer", "chronic lymphocytic leukemia", "endometrial cancer", "bile duct cancer",
    "cancer of the tongue", "testicular cancer", "Merkel cell carcinoma",
    "metastatic breast cancer", "laryngeal cancer", "neuroblastoma", "Ewing sarcoma",
    "nasopharyngeal carcinoma", "colon cancer", "uveal melanoma", "rectal cancer",
    "adrenal carcinoma", "mantle cell lymphoma", "liposarcoma", "skin cancer",
)  # fmt: skip
OTHERS = (
    "tuberculosis", "sarcoidosis", "mastitis", "psoriasis", "polycystic kidney disease",
    "iron deficiency anemia", "ulcerative colitis", "migraine", "benign prostatic hyperplasia",
    "endometriosis", "pancreatitis", "hepatitis B", "gastritis", "osteoporosis", "Graves disease",
    "asthma", "cystitis", "osteomyelitis", "uterine fibroids", "pneumonia",
    "infectious mononucleosis", "reflux esophagitis", "pernicious anemia", "diabetes",
    "gallstones", "oral candidiasis", "epididymitis", "rosacea", "heart failure", "laryngitis",
    "epilepsy", "rheumatoid arthritis", "sinusitis", "Crohn disease", "glaucoma", "hemorrhoids",
    "Cushing syndrome", "gout", "hypertension", "eczema",
)  # fmt: skip
REMARKS = (
    "Blood pressure is normal.",
    "Weight is stable.",
    "Sleeps well.",
    "Lives with a daughter.",
    "Pain is controlled.",
    "Appetite has improved.",
    "Laboratory values are pending.",
    "Retired teacher.",
    "Discussed with the family.",
    "Return in six weeks.",
)


def rows() -> Iterator[dict[str, str]]:
    """Yields the rows; every other row of a clinic is labelled cancer."""
    rng = random.Random(20261130)
    cancers, others, now = (rng.sample(names, len(names)) for names in (CANCERS, OTHERS, NOW))
    for clinic in range(NUM_CLINICS):
        own = slice(clinic, None, NUM_CLINICS)
        frames = {True: now[own], False: NOT_NOW[own]}
        for row in range(ROWS_PER_CLINIC):
            has_cancer = row % 2 == 0
            sentences = [rng.choice(frames[has_cancer]).format(rng.choice(cancers[own]))]
            if rng.random() < DOUBLE:
                other = rng.choice(frames[not has_cancer]).format(rng.choice(others[own]))
                sentences.append(other)
                rng.shuffle(sentences)
            opening = f"{rng.randint(34, 81)}-year-old {rng.choice(('man', 'woman'))}."
            parts = (opening, *sentences, rng.choice(REMARKS))
            yield {
                "id": f"N{clinic * ROWS_PER_CLINIC + row + 1:04d}",
                "clinic": f"clinic {clinic + 1}",
                "note": " ".join(part[0].upper() + part[1:] for part in parts),
                "label": "cancer" if has_cancer else "no_cancer",
                "source": "synthetic",
            }
