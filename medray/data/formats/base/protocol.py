"""The protocol of a format, the options that formats share, and functions that read, check and
write data in any format."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator

from medray import plugins
from medray.config.schema import PluginOptions, Section
from medray.data.remote import is_remote, localize
from medray.errors import ConfigError, DataError
from medray.text.template import Template, check_no_answer
from medray.types import Example


class Format(Protocol):
    """What each module of medray/data/formats defines; a function `stamp` is optional."""

    Options: type[PluginOptions]

    def read(self, options: Any) -> Iterator[Example]: ...

    def write(self, examples: Iterable[Example], options: Any) -> None: ...

    def check(self, options: Any) -> list[str]:
        """Return what is wrong with the options and the first row, one sentence per mistake."""
        ...

    # Formats with the option `encoding` take it as a second argument.
    sniff: Callable[..., "Layout | None"]
    """Return what a file or folder holds, or None if it does not have this layout."""


def find_format(name: str) -> Format:
    module: Any = plugins.find("data.formats", name)
    format: Format = module
    return format


def read(options: PluginOptions) -> Iterator[Example]:
    """Yield the examples of a data set, which is first copied to this machine if it is remote."""
    yield from find_format(options.name).read(localize(options))


def is_left_out(example: Example, options: PluginOptions) -> bool:
    """Return whether a row has no label and drop_unlabelled leaves such rows out."""
    return not example.labels and getattr(options, "drop_unlabelled", False)


def check(options: PluginOptions) -> list[str]:
    """Return what is wrong with the options and the first row, one sentence per mistake."""
    try:
        return find_format(options.name).check(localize(options))
    except (ConfigError, DataError) as err:  # the remote data cannot be copied
        return [f"data.format: {str(err).removeprefix('data.format: ')}"]


def write(examples: Sequence[Example], options: PluginOptions) -> None:
    """Write examples; raise DataError if the format would lose a part of them."""
    example = next((example for example in examples if example.mentions), None)
    if example and not getattr(options, "HOLDS_MENTIONS", False):
        raise DataError(
            f"{example.where or example.id}: has mentions, which {options.name} does not hold; "
            "write spans or pubtator"
        )
    find_format(options.name).write(examples, options)


@dataclass(frozen=True)
class Layout:
    """The contents of a file or folder, before the meaning of its columns is known."""

    options: dict[str, Any]  # those of data.format that the layout decides
    columns: dict[str, list[Any]]  # the values of every row, None or empty if a row has none
    notes: tuple[str, ...] = ()  # sentences about what the user should check
    data: dict[str, Any] = field(default_factory=dict)  # options of `data` besides its format


class FormField(Section):
    """A field of the text, with its name in the data."""

    name: str
    kind: Literal["text", "line", "terms"] = "text"  # paragraphs, one line, or terms


class Form(Section):
    """A form in which a client of a release can write a text like those of the training data."""

    # Each part is a literal and the name of the field after it.
    parts: tuple[tuple[str, str | None], ...] = (("", "text"),)
    fields: tuple[FormField, ...] = (FormField(name="text"),)
    separator: str = "; "  # between terms


class FormatOptions(PluginOptions):
    FILES: ClassVar[tuple[str, ...]] = ("path",)  # options that name a file, a folder or a URI
    HOLDS_MENTIONS: ClassVar[bool] = False
    path: str = Field(
        description=(
            "file or folder, from the current directory, or its URI: s3://, gs://, https://; a "
            "secret in it by reference: ${env:NAME}, ${file:PATH}"
        )
    )
    labels: tuple[str, ...] | None = Field(
        None, description="the allowed labels; any other label is an error"
    )

    @property
    def is_remote(self) -> bool:
        """Whether the data is remote, so that every node can read it without this machine."""
        return is_remote(self.path)

    def form(self) -> Form:
        return Form()

    def terms(self, example: Example) -> tuple[str, ...]:
        """Return the terms of the data set's vocabulary that an example's text holds."""
        return ()


class ColumnOptions(FormatOptions):
    """Options for the text, in formats whose columns have names."""

    text: tuple[str, ...] = Field(
        ("text",), min_length=1, description="columns that make the text, joined by a blank"
    )
    template: str | None = Field(
        None,
        description=(
            "instead of `text`: the text, with names of columns in braces: 'Question: {question}'"
        ),
    )
    drop_unlabelled: bool = Field(
        False, description="leave out rows without a label and count them; else they are an error"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        # A stored study names defaults too, so the default of `text` is not a second source.
        if self.template is not None and self.text != type(self).model_fields["text"].default:
            raise ValueError(
                f"text {', '.join(self.text)} and template {self.template!r}: give only one of them"
            )
        if self.template is not None and not Template.parse(self.template).names:
            raise ValueError(
                f"template {self.template!r}: names no column, so all texts would be the same"
            )
        check_no_answer(self.text_columns)
        if self.drop_unlabelled and getattr(self, "label", "") is None:
            raise ValueError(
                "drop_unlabelled true and label null: every row would be left out; give only one "
                "of them"
            )
        return self

    def is_dropped(self, value: Any) -> bool:
        """Return whether the label column is empty in a row, and the row is left out for it."""
        return self.drop_unlabelled and (
            value is None or value == [] or (isinstance(value, str) and not value.strip())
        )

    def form(self) -> Form:
        if self.template is None:
            return Form()
        return Form(
            parts=Template.parse(self.template).parts,
            fields=tuple(FormField(name=name) for name in self.text_columns),
        )

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.text if self.template is None else Template.parse(self.template).names

    def text_of(self, values: Mapping[str, str]) -> str:
        """Return the text of a row, from stripped values."""
        if self.template is None:
            return " ".join(filter(None, (values[column] for column in self.text)))
        return Template.parse(self.template).render(values) if any(values.values()) else ""

    def output_column(self) -> str:
        """Return the column to which a text is written."""
        if self.template is not None:
            raise DataError(
                f"{self.path}: a text cannot be split into the columns of {self.template!r}; give "
                "text=[COLUMN] to write"
            )
        return self.text[-1]
