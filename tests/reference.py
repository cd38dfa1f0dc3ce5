"""The reference pages of commands and of the Python API, from typer's commands and from the source.
Nothing of the source is imported but the command line."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import medray
from medray.cli.main import app

ROOT = Path(__file__).parents[1]
NOTE = "This page is generated from the code: `python tests/pages.py` writes it.\n"
FORWARD = re.compile(r"'([A-Z]\w+(?: \| None)?)'")  # an annotation that stands in quotes


def cell(text: str) -> str:
    """Text that does not break a row of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


# Command line


def cli_page() -> str:
    lines = [
        "# Commands",
        "",
        "Every command of `medray` with its arguments and options.",
        NOTE,
    ]
    root: Any = typer.main.get_command(app)
    options = [parameter for parameter in root.params if parameter.opts[0].startswith("-")]
    if options:
        lines += ["## medray", "", *parameter_lines(options)]
    lines += command_lines("medray", root)
    return "\n".join(lines).rstrip() + "\n"


def command_lines(path: str, group: Any) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from command_lines(f"{path} {name}", command)
            continue
        arguments = [p for p in command.params if not p.opts[0].startswith("-")]
        usage = " ".join(usage_of(argument) for argument in arguments)
        yield from (f"## {path} {name}", "")
        yield from ("```text", f"{path} {name} [OPTIONS] {usage}".rstrip(), "```", "")
        yield from (help_text(command.help), "")
        yield from parameter_lines(command.params)


def usage_of(argument: Any) -> str:
    name = argument.name.upper() + ("…" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def help_text(text: str | None) -> str:
    """A command's help; indented lines, such as examples, stay a block."""
    lines = (text or "").replace("\b\n", "").strip().splitlines()
    return "\n".join(line if not line.startswith("  ") else f"    {line.strip()}" for line in lines)


def parameter_lines(parameters: list[Any]) -> Iterator[str]:
    if not parameters:
        return
    yield from ("| argument or option | default | meaning |", "| --- | --- | --- |")
    for parameter in parameters:
        is_option = parameter.opts[0].startswith("-")
        names = [*parameter.opts, *parameter.secondary_opts] if is_option else [usage_of(parameter)]
        default = "required" if parameter.required else parameter.default
        default_text = "" if default is None or default is False or default == () else f"{default}"
        if default_text and default_text != "required":
            default_text = f"`{default_text}`"
        meaning = " ".join((parameter.help or "").split())
        code = ", ".join(f"`{name}`" for name in names)
        yield f"| {code} | {cell(default_text)} | {cell(meaning)} |"
    yield ""


# Python

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_page() -> str:
    lines = [
        "# Python API",
        "",
        "The public names of `medray`, of what its functions return, and of the HTTP client.",
        "The clients need only the standard library. The examples run as tests.",
        NOTE,
    ]
    package = ROOT / "medray" / "__init__.py"
    lines += ["## medray", "", *module_lines(package, None)]
    for name, module in sorted(medray._PLACES.items()):
        lines += module_lines(module_path(module), {name})
    for module, names in sorted(returned_names(package).items()):
        lines += [f"## {module}", "", *module_lines(module_path(module), names)]
    for module in (
        "medray.client",
        "medray.client.answers",
        "medray.errors",
    ):
        lines += [f"## {module}", "", *module_lines(module_path(module), None)]
    return "\n".join(lines).rstrip() + "\n"


def module_path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def returned_names(package: Path) -> dict[str, set[str]]:
    """Classes that annotations of the package's functions name, by their module."""
    tree = ast.parse(package.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    annotations = " ".join(
        ast.unparse(node.returns)
        for node in functions
        if node.returns and not node.name.startswith("_")
    )
    return {
        str(node.module): {alias.name for alias in node.names if alias.name in annotations}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and any(alias.name in annotations for alias in node.names)
    }


def module_lines(path: Path, names: set[str] | None) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        if names is None or node.name in names:
            yield from (
                class_lines(node) if isinstance(node, ast.ClassDef) else function_lines(node)
            )


def function_lines(node: Function, owner: str = "") -> Iterator[str]:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = ast.unparse(node.args)
    if owner:
        arguments = arguments.removeprefix("self").removeprefix("cls").removeprefix(", ")
    is_property = any(ast.unparse(item) == "property" for item in node.decorator_list)
    call = f"{owner}{node.name}" + ("" if is_property else f"({arguments})")
    yield from ("```text", FORWARD.sub(r"\1", f"{call}{returns}"), "```", "")
    yield from docstring_lines(node)


def docstring_lines(node: Function | ast.ClassDef) -> Iterator[str]:
    """The docstring, with its examples as blocks of code."""
    for part in (ast.get_docstring(node) or "").split("\n\n"):
        if part.startswith(">>>"):
            yield from ("```pycon", part, "```", "")
        elif part:
            yield from (part, "")


def class_lines(node: ast.ClassDef) -> Iterator[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield from (f"### {node.name}" + (f" ({bases})" if bases else ""), "")
    yield from docstring_lines(node)
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    fields = [item for item in fields if not ast.unparse(item.target).startswith("_")]
    if fields:
        yield from ("| field | type | default |", "| --- | --- | --- |")
        for item in fields:
            value = field_default(item.value)
            yield (
                f"| `{ast.unparse(item.target)}` | `{cell(ast.unparse(item.annotation))}` "
                f"| {f'`{cell(value)}`' if value else ''} |"
            )
        yield ""
    for method in node.body:
        if isinstance(method, Function):
            if method.name == "__init__":
                yield from constructor_lines(method, node.name)
            elif not method.name.startswith("_"):
                yield from function_lines(method, f"{node.name}.")


def constructor_lines(node: Function, owner: str) -> Iterator[str]:
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    yield from ("```text", FORWARD.sub(r"\1", f"{owner}({arguments})"), "```", "")


def field_default(value: ast.expr | None) -> str:
    """What a field holds where it is not given; `field(default=…)` holds its default."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
        defaults = [item.value for item in value.keywords if item.arg == "default"]
        return ast.unparse(defaults[0]) if defaults else ""
    return ast.unparse(value) if value else ""
