"""The client against a service of this process."""

import subprocess
import sys

from support import fake_service

from medray.client import ChoiceAnswer, Client, LabelAnswer, MentionAnswer, MentionsAnswer


def test_an_answer_is_read_as_the_service_wrote_it() -> None:
    references = {card.path: reference for reference, card in fake_service.CARDS.items()}
    with fake_service.running(fake_service.api(fake_service.Service(*fake_service.CARDS))) as url:
        client = Client(url)
        labels = client.classify(["a", "b"], model=references["/v1/classify"])
        choices = client.choose(["a"], model=references["/v1/choose"])
        mentions = client.extract(["asthma", "fever"], model=references["/v1/extract"])
    label = LabelAnswer(
        label="cancer",
        labels=("cancer",),
        confidence=0.83,
        probabilities={"cancer": 0.83, "no cancer": 0.17},
    )
    assert labels.predictions == (label, label)
    (choice,) = choices.predictions
    assert isinstance(choice, ChoiceAnswer)
    assert choice.ranked[0] == choice.label
    assert choices.disclaimer
    answers = tuple(
        MentionsAnswer(mentions=fake_service.mentions_in(text)) for text in ("asthma", "fever")
    )
    assert mentions.predictions == answers
    assert all(
        isinstance(mention, MentionAnswer)
        for answer in mentions.predictions
        for mention in answer.mentions
    )


def test_the_client_imports_the_standard_library_alone() -> None:
    heavy = "'pydantic', 'torch', 'numpy', 'ray'"
    code = f"import sys, medray.client; sys.exit(any(name in sys.modules for name in ({heavy})))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
