import pytest

from medray.text import language

TEXTS = {
    "en": "We studied the effect of the drug in patients with asthma and found that it was safe.",
    "de": (
        "Wir haben die Wirkung des Medikaments bei Patienten mit Asthma untersucht und sie ist "
        "nicht belegt."
    ),
    "fr": (
        "Nous avons étudié l'effet du médicament chez les patients atteints d'asthme et il est sûr "
        "pour eux."
    ),
    "es": (
        "Se estudió el efecto del fármaco en los pacientes con asma y se encontró que era seguro "
        "para la mayoría."
    ),
    "it": (
        "Abbiamo studiato gli effetti del farmaco nei pazienti con asma e si è visto che non sono "
        "dannosi per la salute."
    ),
    "pt": (
        "Estudamos o efeito do fármaco em pacientes com asma e não foram encontrados efeitos para "
        "a maioria dos doentes."
    ),
    "nl": (
        "Het effect van het middel werd onderzocht bij patiënten met astma en het is niet "
        "aangetoond dat zij er beter van worden."
    ),
    "ru": "Мы изучили действие препарата у больных астмой.",
    "zh": "我们研究了该药物对哮喘患者的作用。",
    "ja": "この薬の喘息患者に対する効果を調べました。",
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_sentence_shows_its_language(name: str) -> None:
    assert language.guess(TEXTS[name]) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "asthma",
        "itching; skin rash; nodal skin eruptions; high fever; joint pain; vomiting",
        "TP53 BRCA1 12.5 mg",
    ],
)
def test_a_list_of_terms_or_a_few_words_has_no_language(text: str) -> None:
    assert language.guess(text) == language.UNKNOWN
