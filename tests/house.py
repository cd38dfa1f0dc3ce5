"""`python tests/house.py [PATH]` prints the shape of a checkout of medray: modules, layers,
circles, sizes, names. It reads source and imports nothing of medray, so it also reads older
checkouts. `--write` renews the table of layers in CONTRIBUTING.md."""

import ast
import math
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import names

ROOT = Path(__file__).parents[1]
COLUMNS = 100
BEGIN, END = "<!-- layers -->\n", "<!-- end of layers -->\n"
F1_FUNCTIONS = {
    "f1_score",
    "fbeta_score",
    "precision_recall_fscore_support",
    "classification_report",
}


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str  # dotted
    path: Path
    is_package: bool
    tree: ast.Module
    lines: tuple[str, ...]

    @property
    def part(self) -> str:
        """The package or module at the top of medray that it belongs to."""
        return self.name.split(".")[1] if "." in self.name else self.name

    @cached_property
    def num_lines(self) -> int:
        return at_columns(self.lines)

    @cached_property
    def functions(self) -> list[tuple[int, str]]:
        """Length and name of each."""
        return [
            (at_columns(self.lines[node.lineno - 1 : node.end_lineno]), node.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]


class House:
    """The package in one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        modules = [_module(root, path) for path in sorted((root / "medray").rglob("*.py"))]
        self.modules = {module.name: module for module in modules}
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        self.contracts: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]

    @cached_property
    def single(self) -> list[str]:
        """Modules at the top, without the package's own."""
        return [
            name
            for name, module in self.modules.items()
            if name.count(".") == 1 and not module.is_package
        ]

    @cached_property
    def num_modules(self) -> int:
        """Files, an `__init__.py` left out."""
        return sum(not module.is_package for module in self.modules.values())

    @cached_property
    def layers(self) -> list[list[str]]:
        """Top to bottom, each with its parts."""
        (contract,) = (contract for contract in self.contracts if contract["type"] == "layers")
        return [
            [part.strip(" ()") for part in re.split("[|:]", layer)] for layer in contract["layers"]
        ]

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules that each module imports at run time, inside functions too."""
        return {name: set(_imports(module, self.modules)) for name, module in self.modules.items()}

    @cached_property
    def circles(self) -> list[list[str]]:
        """Modules that import each other, directly or by way of others."""
        return circles(self.imports)

    @cached_property
    def circles_of_parts(self) -> list[list[str]]:
        parts: dict[str, set[str]] = {}
        for name, targets in self.imports.items():
            part = self.modules[name].part
            parts.setdefault(part, set()).update(
                self.modules[target].part for target in targets if self.modules[target].part != part
            )
        return circles(parts)

    @cached_property
    def upward(self) -> list[str]:
        """Imports of a layer from one above it or beside it."""
        pairs = [
            (name, target) for name, targets in self.imports.items() for target in sorted(targets)
        ]
        return [f"{name} -> {target}" for name, target in pairs if self._goes_up(name, target)]

    def _goes_up(self, name: str, target: str) -> bool:
        own, other = self._layer(name), self._layer(target)
        return None not in (own, other) and own != other and own[0] >= other[0]  # type: ignore[index]

    def _layer(self, name: str) -> tuple[int, str] | None:
        """Its layer's number, from the top, and its part."""
        parts = [(number, part) for number, layer in enumerate(self.layers) for part in layer]
        return next(
            (place for place in parts if name == place[1] or name.startswith(f"{place[1]}.")), None
        )

    @cached_property
    def f1_files(self) -> list[str]:
        return [
            str(module.path.relative_to(self.root))
            for module in self.modules.values()
            if computes_f1(module.tree)
        ]

    @cached_property
    def importers(self) -> Counter[str]:
        return Counter(chain.from_iterable(self.imports.values()))

    @cached_property
    def participles(self) -> Counter[str]:
        """Names that are one, with how often each is bound."""
        return Counter(
            bound.name
            for module in self.modules.values()
            for bound in names.participles(module.path, module.tree)
        )

    def lines_by_part(self) -> dict[str, tuple[int, int, int]]:
        """Files, lines, lines at 100 columns."""
        parts: dict[str, tuple[int, int, int]] = {}
        outside = [
            (name, path)
            for name in ("jobs", "tests", "cluster")
            for path in (self.root / name).rglob("*.py")
        ]
        for name, path in [
            *((f"medray/{module.part}", module.path) for module in self.modules.values()),
            *outside,
        ]:
            lines = path.read_text(encoding="utf-8").splitlines()
            files, plain, wide = parts.get(name, (0, 0, 0))
            parts[name] = (files + 1, plain + len(lines), wide + at_columns(lines))
        return parts


def _module(root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    text = path.read_text(encoding="utf-8")
    return Module(
        ".".join(parts[:-1] if is_package else parts),
        path,
        is_package,
        ast.parse(text),
        tuple(text.splitlines()),
    )


def at_columns(lines: Iterable[str]) -> int:
    """How many lines they would be if each were broken at 100 columns."""
    return sum(max(1, math.ceil(len(line) / COLUMNS)) for line in lines)


def _imports(module: Module, modules: Mapping[str, Module]) -> Iterator[str]:
    for node in _when_running(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.name.split(".")[: None if module.is_package else -1]
            base = (
                [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
                if node.level
                else [node.module or ""]
            )
            targets = [
                name if (name := ".".join([*base, alias.name])) in modules else ".".join(base)
                for alias in node.names
            ]
        else:
            continue
        yield from (target for target in targets if target in modules and target != module.name)


def _when_running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a node, except code for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _when_running(child)


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of which each member reaches each other (Tarjan's components, of more than one)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in sorted(imports.get(name, ())):
            if target not in number:
                visit(target)
            if target in stack:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in imports:
        if name not in number:
            visit(name)
    return groups


def computes_f1(tree: ast.Module) -> bool:
    """Return whether a file divides a doubled value (2 hits / (true + predicted), 2 pr / (p + r))
    or calls a library's F1. A division is `/`, or a call of a function whose name ends in `ratio`
    or `divide`. Names of doubled values count within the file. A scaled value (`2 * low / 3`) does
    not count: the divisor must be a sum, a name or a call."""
    doubles = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_doubled(node.value, frozenset())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if _is_doubled(node.left, doubles) and not isinstance(node.right, ast.Constant):
                return True
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in F1_FUNCTIONS or (
                name.endswith(("ratio", "divide"))
                and node.args
                and _is_doubled(node.args[0], doubles)
            ):
                return True
    return False


def _is_doubled(node: ast.expr, doubles: Iterable[str]) -> bool:
    """`2 * x`, `multiply(2, x)`, a name of either, or the sum or a part of one."""
    match node:
        case ast.Constant(value=value):
            return type(value) in (int, float) and value == 2
        case ast.Name(id=name):
            return name in doubles
        case (
            ast.BinOp(left=ast.BinOp(left=first, op=ast.Mult()), op=ast.Mult())
            | ast.BinOp(left=first, op=ast.Mult())
        ):
            return _is_doubled(first, doubles)  # of a product of two or three, that is
        case ast.Call(func=ast.Attribute(attr="sum", value=value)) | ast.Subscript(value=value):
            return _is_doubled(value, doubles)
        case ast.Call(func=ast.Attribute(attr="multiply"), args=[first, *_]):
            return _is_doubled(first, doubles)
    return False


def files_of_requests(root: Path) -> list[str]:
    """One line per request from the checkout's own trace, which runs a tiny model; none where the
    checkout has no trace."""
    script = root / "tests" / "support" / "request_trace.py"
    if not script.exists():
        return []
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    trace = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=root, env=environment
    )
    if trace.returncode:
        return [
            (
                f"the trace ended with status {trace.returncode}: "
                f"{trace.stderr.strip().splitlines()[-1:]}"
            )
        ]
    return re.findall(r"^/.*files$", trace.stdout, re.MULTILINE)


def table(house: House) -> str:
    """CONTRIBUTING's table of layers, from pyproject.toml."""
    rows = ["| layer | parts of `medray` |", "| ---: | --- |"]
    for number, layer in zip(range(len(house.layers), 0, -1), house.layers, strict=True):
        rows.append(f"| {number} | {_in_backticks(layer)} |")
    for contract in house.contracts:
        if contract["type"] == "forbidden":
            rows += [
                "",
                (
                    f"These import none of {_in_backticks(contract['forbidden_modules'])}: "
                    f"{_in_backticks(contract['source_modules'])}."
                ),
            ]
    return "\n".join([*rows, ""])


def _in_backticks(names: Iterable[str]) -> str:
    return ", ".join(f"`{name.removeprefix('medray.')}`" for name in names)


def with_table(page: str, house: House) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(
            f"CONTRIBUTING.md: it has no {BEGIN.strip()} or no {END.strip()}; mark where the "
            "table stands"
        )
    return f"{before}{BEGIN}\n{table(house)}\n{END}{after}"


def show(house: House) -> Iterator[str]:
    largest = max(house.modules.values(), key=lambda module: module.num_lines)
    length, function, path = max(
        (length, name, module.path)
        for module in house.modules.values()
        for length, name in module.functions
    )
    by_one = sum(house.importers[name] == 1 for name in house.modules)
    participles = house.participles
    yield (
        f"modules in medray/: {house.num_modules}, and {len(house.modules) - house.num_modules} "
        "__init__.py"
    )
    yield f"single modules at the top: {len(house.single)}"
    yield f"layers: {len(house.layers)}"
    yield f"circles of modules: {len(house.circles)}{_as_lines(house.circles)}"
    yield f"circles of parts: {len(house.circles_of_parts)}{_as_lines(house.circles_of_parts)}"
    yield f"imports that go up: {len(house.upward)}{_as_lines([name] for name in house.upward)}"
    yield f"modules that one other imports: {by_one}"
    yield (
        f"largest file at {COLUMNS} columns: {largest.num_lines} lines, "
        f"{largest.path.relative_to(house.root)}"
    )
    yield (
        f"largest function at {COLUMNS} columns: {length} lines, {function} in "
        f"{path.relative_to(house.root)}"
    )
    yield (
        f"files over 300 lines: {sum(module.num_lines > 300 for module in house.modules.values())}"
    )
    yield (
        "functions over 70 lines: "
        f"{sum(length > 70 for module in house.modules.values() for length, _ in module.functions)}"
    )
    yield (
        "files that compute an F1: "
        f"{len(house.f1_files)}{_as_lines([name] for name in house.f1_files)}"
    )
    yield f"names that are participles: {participles.total()} in {len(participles)} different ones"
    yield "  " + ", ".join(f"{name} {count}" for name, count in participles.most_common(12))
    yield "lines by part: files, lines, lines at 100 columns"
    parts = house.lines_by_part()
    parts["medray"] = tuple(
        sum(column)
        for column in zip(
            *(row for name, row in parts.items() if name.startswith("medray/")), strict=True
        )
    )  # type: ignore[assignment]
    for name, (files, plain, wide) in sorted(parts.items()):
        yield f"  {name:<20}{files:>5}{plain:>7}{wide:>7}"
    yield "files of medray that a request passes:"
    yield from (
        f"  {line}"
        for line in files_of_requests(house.root)
        or ["not measured: there is no tests/support/request_trace.py"]
    )


def _as_lines(groups: Iterable[list[str]]) -> str:
    return "".join(f"\n  {' '.join(group)}" for group in groups)


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        page = ROOT / "CONTRIBUTING.md"
        page.write_text(with_table(page.read_text(encoding="utf-8"), House(ROOT)), encoding="utf-8")
        return 0
    root = Path(arguments[0]).resolve() if arguments else ROOT
    for line in show(House(root)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
