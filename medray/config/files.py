"""YAML files and `key=value` settings laid over one another, before anything is validated."""

import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from medray.errors import ConfigError, nearest_file

_MOST_BYTES = 256 << 10  # of a file or a value, which takes seconds to read
_MOST_NODES = 50_000  # keys and values, each counted as often as it is referred to
_PAIRS = (
    ("epochs", "max_steps"),
    ("warmup_steps", "warmup_ratio"),
)  # settings of which a study gives one
_OTHER = {name: other for pair in _PAIRS for name, other in (pair, pair[::-1])}


class _Loader(yaml.SafeLoader):
    """Refuses a duplicate key, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r:.60} is given twice", key.start_mark
                    )
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        raw = parse(
            content.decode("utf-8", "strict" if len(content) <= _MOST_BYTES else "replace"),
            f"{path}:",
        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read: {err}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, found {type(raw).__name__}")
    return raw


def parse_value(override: str, text: str) -> Any:
    return parse(text, f"{override!r:.200}: the value")


def parse(text: str, where: str) -> Any:
    if len(text.encode("utf-8", "replace")) > _MOST_BYTES:
        raise ConfigError(f"{where} is longer than {_MOST_BYTES} bytes; settings are not data")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        num_nodes = 0 if node is None else _count(node, {})
        if num_nodes <= _MOST_NODES:
            return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{where} is not valid YAML: nested too deeply") from None
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as err:
        # Of a value that is none of its type (a date of month 13, !!bool x), PyYAML lets Python's
        # own error through.
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(err).split())}") from None
    finally:
        loader.dispose()
    amount = (
        "keys and values without end"
        if math.isinf(num_nodes)
        else f"{num_nodes:.0f} keys and values"
    )
    raise ConfigError(
        f"{where} holds {amount} with what its aliases repeat; at most {_MOST_NODES} are read"
    )


def _count(node: yaml.Node, counts: dict[int, float]) -> float:
    """Nodes below this one and itself; without end where it is inside itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until it is counted
        parts = (
            chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        )
        counts[id(node)] = (
            1
            if isinstance(node, yaml.ScalarNode)
            else 1 + sum(_count(part, counts) for part in parts)
        )
    return counts[id(node)]


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """The settings of both. Of two that exclude each other, the higher layer's replaces the
    lower's."""
    merged = dict(low)
    for key, value in high.items():
        other = _OTHER.get(key)
        if other and value is not None and high.get(other) is None:
            merged.pop(other, None)
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def put_all(raw: dict[str, Any], settings: Iterable[tuple[str, Any, str]]) -> None:
    """Lay one layer of dotted settings over others, as `merge` does. Each has a key, a value, and
    its place for errors."""
    layer = list(settings)
    names = {key for key, value, _ in layer if value is not None}
    for key, value, where in layer:
        put(raw, key, value, where=where)
        section, _, name = key.rpartition(".")
        other = f"{section}.{_OTHER.get(name)}"
        if value is not None and name in _OTHER and other not in names:
            put(raw, other, None, where=where)


def put(raw: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    at: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(at, list):
            at = at[_index(at, part, where)]
        else:
            if at.get(part) is None:
                at[part] = {}
            at = at[part]
        if not isinstance(at, (dict, list)):
            raise ConfigError(
                f"{where}: {key!r} goes through {part!r}, which is {at!r}, not a section"
            )
    if isinstance(at, list):
        at[_index(at, last, where)] = value
    else:
        at[last] = value


def _index(items: list[Any], part: str, where: str) -> int:
    if not (part.isdecimal() and len(part) < 10 and int(part) < len(items)):
        raise ConfigError(
            f"{where:.200}: {part!r:.60} is not a position in a list of {len(items)} (0 to "
            f"{len(items) - 1})"
        )
    return int(part)
