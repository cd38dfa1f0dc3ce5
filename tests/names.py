"""`python tests/names.py [PATH ...]` prints participles among the names of a path, with file and
line, and class and file names with two meanings in the package."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Participles and past tenses that do not end in -ed. Left out are those that are also nouns or
# adjectives: bound, cut, left, read, set, split; and `put`, the verb of object stores and of HTTP.
IRREGULAR = """began begun bought broken brought built burnt came caught chosen did done drawn
driven eaten fallen fed fell felt flown forbidden forgotten found frozen gave given gone got gotten
grew grown heard held hidden hung kept knew known laid learnt led lent lost made meant met
overridden paid proven ran risen rose said sang sat saw seen sent shaken shown shut slept sold
sought spelt spent spoken stolen stood struck stuck sung swept taken taught thought thrown told took
torn understood went withdrawn won worn wound woven written wrote"""
# Words that only end like one.
OTHERS = (
    "bed bleed breed creed deed deepspeed embed exceed feed heed hundred indeed need proceed red "
    "seed shed sled speed succeed weed"
)
# The field's word, the architecture's word for a thing, or a name that another protocol gives.
EXCEPTIONS = {
    "calibrated", "created", "distributed", "encoded", "hidden", "prepared", "served",
    "abstained", "ranked",  # keys of the service's answers
    "answered", "merged", "unmerged",  # keys of a release's record
    "truncated",  # a column of prepared rows
    "retry_failed",  # the option --retry-failed
    "delimited", "drop_unlabelled",  # keys of data.format in YAML
    "max_failed",  # a key of YAML
    "connection_made", "data_received", "connection_lost",  # asyncio.Protocol
    "set_terminated",  # MlflowClient
    "disconnected",  # an attribute of uvicorn's RequestResponseCycle
}  # fmt: skip
# Keys of a file that medray writes, which are fields in these modules only.
KEYS = {
    "medray/evaluation/analysis.py": {"given", "predicted", "suggested", "wanted"},
    "medray/evaluation/leaderboard.py": {"tied"},
    "medray/evaluation/pooling.py": {"published"},
    "medray/reports/review.py": {"given", "predicted", "suggested"},
    "medray/serving/openai_schemas.py": {"masked"},
    "medray/tasks/base/route.py": {"masked"},
}
# `is_known` is a question and `num_failed` a count.
PREFIXES = ("is_", "has_", "are_", "was_", "num_")
# Class names that every module of a seam has.
SEAM_CLASSES = {"Options", "Request", "Response", "Task", "Strategy"}
SEAM_FILES = {"__init__", "base", "protocol", "task", "options"}
# Files here are named like a command, or like the section of a study's YAML.
MIRRORS = {"cli", "config"}


class Bound(NamedTuple):
    path: Path
    line: int
    name: str


def participles(path: Path, tree: ast.Module) -> Iterator[Bound]:
    """Yield each name that a file binds and that is a participle: its own, variables, attributes,
    arguments, functions, classes and imports."""
    if is_participle(path.stem):
        yield Bound(path, 1, path.stem)
    keys = KEYS.get(path.relative_to(ROOT).as_posix(), ()) if path.is_relative_to(ROOT) else ()
    for node in ast.walk(tree):
        for name in _bound(node):
            if is_participle(name) and not name.startswith("test_") and name not in keys:
                yield Bound(path, getattr(node, "lineno", 1), name)


def _bound(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            yield name
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
            | ast.arg(arg=name)
        ):
            yield name
        case (
            ast.alias(asname=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.ExceptHandler(name=str(name))
        ):
            yield name


def is_participle(name: str) -> bool:
    """Return whether its last word is a participle or a past tense: `found`, `_of_held`."""
    if name.lstrip("_").startswith(PREFIXES):
        return False
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    last = words[-1].lower() if words else ""
    if last in OTHERS.split() or last in EXCEPTIONS or name in EXCEPTIONS:
        return False
    return last in IRREGULAR.split() or (last.endswith("ed") and len(last) > 3)


def classes_of_two_meanings(trees: dict[Path, ast.Module]) -> dict[str, list[Path]]:
    """Map each class name (or name of a type) that two modules define to those modules."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path, tree in trees.items():
        for node in tree.body:
            match node:
                case ast.ClassDef(name=name):
                    places[name.lstrip("_")].append(path)
                case (
                    ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias"))
                    | ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript())
                ) if name.lstrip("_")[:1].isupper() and not name.isupper():
                    places[name.lstrip("_")].append(path)
    return {
        name: paths
        for name, paths in sorted(places.items())
        if len(paths) > 1 and name not in SEAM_CLASSES
    }


def files_of_two_meanings(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Map each file name that stands in two folders to its paths."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if path.stem not in SEAM_FILES and path.parent.name not in MIRRORS:
            places[path.stem].append(path)
    return {name: paths for name, paths in sorted(places.items()) if len(paths) > 1}


def trees(places: Sequence[Path]) -> dict[Path, ast.Module]:
    paths = [
        path
        for place in places
        for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
    ]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def main(arguments: Sequence[str]) -> int:
    modules = trees([Path(argument).resolve() for argument in arguments] or [ROOT / "medray"])
    bound = [entry for path, tree in modules.items() for entry in participles(path, tree)]
    for entry in bound:
        print(f"{entry.path.relative_to(ROOT)}:{entry.line}: {entry.name}")
    package = trees([ROOT / "medray"])
    print(f"{len(bound)} names that are participles")
    for what, places in [
        *classes_of_two_meanings(package).items(),
        *files_of_two_meanings(list(package)).items(),
    ]:
        print(what, *(str(path.relative_to(ROOT)) for path in places))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
