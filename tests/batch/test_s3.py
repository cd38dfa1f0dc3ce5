"""Input and output in a bucket; the endpoint is on loopback."""

import json

from medray.batch import inputs, rows
from medray.batch.output import BatchOutput
from medray.batch.shards import TextColumns
from medray.storage.object_store import ObjectStore


def test_a_library_in_a_bucket_is_read_and_an_output_there_is_begun_and_gone_on_with(
    uri: str,
) -> None:
    store = ObjectStore(uri)
    for name in ("one", "two"):
        store.create(
            f"rows/{name}.jsonl",
            "".join(
                json.dumps({"id": f"{name}{n}", "text": "tumour"}) + "\n" for n in range(3)
            ).encode(),
        )
    source = inputs.find(f"{uri}/rows")
    columns = inputs.columns(source, inputs.head(source), TextColumns())
    assert [row.id for shard in source.shards for row in rows.read(shard, columns, 100)] == [
        "one0",
        "one1",
        "one2",
        "two0",
        "two1",
        "two2",
    ]
    assert next(rows.read(source.shards[1], TextColumns(("text",)), 100)).id == "two.jsonl:1"
    output = BatchOutput(ObjectStore(f"{uri}/answers"), "jsonl")
    assert output.store.names("") == []
    assert output.agree("precision", "bf16") == "bf16"
    assert output.agree("precision", "fp32") == "bf16"
    assert output.store.names("") == ["_precision"]
