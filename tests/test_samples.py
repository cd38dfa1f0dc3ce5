import importlib.util
from pathlib import Path

from medray import plugins
from medray.data.formats.spans import Options
from medray.storage import files

SAMPLES = Path(__file__).parent.parent / "jobs" / "samples"


def test_the_samples_are_what_their_generator_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", SAMPLES / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    committed = files.hash_folder(
        SAMPLES, leave_out=["README.md", "generate.py", "mentions.jsonl", "prompts.txt"]
    )
    assert len(committed) == 241
    assert {
        name: value for name, value in committed.items() if "__pycache__" not in name
    } == files.hash_folder(tmp_path)


def test_the_annotated_sample_is_varied_and_its_mentions_stand_where_they_say() -> None:
    rows = list(
        plugins.find("data.formats", "spans").read(
            Options(name="spans", path=str(SAMPLES / "mentions.jsonl"), id="id")
        )
    )
    mentions = [mention for row in rows for mention in row.mentions]
    assert len(rows) == 84
    assert len(mentions) == 210
    assert sum(not row.mentions for row in rows) == 13
    assert len({mention.text.lower() for mention in mentions}) == 200
    assert any(mention.start == 0 for mention in mentions)
    assert any(mention.end == len(row.text) for row in rows for mention in row.mentions)
    for row in rows:  # a name that is annotated once is annotated wherever it stands in its text
        for name in {mention.text for mention in row.mentions}:
            found = [mention for mention in row.mentions if name in mention.text]
            assert row.text.count(name) == sum(mention.text.count(name) for mention in found), (
                row.id,
                name,
            )
