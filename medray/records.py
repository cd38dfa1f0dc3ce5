"""What is stored of a release: the record of a version, and the moves of an alias. Written once, never changed."""

from typing import Literal

from medray.schema import Section


class TestRecord(Section):
    """Figures on test rows, and how often these rows' labels were opened until then."""

    __test__ = False  # not a test class

    metrics: dict[str, float]
    num_rows: int
    num_openings: int


class ReleaseRecord(Section):
    """What is stored for a version, once and for all."""

    schema_version: Literal[1] = 1
    name: str
    version: int
    content_id: str  # sha256 of the checkpoint's manifest, which holds the hash of every other file
    created: str
    test: TestRecord | None = None
    notes: str = ""


class Move(Section):
    """An alias was pointed at a version."""

    version: int
    time: str
    by: str
