"""A data set of the Hugging Face Hub, or a folder that `datasets` reads, by
`datasets.load_dataset`; from there on as `tables`."""

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
        description="the Hub's name of a data set (owner/name), or a folder that datasets reads"
    )
    config: str | None = Field(
        None, description="which of a data set's configurations, where it has several"
    )
    splits: tuple[str, ...] | None = Field(
        None, min_length=1, description="which of its splits; all where not given"
    )
    revision: str | None = Field(
        None, description="commit, tag or branch of the Hub's repository; a commit stays what it is"
    )
    label: str | None = Field(
        "label", description="column of the label, or of a list of labels; null for unlabelled rows"
    )
    id: str | None = Field(
        None, description="column of the row's id; the row's number where not given"
    )
    split: str | None = Field(
        None,
        description=(
            "column that says train, validation or test; where not given, the names of the splits "
            "may"
        ),
    )

    @property
    def lies_elsewhere(self) -> bool:
        return not Path(self.path).exists()


def read(options: Options) -> Iterator[Example]:
    loaded = _load(options)
    is_sided = all(name.lower() in GIVEN_NAMES for name in loaded)
    columns = options.model_dump(exclude={"config", "splits", "revision"}, exclude_unset=True) | {
        "name": "tables"
    }
    number = 0
    for name, part in loaded.items():
        side = name if is_sided else None
        used = tables.with_split(tables.Options.model_validate(columns), side)
        found = tables.rows(
            part.features.arrow_schema,
            part.with_format("arrow").iter(tables.BATCH),
            f"{options.path}, {name}",
        )
        for place, row in enumerate(found, 1):
            number += 1
            yield tables.example(row, number, used, side, f"{options.path}, {name}:{place}")


def write(examples: Iterable[Example], options: Options) -> None:
    raise ConfigError(
        f"{options.path}: medray writes no data sets of the Hub; write `tables`, which datasets "
        "reads"
    )


def check(options: Options) -> list[str]:
    return first_problem(read(options), f"{options.path}: has no rows")


def sniff(path: Path) -> Layout | None:
    return None  # what lies here, other formats read without a copy in the cache of datasets


def stamp(options: Options) -> tuple[int, list[str]]:
    """Bytes of its tables, and what `datasets` calls them: their builder, files and revision."""
    loaded = _load(options)
    return sum(part.data.nbytes for part in loaded.values()), [
        f"{name} {part._fingerprint}" for name, part in loaded.items()
    ]


def _load(options: Options) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "data.format: hub needs datasets, which is not installed; pip install 'medray[train]'"
        ) from None
    try:
        loaded = datasets.load_dataset(options.path, options.config, revision=options.revision)
    # it raises what its readers and the network raise, ValueError and OSError among others
    except Exception as err:
        raise DataError(
            f"{options.path}: datasets cannot load it: {redact(' '.join(str(err).split()))[:500]}"
        ) from None
    for name in options.splits or ():
        if name not in loaded:
            raise DataError(
                f"{options.path}: data.format.splits names {name!r}; {suggest(name, list(loaded))}"
            )
    return {name: loaded[name] for name in options.splits or loaded}
