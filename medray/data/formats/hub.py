"""A data set of the Hugging Face Hub, or a folder, read by `datasets.load_dataset` and then like
`tables`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medray.data.formats import tables
from medray.data.formats.base.parsing import first_problem
from medray.data.formats.base.protocol import ColumnOptions, Layout
from medray.data.split import GIVEN_NAMES
from medray.errors import ConfigError, DataError, suggest
from medray.errors.redaction import redact
from medray.types import Example


class Options(ColumnOptions):
    name: Literal["hub"]
    path: str = Field(
        description="name of a data set on the Hub (owner/name), or a folder that datasets reads"
    )
    config: str | None = Field(None, description="the data set's configuration, if it has several")
    splits: tuple[str, ...] | None = Field(
        None, min_length=1, description="the splits to read; without it, all"
    )
    revision: str | None = Field(
        None, description="commit, tag or branch of the Hub's repository; only a commit is fixed"
    )
    label: str | None = Field(
        "label", description="column of the label, or of a list of labels; null for unlabelled rows"
    )
    id: str | None = Field(None, description="column of the row's id; without it, the row's number")
    split: str | None = Field(
        None,
        description=(
            "column that says train, validation or test; without it, the names of the splits count"
        ),
    )

    @property
    def is_remote(self) -> bool:
        return not Path(self.path).exists()


def read(options: Options) -> Iterator[Example]:
    splits = _load(options)
    is_sided = all(name.lower() in GIVEN_NAMES for name in splits)
    columns = options.model_dump(exclude={"config", "splits", "revision"}, exclude_unset=True) | {
        "name": "tables"
    }
    number = 0
    for name, part in splits.items():
        side = name if is_sided else None
        own_options = tables.with_split(tables.Options.model_validate(columns), side)
        rows = tables.rows(
            part.features.arrow_schema,
            part.with_format("arrow").iter(tables.BATCH),
            f"{options.path}, {name}",
        )
        for place, row in enumerate(rows, 1):
            number += 1
            yield tables.example(row, number, own_options, side, f"{options.path}, {name}:{place}")


def write(examples: Iterable[Example], options: Options) -> None:
    raise ConfigError(
        f"{options.path}: medray cannot write to the Hub; write `tables`, which datasets reads"
    )


def check(options: Options) -> list[str]:
    return first_problem(read(options), f"{options.path}: has no rows")


def sniff(path: Path) -> Layout | None:
    return None  # other formats read local files without a copy in the cache of datasets


def stamp(options: Options) -> tuple[int, list[str]]:
    """Return the bytes of the tables and their fingerprints, which cover builder, files and
    revision."""
    splits = _load(options)
    return sum(part.data.nbytes for part in splits.values()), [
        f"{name} {part._fingerprint}" for name, part in splits.items()
    ]


def _load(options: Options) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "data.format: hub needs datasets, which is not installed; pip install 'medray[train]'"
        ) from None
    try:
        splits = datasets.load_dataset(options.path, options.config, revision=options.revision)
    # Readers and the network raise many kinds, such as ValueError and OSError.
    except Exception as err:
        raise DataError(
            f"{options.path}: datasets cannot load it: {redact(' '.join(str(err).split()))[:500]}"
        ) from None
    for name in options.splits or ():
        if name not in splits:
            raise DataError(
                f"{options.path}: data.format.splits names {name!r}; {suggest(name, list(splits))}"
            )
    return {name: splits[name] for name in options.splits or splits}
