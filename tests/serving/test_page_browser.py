"""The page as a browser shows it, over the real routes. Needs a Chromium on the PATH: `apt-get
install chromium`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser
from support import fake_service
from support.browser import Tab, open_tab

from medray.serving import auth
from medray.serving.refusals import Refusal

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@dataclass
class Served:
    """The page of one service in one tab."""

    browser: Browser
    service: fake_service.Service
    url: str
    tab: Tab = field(init=False)

    def open(self, release: str, *, width: int = 1000, dark: bool = False) -> None:
        self.tab = open_tab(self.browser, f"{self.url}#{release}", width=width, dark=dark)
        self.until("!document.getElementById('card').hidden")

    def value(self, script: str) -> Any:
        return self.tab.value(script)

    def text(self, selector: str) -> str | None:
        return self.tab.page.locator(selector).first.text_content()

    def type(self, selector: str, text: str) -> None:
        self.tab.page.focus(selector)
        self.tab.page.keyboard.insert_text(text)

    def press(self, key: str) -> None:
        self.tab.page.keyboard.press(key)

    def enter(self) -> None:
        self.press("Enter")

    def tab_key(self) -> str:
        self.press("Tab")
        return str(self.value("document.activeElement.id || document.activeElement.textContent"))

    def until(self, script: str) -> None:
        self.tab.until(script)

    def is_clean(self) -> None:
        assert self.tab.complaints == []
        assert {request.startswith(self.url) for request in self.tab.requests} == {True}
        assert self.text("#problem") == ""
        width = self.value("innerWidth")
        assert self.value("document.documentElement.scrollWidth") == width


@pytest.fixture
def page(chromium: Browser) -> Iterator[Served]:
    service = fake_service.Service(pause_s=0.02)
    with fake_service.running(fake_service.api(service)) as url:
        yield Served(chromium, service, url)


@pytest.mark.parametrize(("width", "dark"), [(1000, False), (360, True)])
def test_an_abstract_gets_its_label_confidence_and_bars(
    page: Served, width: int, dark: bool
) -> None:
    page.open("cancer@best", width=width, dark=dark)
    page.type("#field-text", "Histology showed an infiltrating carcinoma.")
    page.value("document.getElementById('send').click()")
    page.until("!document.getElementById('answer').hidden")
    assert page.text(".verdict") == "cancer"
    assert "Confidence 83.0 %" in page.text("#result")
    assert page.value(
        "[...document.querySelectorAll('.bars li')].map(held => held.textContent)"
    ) == [
        "cancer83.0 %",
        "no cancer17.0 %",
    ]
    widths = page.value(
        "[...document.querySelectorAll('.track i')].map(held => held.getBoundingClientRect().width)"
    )
    assert widths[0] == pytest.approx(83 / 17 * widths[1], rel=0.02)
    assert page.service.requests[0].text == "Histology showed an infiltrating carcinoma."
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    page.is_clean()


def test_symptoms_are_picked_by_keyboard_and_diseases_ranked(page: Served) -> None:
    page.open("symptoms@best", width=360)
    for term in ("Skin Rash", "itching", "hiccups"):
        page.type("#field-symptoms", term)
        page.enter()
    assert page.text("#fields [role=status]") == "hiccups does not occur in the training data."
    page.value("document.querySelectorAll('.chips button')[1].focus()")
    page.enter()  # removes it
    page.value("document.getElementById('field-symptoms').focus()")
    page.enter()  # nothing is typed: asks
    page.until("!document.getElementById('answer').hidden")
    assert page.service.requests[0].text == "skin rash; hiccups"
    assert page.text(".bars .name") == fake_service.DISEASES[-1]
    assert page.value("document.querySelectorAll('#result > .bars li').length") == 12
    assert "Abstained" in page.text("#result")
    page.is_clean()


def test_a_question_is_sent_with_its_abstract_as_in_training(page: Served) -> None:
    page.open("pubmedqa@2")
    page.type("#field-contexts", "We studied 40 patients.")
    page.type("#field-question", "Does it help?")
    page.enter()
    page.until("!document.getElementById('answer').hidden")
    assert page.service.requests[0].text == "We studied 40 patients.\n\nQuestion: Does it help?"
    assert page.text(".verdict") == "yes"
    page.is_clean()


def test_mentions_are_marked_in_place_after_any_characters(page: Served) -> None:
    page.open("diseases@1", width=360)
    page.type("#field-text", "😀 <b>Aspirin</b> or aspirin in lung cancer and asthma 𝛂")
    page.value("document.getElementById('send').click()")
    page.until("!document.getElementById('answer').hidden")
    assert page.value(
        "[...document.querySelectorAll('mark')].map(held => held.firstChild.data)"
    ) == [
        "aspirin",
        "lung cancer",
        "asthma",
    ]
    assert page.value("[...document.querySelectorAll('mark')].map(held => held.className)") == [
        "k0",
        "k1",
        "k1",
    ]
    assert (
        page.text(".read")
        == "😀 <b>Aspirin</b> or aspirindrug in lung cancerdisease and asthmadisease 𝛂"
    )
    assert page.text(".verdict") == "3 mentions"
    assert page.text("#result tbody tr") == "aspirindrug90.0 %"
    page.is_clean()


def test_cited_sentences_are_marked_in_texts_and_messages(page: Served) -> None:
    text = "😀 It was <b>asthma</b>. She is well. It was lung cancer."
    page.open("cancer@best", width=360)
    page.type("#field-text", text)
    page.value("document.getElementById('citations').click()")
    page.value("document.getElementById('send').click()")
    page.until("!document.getElementById('answer').hidden")
    marks = "[...document.querySelectorAll('mark')].map(one => one.textContent)"
    assert page.value(marks) == ["😀 It was <b>asthma</b>.1", "It was lung cancer.2"]
    assert "Without them its probability falls by 25.0 points" in page.text("#result")
    assert "with them alone it rises by 1.0 points" in page.text("#result")
    page.value("document.getElementById('send-questions').click()")
    page.until("document.querySelectorAll('.decision mark').length === 2")
    page.is_clean()
    page.open("adviser@best", width=360)
    page.type("#message", text)
    page.value("document.getElementById('chat-citations').click()")
    page.enter()
    page.until("document.querySelectorAll('.turn.user mark').length === 2")
    assert page.service.talks[0].citations
    assert "Abstained: do not rely on this answer. Confidence 41.0 %." in page.text("#transcript")
    page.is_clean()
    page.open("diseases@1")
    assert page.value("document.getElementById('citations-field').hidden")


def test_the_words_behind_an_answer_are_marked_when_asked_why(page: Served) -> None:
    text = "😀 <b>carcinoma</b> but not in situ"
    page.open("cancer@best", width=360)
    page.type("#field-text", text)
    page.value("document.getElementById('send').click()")
    page.until("document.querySelector('.why button') !== null")
    assert page.text(".why button") == "Why?"
    page.tab.page.focus(".why button")
    page.enter()
    page.until("document.querySelector('.why mark') !== null")
    marks = "[...document.querySelectorAll('.why mark')].map(one => one.textContent)"
    assert page.value(marks) == ["<b>carcinoma</b>for", "butfor", "notagainst", "infor", "situfor"]
    assert page.value("[...document.querySelectorAll('.why mark')].map(one => one.className)") == [
        "k0",
        "k0",
        "k1",
        "k0",
        "k0",
    ]
    assert "completeness error 0.4 %" in page.text(".why")
    is_open = "document.querySelector('.why button').getAttribute('aria-expanded')"
    assert page.value(is_open) == "true"
    page.enter()  # the button still has the focus
    assert page.value(is_open) == "false"
    assert page.value("document.querySelector('.why div').hidden")
    assert len(page.service.explanations) == 1
    assert page.service.explanations[0].label == "cancer"
    page.is_clean()
    page.open("symptoms@best")
    assert not page.value("state.card.has_explanations")


def test_a_busy_explainer_is_a_sentence_and_the_button_stays(page: Served) -> None:
    page.open("cancer@best")
    page.type("#field-text", "carcinoma")
    page.value("document.getElementById('send').click()")
    page.until("document.querySelector('.why button') !== null")
    page.service.refusal = Refusal(429, "overloaded", "another text is being explained", 1)
    page.value("document.querySelector('.why button').click()")
    page.until("!document.getElementById('problem').hidden")
    assert page.text("#problem") == "Another text is being explained. Retry after 1 second."
    page.service.refusal = None
    page.value("document.querySelector('.why button').click()")
    page.until("document.querySelector('.why mark') !== null")
    assert page.text("#problem") == ""


def test_typed_questions_are_shown_ready_and_answered_one_by_one(page: Served) -> None:
    page.open("findings@best", width=360)
    assert page.value("document.getElementById('typed').hidden") is False
    page.type("#field-text", "A child with fever <b>today</b>")
    page.value("document.querySelector('#typed summary').click()")
    page.value("document.getElementById('send-questions').click()")
    page.until("!document.getElementById('answer').hidden")
    assert page.value(
        "[...document.querySelectorAll('.decision')].map(one => one.textContent)"
    ) == [
        "asthmaNoConfidence 90.0 %Yes10.0 %No90.0 %Why?",
        "feverYesConfidence 90.0 %Yes90.0 %No10.0 %Why?",
    ]
    assert page.service.inquiries[0].text == "A child with fever <b>today</b>"
    page.is_clean()


def test_an_abstained_question_and_one_that_the_release_does_not_answer_are_sentences(
    page: Served,
) -> None:
    page.open("cancer@best")
    page.type("#field-text", "An unclear text")
    page.value("document.querySelector('#typed summary').click()")
    page.value("document.getElementById('send-questions').click()")
    page.until("!document.getElementById('answer').hidden")
    assert (
        page.text(".decision .warn")
        == "Abstained. Confidence 66.7 %, below the threshold of 60.0 %."
    )
    page.value(
        "document.getElementById('questions').value = "
        "JSON.stringify([{type: 'predicate', instructions: 'Is it urgent?'}]);"
        "document.getElementById('send-questions').click()"
    )
    page.until("!document.getElementById('problem').hidden")
    assert "this release does not answer it; it answers choice" in str(page.text("#problem"))
    page.value(
        "document.getElementById('questions').value = '{';"
        "document.getElementById('send-questions').click()"
    )
    page.until("document.getElementById('problem').textContent.includes('not JSON')")


def test_a_release_of_questions_alone_is_asked_them_by_the_form(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = fake_service.CARDS["findings@best"].model_copy(update={"path": "/v1/decisions"})
    monkeypatch.setitem(fake_service.CARDS, "findings@best", card)
    page.open("findings@best")
    page.type("#field-text", "A child with asthma")
    page.value("document.getElementById('send').click()")
    page.until("!document.getElementById('answer').hidden")
    assert page.text("#ask-title") == "Ask about a text"
    assert page.value("document.getElementById('typed').open")
    assert page.text(".decision .verdict") == "Yes"
    page.is_clean()


def test_a_release_without_questions_offers_none(page: Served) -> None:
    page.open("diseases@1")
    assert page.value("document.getElementById('typed').hidden")


def test_a_conversation_streams_as_text_goes_on_and_stops(page: Served) -> None:
    page.open("adviser@best", width=360)
    page.type("#message", "What is asthma?")
    page.enter()
    page.until("document.querySelector('.turn.assistant')?.textContent.includes('Asthma')")
    page.until("document.getElementById('stop').hidden")
    assert (
        page.text(".turn.assistant p")
        == "".join(fake_service.WORDS) + "\n\n" + fake_service.WARNING
    )
    assert page.value("document.querySelectorAll('#transcript img').length") == 0
    page.type("#message", "And then?")
    page.enter()
    page.until(
        "document.querySelectorAll('.turn.assistant').length === 2 && "
        "document.getElementById('stop').hidden"
    )
    assert [message.role for message in page.service.talks[1].messages] == [
        "user",
        "assistant",
        "user",
    ]
    page.service.pause_s = 5
    page.type("#message", "More")
    page.enter()
    page.until("!document.getElementById('stop').hidden")
    page.value("document.getElementById('stop').click()")
    page.until("document.getElementById('chat-status').textContent === 'Stopped.'")
    assert page.value("document.getElementById('message').value") == "More"
    page.is_clean()


def test_the_card_shows_figures_labels_and_origin(page: Served) -> None:
    page.open("adviser@best")
    assert page.text("#system") == "You answer carefully."
    assert "f1_macro0.91230.9011" in page.text("#figures tbody")
    assert "no commit known" in page.text("#origin")
    page.value(
        "const select = document.getElementById('release'); select.value = 'cancer@best'; "
        "select.dispatchEvent(new Event('change'))"
    )
    assert page.text("#label-names") == "cancer, no cancer"
    assert page.value("document.getElementById('prompt').hidden")
    page.is_clean()


def test_every_control_is_reached_by_tab_and_has_a_name(page: Served) -> None:
    page.open("cancer@best")
    page.value("document.body.focus()")
    stops = [page.tab_key() for _ in range(7)]
    assert stops[0] == "Skip to the form"
    assert stops[1:6] == ["release", "field-text", "citations", "send", "clear"]
    num_without_name = (
        "[...document.querySelectorAll('input,select,textarea,button')].filter(held => "
        "!held.labels?.length && !held.textContent.trim()).length"
    )
    assert page.value(num_without_name) == 0


def test_a_refusal_is_a_sentence_and_the_next_answer_takes_it_away(page: Served) -> None:
    page.open("cancer@best")
    page.service.refusal = Refusal(
        429, "overloaded", "too many texts are waiting; try again later", 3
    )
    page.type("#field-text", "tumour")
    page.value("document.getElementById('send').click()")
    page.until("!document.getElementById('problem').hidden")
    assert (
        page.text("#problem")
        == "Too many texts are waiting; try again later. Retry after 3 seconds."
    )
    page.service.refusal = None
    page.value("document.getElementById('send').click()")
    page.until(
        "document.getElementById('problem').hidden && !document.getElementById('answer').hidden"
    )


def test_requests_to_a_server_with_tokens_carry_the_token_that_the_tab_keeps(
    chromium: Browser,
) -> None:
    service = fake_service.Service()
    with fake_service.running(fake_service.api(service, frozenset({auth.digest("right")}))) as url:
        page = Served(chromium, service, url)
        page.tab = open_tab(chromium, url, width=360)
        page.until("!document.getElementById('access').hidden")
        page.type("#token", "wrong")
        page.enter()
        page.until(
            "document.getElementById('problem').textContent === 'This token is not valid here.'"
        )
        page.type("#token", "right")
        page.enter()
        page.until("!document.getElementById('card').hidden")
        assert page.value("document.getElementById('access').hidden")
        assert page.value("sessionStorage.length + localStorage.length") == 1
        page.tab.page.reload()
        page.until("document.getElementById('card') && !document.getElementById('card').hidden")
