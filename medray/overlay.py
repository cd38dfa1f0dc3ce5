"""YAML files and `key=value` settings laid over one another, before anything is validated."""

from pathlib import Path
from typing import Any

import yaml

from medray.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if key.value in {earlier.value for earlier in keys[:position]}:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
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


def parse_value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {' '.join(str(err).split())}") from None


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def put(raw: dict[str, Any], dotted: str, value: Any, *, where: str) -> None:
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
