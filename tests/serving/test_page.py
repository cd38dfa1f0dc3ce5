"""The page at `/` and what it learns of the releases, without a browser."""

import re

import pytest
from starlette.testclient import TestClient
from support import fake_service

from medray.reports import svg
from medray.serving import auth
from medray.serving.page import home
from medray.serving.refusals import Refusal

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def http(
    service: fake_service.Service | None = None, digests: frozenset[str] | None = None
) -> TestClient:
    return TestClient(
        fake_service.api(service or fake_service.Service(), digests), raise_server_exceptions=False
    )


def test_a_browser_gets_the_page_and_other_clients_json() -> None:
    client = http()
    response = client.get("/", headers=BROWSER)
    assert response.headers["content-type"].startswith("text/html")
    assert response.text.startswith("<!doctype html>")
    for accept in ("*/*", "application/json"):
        answer = client.get("/", headers={"accept": accept})
        assert answer.json()["models"] == list(fake_service.CARDS)
        assert answer.headers["vary"] == response.headers["vary"] == "accept"


def test_the_page_is_shown_without_a_token_and_nothing_else_is() -> None:
    client = http(digests=frozenset({auth.digest("right")}))
    assert client.get("/", headers=BROWSER).status_code == 200
    assert not any(name in client.get("/", headers=BROWSER).text for name in fake_service.CARDS)
    assert client.get("/").status_code == 401
    assert client.get("/v1/releases", headers=BROWSER).status_code == 401
    assert client.get("/v1/releases", headers={"authorization": "Bearer right"}).status_code == 200


def test_the_policy_lets_in_exactly_the_sheet_and_the_script_of_the_page() -> None:
    policy = home.headers()["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name, tag in (("style", "style"), ("script", "script")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", home.html(), re.DOTALL)
        digest = home.digest(content)
        assert f"{name}-src {digest}" in policy
    assert "/*sheet*/" not in home.html()
    assert "/*script*/" not in home.html()


def test_the_page_names_no_other_host_and_makes_html_of_no_text() -> None:
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", home.html())
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        'setAttribute("style',
    ):
        assert way not in home.html()


@pytest.mark.parametrize("colours", [svg.LIGHT, svg.DARK])
def test_the_page_has_the_colours_of_the_reports(colours: dict[str, str]) -> None:
    for name, value in colours.items():
        assert f"--{name}:{value}" in home.html()


def test_releases_tell_task_path_form_labels_and_figures() -> None:
    response = {one["id"]: one for one in http().get("/v1/releases").json()["data"]}
    assert list(response) == list(fake_service.CARDS)
    symptoms, questions = response["symptoms@best"], response["pubmedqa@2"]
    assert (symptoms["path"], symptoms["form"]["fields"], symptoms["terms"][0]) == (
        "/v1/choose",
        [{"name": "symptoms", "kind": "terms"}],
        "chills",
    )
    assert {field["name"]: field["kind"] for field in questions["form"]["fields"]} == {
        "contexts": "text",
        "question": "line",
    }
    assert questions["form"]["parts"] == [["", "contexts"], ["\n\nQuestion: ", "question"]]
    assert response["cancer@best"]["figures"][0] == {
        "metric": "f1_macro",
        "validation": 0.9123,
        "test": 0.9011,
    }


def test_a_release_that_does_not_respond_is_shown_beside_the_others() -> None:
    service = fake_service.Service()
    service.refusal = Refusal(503, "unavailable", "no replica of this release could answer")
    response = http(service).get("/v1/releases")
    assert response.status_code == 200
    assert response.json()["data"] == []
    assert [one["id"] for one in response.json()["unavailable"]] == list(fake_service.CARDS)
