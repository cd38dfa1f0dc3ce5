"""Read a study from YAML files, overlays and `key=value` settings; write its settings without
secrets."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from medray import plugins
from medray.config.files import merge, parse_value, put_all, read_yaml
from medray.config.schema import PluginOptions, validate
from medray.config.study import BaseModelConfig, StudyConfig
from medray.errors import ConfigError
from medray.errors.redaction import redact_settings


def load_study(paths: Sequence[Path | str], overrides: Sequence[str] = ()) -> StudyConfig:
    """Read YAML files, later ones over earlier ones, then `key=value` settings; every mistake is
    named at once."""
    raw: dict[str, Any] = {}
    for path in paths:
        raw = merge(raw, read_yaml(Path(path)))
    settings = []
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"{override!r} is not of the form key=value, such as train.epochs=3")
        settings.append((key, parse_value(override, value), override))
    put_all(raw, settings)
    return study_of(raw, ", ".join(str(path) for path in paths) or "the configuration")


def study_of(raw: Mapping[str, Any], where: str) -> StudyConfig:
    """Return the study that settings describe; every mistake is named at once."""
    study = validate(StudyConfig, dict(raw), where=where)
    wrong = [mistake for base in study.base_models for mistake in _mistakes(study, base)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return study


def _mistakes(study: StudyConfig, base: BaseModelConfig) -> Iterator[str]:
    """Yield the mistakes in a base model's trials that the ends of each axis show."""
    try:
        study.trial(base)
    except ConfigError as err:
        yield str(err)
        return  # each axis would repeat it
    for path, axis in study.space(base).items():
        for value in axis.extremes:
            try:
                study.trial(base, {path: value})
            except ConfigError as err:
                yield f"{err} (search space {path}: {value!r})"
                break


def tracking_uri(study: StudyConfig) -> str | None:
    """Return the URI of MLflow from the study or, as for MLflow itself, from the environment."""
    return (
        study.mlflow.tracking_uri if study.mlflow else os.environ.get("MLFLOW_TRACKING_URI") or None
    )


def public_settings(config: BaseModel) -> dict[str, Any]:
    """The settings as they may be written, shown and sent: without secrets, which stay in the
    process that was given them."""
    settings: dict[str, Any] = redact_settings(config.model_dump(mode="json"))
    return settings


def dump_settings(config: BaseModel) -> str:
    return yaml.safe_dump(public_settings(config), sort_keys=False, allow_unicode=True)


def _split(text: str) -> list[str]:
    """At commas outside brackets."""
    ends, depth = [-1], 0
    for at, mark in enumerate(text):
        depth = max(0, depth + (mark == "[") - (mark == "]"))
        if mark == "," and not depth:
            ends.append(at)
    return [text[before + 1 : end] for before, end in pairwise([*ends, len(text)])]


def plugin_options(seam: str, text: str) -> PluginOptions:
    """Options from one line, `name=raw_abstracts,path=samples/abstracts`; a value may be a YAML
    list in brackets."""
    parts = _split(text)
    if any("=" not in part for part in parts):
        raise ConfigError(f"{text!r} is not of the form name=FORMAT,path=PATH,option=value")
    raw = {
        key: parse_value(text, value) for key, _, value in (part.partition("=") for part in parts)
    }
    options: type[PluginOptions] = plugins.find(seam, str(raw.get("name"))).Options
    return validate(options, raw, where=text)
