"""Sections of a configuration: frozen, closed to unknown keys, and wrong input answered by where,
what and what is allowed."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, core_schema

from medray import plugins
from medray.errors import ArtifactError, ConfigError, suggest
from medray.errors.redaction import redact

Location = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)
_MAX_MISTAKES = 20  # mistakes of a section
_KEY = "<key>"  # in a message: the whole dotted name, which only the outermost section knows
_NUMBERS = (int, float, int | None, float | None, int | tuple[int, int])


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    # Keys that users of other tools type by habit, and what to write instead.
    FAMILIAR: ClassVar[Mapping[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _half_a_pair_is_no_character(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    "holds half of a surrogate pair, which is not a character; replace it"
                ) from None
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes as true, and pydantic would read true as 1."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation in _NUMBERS
        ):
            raise ValueError(f"must be a number, found {value}")
        return value


class PluginOptions(Section):
    """Options of one file behind a seam, which `name` names."""

    # Equal for every base model of a study: otherwise their figures could not be compared.
    STUDY_WIDE: ClassVar[tuple[str, ...]] = ("name",)
    name: str


class Plugin:
    """Annotation of a field whose class is chosen by its `name` among the files of a seam."""

    def __init__(self, seam: str) -> None:
        self.seam = seam

    def _parse(self, value: Any) -> PluginOptions:
        if isinstance(value, PluginOptions):
            return value
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            names = ", ".join(plugins.names(self.seam))
            raise PydanticCustomError(
                "plugin",
                "must be a mapping with a name",
                {"problems": [((), f"needs a `name`, one of: {names}")]},
            )
        try:
            options = plugins.find(self.seam, value["name"]).Options
        except ConfigError as err:
            raise PydanticCustomError(
                "plugin", "unknown name", {"problems": [(("name",), str(err))]}
            ) from None
        try:
            settings: PluginOptions = options.model_validate(value)
        except ValidationError as err:
            raise PydanticCustomError(
                "plugin", "wrong options", {"problems": _problems(err, options)}
            ) from None
        return settings

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value: value.model_dump(mode="json")
        )
        return core_schema.no_info_plain_validator_function(self._parse, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        # Through the handler, so that models nested in the options land in the one $defs that the
        # references point to.
        options = (plugins.find(self.seam, name).Options for name in plugins.names(self.seam))
        return {"oneOf": [handler(option.__pydantic_core_schema__) for option in options]}


def validate(model: type[Model], raw: dict[str, Any], *, where: str) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        problems = [
            (".".join(map(str, loc)) or "top level", message)
            for loc, message in _problems(err, model)
        ]
        lines = [f"{key}: {message.replace(_KEY, key)}" for key, message in problems]
        raise ConfigError(
            f"{where}: " + "\n".join([lines[0], *(f"  {line}" for line in lines[1:])])
        ) from None


def parse(model: type[Model], raw: bytes, *, where: str, version: int | None = None) -> Model:
    """Parse a stored file as its model. Any mistake in its bytes is one sentence that names the
    file."""
    try:
        content = json.loads(raw)
        if (
            version is not None
            and (
                stored_version := content.get("schema_version")
                if isinstance(content, dict)
                else None
            )
            != version
        ):
            raise ArtifactError(
                f"{where}: schema version {str(stored_version)[:40]} was written by another "
                f"medray; this one reads {version}"
            )
        return model.model_validate(content)
    except ValidationError as err:
        first = err.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'top level'}: {first['msg']}"
    except RecursionError:
        reason = "not valid JSON: it is too deep"
    except ValueError as err:  # of JSON, of its encoding, or of a number with thousands of digits
        reason = f"not valid JSON: {str(err).splitlines()[0]}"
    raise ArtifactError(
        f"{where}: cannot be read: {reason[:200]}; `medray verify --repair` says what mends it"
    )


def _problems(error: ValidationError, model: type[BaseModel]) -> list[tuple[Location, str]]:
    problems: list[tuple[Location, str]] = []
    items = error.errors()
    for item in items[:_MAX_MISTAKES]:
        # pydantic puts the tried member of a union into the path, such as dict[str,float] or
        # TieConfig; no user wrote that.
        loc: Location = tuple(
            part
            for part in item["loc"]
            if not (isinstance(part, str) and ("[" in part or part.endswith("Config")))
        )
        match item["type"]:
            case "plugin":
                problems += [
                    ((*loc, *inner), message) for inner, message in item["ctx"]["problems"]
                ]
            case "extra_forbidden":
                problems.append((loc, f"unknown key; {_advice(model, loc)}"))
            case "model_type" if isinstance(item["input"], str) and (
                advice := _familiar(model, loc)
            ):
                problems.append((loc, f"is a section of settings; write {advice}"))
            case "missing":
                problems.append((loc, "is required and was not given"))
            case "value_error":
                problems.append((loc, str(item["ctx"]["error"])))
            case "string_type" if isinstance(item["input"], bool):
                problems.append(
                    (
                        loc,
                        (
                            f"must be text, found {item['input']}; YAML reads yes, no, on and off "
                            "as true and false: put it in quotes"
                        ),
                    )
                )
            case "string_type" if isinstance(item["input"], int | float):
                example = f'"{redact(str(item["input"]))}"'
                problems.append(
                    (
                        loc,
                        (
                            f"must be text, found a number; put it in quotes: {example}, in a "
                            f"shell '{_KEY}={example}'"
                        ),
                    )
                )
            case _:
                problems.append(
                    (
                        loc,
                        (
                            f"{item['msg'][0].lower()}{item['msg'][1:]}, found "
                            f"{redact(repr(item['input'])):.80}"
                        ),
                    )
                )
    if more := len(items[_MAX_MISTAKES:]):
        problems.append(((), f"has {more} mistakes more"))
    return problems


def _advice(model: type[BaseModel], loc: Location) -> str:
    """Return what to write instead of an unknown key.

    It is medray's name of a setting that other tools call so, the section that has the key, or the
    keys of this section."""
    key, here = str(loc[-1]), _fields_at(model, loc[:-1])
    if advice := _familiar(model, loc):
        return f"write {advice}"
    sections = [
        f"{section}.{key}" for section in model.model_fields if key in _fields_at(model, (section,))
    ]
    if len(loc) == 1 and len(sections) == 1:
        return f"write {sections[0]}"
    return suggest(key, here)


def _familiar(model: type[BaseModel], loc: Location) -> str | None:
    """Return what to write for a key that users of other tools type by habit, or None."""
    if not issubclass(model, Section):
        return None
    words = [part for part in loc if isinstance(part, str)]
    return model.FAMILIAR.get(".".join(words)) or model.FAMILIAR.get(words[-1] if words else "")


def _fields_at(model: type[BaseModel], loc: Location) -> list[str]:
    at: Any = model
    for part in loc:
        if isinstance(part, str) and isinstance(at, type) and issubclass(at, BaseModel):
            at = at.model_fields[part].annotation  # of a list or a union, the section in it
            at = next(
                (
                    member
                    for member in get_args(at)
                    if isinstance(member, type) and issubclass(member, BaseModel)
                ),
                at,
            )
    if not (isinstance(at, type) and issubclass(at, BaseModel)):
        return []
    return [field.alias or name for name, field in at.model_fields.items()]
