"""What a user may ask for: StudyConfig, the TrialConfig it resolves to, and their sections.

A default lives in its field and nowhere else; precedence is field < YAML files, left to right < `key=value`.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, core_schema

from medray import plugins
from medray.errors import ConfigError, allowed


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginOptions(Section):
    """Options of one file behind a seam; `name` says which."""

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
            raise PydanticCustomError("plugin", "must be a mapping with a name", {"problems": [((), f"needs a `name`, one of: {names}")]})
        try:
            options = plugins.find(self.seam, value["name"]).Options
        except ConfigError as err:
            raise PydanticCustomError("plugin", "unknown name", {"problems": [(("name",), str(err))]}) from None
        try:
            parsed: PluginOptions = options.model_validate(value)
        except ValidationError as err:
            raise PydanticCustomError("plugin", "wrong options", {"problems": _problems(err, options)}) from None
        return parsed

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(self._parse, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        # Through the handler, so that models nested in the options land in the one $defs that the references point to.
        options = (plugins.find(self.seam, name).Options for name in plugins.names(self.seam))
        return {"oneOf": [handler(option.__pydantic_core_schema__) for option in options]}


class SplitConfig(Section):
    """Which rows train, which choose (validation) and which judge (test)."""

    kind: Literal["given", "stratified", "grouped", "kfold"] = "stratified"
    validation: float = Field(0.2, gt=0, lt=1, description="share of the rows; with kfold, of the rows outside the test fold")
    test: float = Field(0.2, gt=0, lt=1, description="share of the rows; with kfold, one fold")
    seed: int = 0
    group: str | None = Field(None, description="metadata column whose equal values stay on one side (kind: grouped)")
    folds: int = Field(5, ge=2)
    fold: int = Field(0, ge=0, description="the fold that is the test split (kind: kfold)")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave no rows for training")
        if (self.kind == "grouped") != (self.group is not None):
            raise ValueError(
                f"kind {self.kind!r} and group {self.group!r}: grouped needs the metadata column in `group`, other kinds take none"
            )
        if self.kind == "kfold" and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of 0 to folds - 1 = {self.folds - 1}")
        return self


class DataConfig(Section):
    format: Annotated[PluginOptions, Plugin("data.formats")]
    split: SplitConfig = SplitConfig()
    limit: int | None = Field(None, ge=2, description="at most this many training rows, the same for every base model")
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="texts whose word 5-grams overlap by this share (Jaccard) count as near duplicates"
    )


class ModelOptions(Section):
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic; auto times fp32 against bf16 on a real micro-batch"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the frozen base; LoRA has its own")
    gradient_checkpointing: bool = False


class ModelConfig(ModelOptions):
    source: str = Field(description="folder, `pkg:PACKAGE` (weights that an installed Python package ships) or a Hugging Face Hub id")
    revision: str | None = Field(None, description="Hub revision")


class BaseModelConfig(Section):
    """One base model of a study."""

    source: str = Field(description=str(ModelConfig.model_fields["source"].description))
    revision: str | None = None
    overrides: dict[str, Any] = Field({}, description="dotted trial settings for this base model alone, such as lora.r: 8")


class LoraConfig(Section):
    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead of alpha / r")
    targets: tuple[str, ...] | None = Field(None, description="names of linear layers to adapt; the family's own where not given")
    top_layers: int | None = Field(None, ge=1, description="adapt only this many layers, counted from the top")
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="type of the adapter's weights")


class TrainConfig(Section):
    strategy: str = Field("torch", description="how a step is taken: a file of medray/training/strategies")
    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    samples_per_step: int = Field(16, ge=1, description="rows per optimizer step, over all workers, exactly")
    token_budget: int = Field(4096, ge=1, description="tokens of a micro-batch, padding included; sets memory, not results")
    learning_rate: float = Field(5e-4, gt=0)
    head_learning_rate: float | None = Field(None, gt=0, description="learning_rate where not given")
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int | None = Field(None, ge=0)
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    max_grad_norm: float | None = Field(1.0, gt=0)
    patience: int | None = Field(None, ge=1, description="stop after this many evaluations without a better metric")
    evaluate_every_steps: int | None = Field(None, ge=1, description="evaluate this often instead of once an epoch")
    log_every_steps: int = Field(10, ge=1)
    state_every_steps: int | None = Field(None, ge=1, description="store the state for a resume this often, besides at every evaluation")
    keep_checkpoints: int = Field(1, ge=1, description="latest checkpoints kept, besides the best")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError(f"epochs {self.epochs} and max_steps {self.max_steps}: give exactly one of the two")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError(f"warmup_steps {self.warmup_steps} and warmup_ratio {self.warmup_ratio}: give one of the two")
        plugins.find("training.strategies", self.strategy)
        return self


class ResourcesConfig(Section):
    cpus_per_worker: int | None = Field(
        None, ge=1, description="threads a worker computes with; all that the process may use where not given"
    )


class TrialConfig(Section):
    """One configuration of one base model: everything a trial needs, and what its manifest keeps."""

    seed: int = 0
    data: DataConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    resources: ResourcesConfig = ResourcesConfig()


class StudyConfig(Section):
    """Many trials over several base models; the sections but `base_models` are every trial's defaults."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    storage_path: str = Field("runs", description="folder that the study's own folder is made in")
    seed: int = 0
    data: DataConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    base_models: tuple[BaseModelConfig, ...] = Field(min_length=1)
    model: ModelOptions = ModelOptions()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def study_dir(self) -> Path:
        return Path(self.storage_path).expanduser().resolve() / self.name

    def trial(self, base: BaseModelConfig, sampled: Mapping[str, Any] | None = None) -> TrialConfig:
        """The trial of one base model: the study's sections, the base's overrides, then what a search sampled."""
        raw = self.model_dump(mode="json", include=set(TrialConfig.model_fields))
        raw["model"] |= {"source": base.source, "revision": base.revision}
        for key, value in [*base.overrides.items(), *(sampled or {}).items()]:
            _set(raw, key, deepcopy(value), where=f"base model {base.source}")
        return _validate(TrialConfig, raw, where=f"study {self.name}, base model {base.source}")


def load(paths: Sequence[Path | str], overrides: Sequence[str] = ()) -> StudyConfig:
    """Read YAML files, later ones over earlier ones, then `key=value` settings; every mistake is named at once."""
    raw: dict[str, Any] = {}
    for path in paths:
        raw = _merge(raw, _read_yaml(Path(path)))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"{override!r} is not of the form key=value, such as train.epochs=3")
        _set(raw, key, _parse_value(override, value), where=override)
    where = ", ".join(str(path) for path in paths) or "the configuration"
    study = _validate(StudyConfig, raw, where=where)
    wrong = []
    for base in study.base_models:
        try:
            study.trial(base)
        except ConfigError as err:
            wrong.append(str(err))
    if wrong:
        raise ConfigError("\n".join(wrong))
    return study


def dump(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if key.value in {earlier.value for earlier in keys[:position]}:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read: {err}") from None
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(err).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, found {type(raw).__name__}")
    return raw


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {' '.join(str(err).split())}") from None


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(raw: dict[str, Any], dotted: str, value: Any, *, where: str) -> None:
    at: Any = raw
    *parents, last = dotted.split(".")
    for part in parents:
        if isinstance(at, list):
            at = at[_index(at, part, where)]
        else:
            if at.get(part) is None:
                at[part] = {}
            at = at[part]
        if not isinstance(at, (dict, list)):
            raise ConfigError(f"{where}: {dotted!r} goes through {part!r}, which is {at!r}, not a section")
    if isinstance(at, list):
        at[_index(at, last, where)] = value
    else:
        at[last] = value


def _index(items: list[Any], part: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"{where}: {part!r} is not a position in a list of {len(items)} (0 to {len(items) - 1})")
    return int(part)


Location = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)


def _validate(model: type[Model], raw: dict[str, Any], *, where: str) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        lines = [f"{'.'.join(map(str, loc)) or 'top level'}: {message}" for loc, message in _problems(err, model)]
        raise ConfigError(f"{where}: " + "\n".join([lines[0], *(f"  {line}" for line in lines[1:])])) from None


def _problems(error: ValidationError, model: type[BaseModel]) -> list[tuple[Location, str]]:
    found: list[tuple[Location, str]] = []
    for item in error.errors():
        # pydantic puts the tried member of a union into the path, such as dict[str,float]; no user wrote that.
        loc: Location = tuple(part for part in item["loc"] if not (isinstance(part, str) and "[" in part))
        match item["type"]:
            case "plugin":
                found += [((*loc, *inner), message) for inner, message in item["ctx"]["problems"]]
            case "extra_forbidden":
                found.append((loc, f"unknown key; {allowed(loc[-1], _fields_at(model, loc[:-1]))}"))
            case "missing":
                found.append((loc, "is required and was not given"))
            case "value_error":
                found.append((loc, str(item["ctx"]["error"])))
            case "string_type" if isinstance(item["input"], bool):
                found.append(
                    (loc, f"must be text, found {item['input']}; YAML reads yes, no, on and off as true and false: put it in quotes")
                )
            case _:
                found.append((loc, f"{item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r:.80}"))
    return found


def _fields_at(model: type[BaseModel], loc: Location) -> list[str]:
    at: Any = model
    for part in loc:
        if isinstance(part, str) and isinstance(at, type) and issubclass(at, BaseModel):
            at = at.model_fields[part].annotation
        elif isinstance(part, int):
            at = at.__args__[0]
    return list(at.model_fields) if isinstance(at, type) and issubclass(at, BaseModel) else []


def plugin_options(seam: str, text: str) -> PluginOptions:
    """Options from one line, `name=raw_abstracts,path=samples/abstracts`; a value may be a YAML list in brackets."""
    parts = re.split(r",(?![^\[]*\])", text)
    if any("=" not in part for part in parts):
        raise ConfigError(f"{text!r} is not of the form name=FORMAT,path=PATH,option=value")
    raw = {key: _parse_value(text, value) for key, _, value in (part.partition("=") for part in parts)}
    options: type[PluginOptions] = plugins.find(seam, str(raw.get("name"))).Options
    return _validate(options, raw, where=text)
