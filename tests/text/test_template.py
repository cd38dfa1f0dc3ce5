import json
from pathlib import Path

import pytest

from medray import plugins
from medray.config.load import plugin_options
from medray.errors import DataError
from medray.text.template import Template


def test_a_template_puts_values_in_their_places_and_interprets_nothing_in_them() -> None:
    template = Template.parse("Q: {a b}\n{{{c}}} {a b}")
    assert template.names == ("a b", "c")
    assert template.render({"a b": "{c}", "c": "x"}) == "Q: {c}\n{x} {c}"
    assert Template.parse("before {{ {text} after").around("text") == ("before { ", " after")


@pytest.mark.parametrize("wrong", ["{}", "{a!r}", "{a:>3}", "{a", "a}"])
def test_only_plain_places_are_taken(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"place|brace|'}'|'{'"):
        Template.parse(wrong)


def test_any_delimited_or_jsonl_file_makes_its_text_by_a_template(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,c,label\nIs it? , so,yes\n,,no\n")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"q": "Is it? ", "c": " so", "label": "yes"}])
    )
    for name in ("csv", "jsonl"):
        format_options = plugin_options(
            "data.formats",
            f"name={'delimited' if name == 'csv' else name},path={tmp_path}/a.{name},"
            "template='C={c} Q={q}'",
        )
        rows = list(plugins.find("data.formats", format_options.name).read(format_options))
        assert (rows[0].text, rows[0].labels, rows[0].metadata) == ("C=so Q=Is it?", ("yes",), {})
        assert [row.text for row in rows[1:]] == [""] * (
            name == "csv"
        )  # nothing to fill in is an empty text, which is set aside
        with pytest.raises(DataError, match="cannot be split"):
            plugins.find("data.formats", format_options.name).write(
                rows, format_options.model_copy(update={"path": str(tmp_path / "b")})
            )


def test_text_and_template_exclude_each_other_and_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give only one of them"):
        plugin_options("data.formats", "name=jsonl,path=a,text=[b],template='{b}'")
    with pytest.raises(ValueError, match="names no column"):
        plugin_options("data.formats", "name=jsonl,path=a,template=b")
    (tmp_path / "a.csv").write_text("q,label\na,b\n")
    format_options = plugin_options(
        "data.formats", f"name=delimited,path={tmp_path}/a.csv,template='{{qestion}}'"
    )
    (sentence,) = plugins.find("data.formats", "delimited").check(format_options)
    assert "names 'qestion'; allowed: label, q" in sentence
