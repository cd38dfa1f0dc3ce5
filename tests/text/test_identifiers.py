"""Identifiers that are masked, and texts that must stay."""

import pytest

from medray.text.identifiers import mask

MASKS = {
    "Write to jane.roe+x@clinic.example.org today.": "Write to [EMAIL] today.",
    "Ring +1 (555) 123-4567 or +41 44 668 18 00": "Ring [PHONE] or [PHONE]",
    "Call +44 20 7946 0958 or (555) 123-4567.": "Call [PHONE] or [PHONE].",
    "Reached at 555-123-4567; fax: 030 1234567": "Reached at [PHONE]; fax: [PHONE]",
    "MRN: 00482913, seen again": "MRN: [RECORD], seen again",
    "Patient ID AB-12345 was admitted": "Patient ID [RECORD] was admitted",
    "NHS number 943 476 5919.": "NHS number [RECORD].",
    "SSN 078-05-1120": "SSN [RECORD]",
    "Case no. 2019/0042": "Case no. [RECORD]",
    "Admitted on 12/03/2021, discharged 2021-03-19.": "Admitted on [DATE], discharged [DATE].",
    "born 3.4.1961, died 31.12.2020": "born [DATE], died [DATE]",
    "On March 3rd, 2020 and 4 May 2019": "On [DATE] and [DATE]",
    "seen 02/14/98 again": "seen [DATE] again",
    "Mr. John Smith and Mrs O'Brien-Lee": "Mr. [NAME] and Mrs [NAME]",
    "referred by Dr. med. to Prof. Dr. van der Berg": "referred by Dr. med. to Prof. Dr. [NAME]",
    "Patient: Jane A. Roe\nHistory of asthma": "Patient: [NAME]\nHistory of asthma",
    "name = José Álvarez": "name = [NAME]",
}
LEFT = [
    "5 mg/kg twice daily, 10-20 mg, 0.5 ml",
    "BP 120/80 mmHg, 7/10 pain, grade 1/2/3, 3/4 nodes",
    "TP53, BRCA1/2, CYP2D6*4, HLA-B27 and IL-6",
    "(Smith et al., 2019) and studies from 2001 to 2010",
    "between March 2019 and June 2020",
    "PMID 12345678, NCT01234567, doi:10.1056/NEJMoa2034577",
    "p = 0.0001; 95 % CI 1.02-3.45; n = 1,234,567",
    "Parkinson's disease, Crohn disease, the Glasgow Coma Scale",
    "MS lesions on MR imaging; DR-positive cells",
    "version 1.2.10 of ICD-10 code C50.9",
    "temperature 38.5, HbA1c 7.2 %, 2,000 patients in 12 centres",
    "The patient reported chills. Case 12 improved; patient 3 did not.",
    "1-800 units per day, 100-200-300 mg in steps",
    "May 12 patients be enough? In May 30 % were treated.",
    "a 45-year-old woman seen in 2021",
    "rs1042522 and chr17:7676154",
    "@home telemetry; the tel gene",
]


@pytest.mark.parametrize("text", MASKS)
def test_an_identifier_is_replaced_by_its_kind(text: str) -> None:
    masked_text = mask(text)
    assert masked_text.text == MASKS[text]
    assert sum(masked_text.counts.values()) == masked_text.text.count("[") > 0
    assert mask(masked_text.text).text == masked_text.text


@pytest.mark.parametrize("text", LEFT)
def test_what_medicine_writes_with_digits_and_capitals_is_left(text: str) -> None:
    assert mask(text).text == text
    assert mask(text).counts == {}


def test_counts_are_by_kind() -> None:
    masked_text = mask("Dr. Roe (a@b.org, c@d.org) on 2021-03-12")
    assert masked_text.counts == {"email": 2, "date": 1, "name": 1}


def test_a_place_in_the_masked_text_is_one_in_the_original() -> None:
    text = "Mr. Jonathan Q. Longname has asthma since 12/03/2021 and eczema."
    masked_text = mask(text)
    for word in ("has", "asthma", "since", "eczema", "."):
        start = masked_text.text.rindex(word)
        begin, end = masked_text.original(start, start + len(word))
        assert text[begin:end] == word
    start = masked_text.text.index("[NAME]")
    assert text[slice(*masked_text.original(start + 2, start + 4))] == "Jonathan Q. Longname"
    assert (
        text[slice(*masked_text.original(start, start + len("[NAME] has asthma")))]
        == "Jonathan Q. Longname has asthma"
    )
    assert masked_text.original(0, len(masked_text.text)) == (0, len(text))
