"""`python tests/pages.py`: write docs/reference, docs/llms.txt and the JSON Schema of a study, from
the code that they describe."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reference import NOTE, cell, cli_page, python_page

from medray.config.study import StudyConfig
from medray.serving.schemas import AppOptions

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCHEMA = ROOT / "jobs" / "studies" / "study.schema.json"
Schema = Mapping[str, Any]
SECTIONS = {  # those whose class says nothing of itself
    "data": "the data, its split and its limits",
    "data.format": "the format and place of the data, with the format's options",
    "lora": "the adapter",
    "model": "arithmetic of the base model",
    "task": "what the model learns, with the task's options",
    "train": "how a trial trains",
}


def render() -> dict[Path, str]:
    """Return the text of every generated file by its path."""
    reference = DOCS / "reference"
    texts = {
        reference / "configuration.md": study_page(),
        reference / "service.md": service_page(),
        reference / "cli.md": cli_page(),
        reference / "python.md": python_page(),
        SCHEMA: json.dumps(StudyConfig.model_json_schema(), indent=1) + "\n",
    }
    return texts | {DOCS / "llms.txt": index_of_pages(texts)}


# Settings


def study_page() -> str:
    schema = StudyConfig.model_json_schema()
    lines = [
        "# Settings of a study",
        "",
        "Every key of a study's YAML, with its type, its default and what it does.",
        "The guide [Configuration](../guides/configuration.md) explains files and secrets.",
        NOTE,
        *section_lines("", schema, schema.get("$defs", {})),
    ]
    return "\n".join(lines).rstrip() + "\n"


def service_page() -> str:
    schema = AppOptions.model_json_schema()
    lines = [
        "# Settings of a service",
        "",
        "Every key under `args` of an application in a Ray Serve YAML such as those in",
        "`serve_configs/`. `medray serve` takes the common ones as options.",
        "The guide [Serving](../guides/serving.md) explains them.",
        NOTE,
        *section_lines("", schema, schema.get("$defs", {})),
    ]
    return "\n".join(lines).rstrip() + "\n"


def section_lines(path: str, schema: Schema, defs: Schema) -> Iterator[str]:
    """A heading and table for one section, and then for each section inside it."""
    inner_sections: list[tuple[str, Schema]] = []
    if path:
        depth = path.removesuffix(".*").count(".")
        yield from (f"{'#' * min(2 + depth, 4)} {path}", "")
    if text := schema.get("description"):
        yield from (" ".join(text.split()), "")
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    required_keys = schema.get("required", ())
    for key, field in schema.get("properties", {}).items():
        key_path = f"{path}.{key}" if path else key
        inner = sections_of(key_path, field, defs)
        inner_sections += inner
        default = "required" if key in required_keys else default_of(field, has_section=bool(inner))
        kind = section_link(inner[0][0]) if inner else type_of(field, defs)
        source = field if "description" in field or len(inner) != 1 else inner[0][1]
        meaning = " ".join(source.get("description", SECTIONS.get(key_path, "")).split())
        if key == "name" and "const" in field:
            meaning = "chooses these options"
        yield f"| `{key}` | {cell(kind)} | {cell(default)} | {cell(meaning)} |"
    yield ""
    for key_path, inner_schema in inner_sections:
        yield from section_lines(key_path, inner_schema, defs)


def sections_of(key_path: str, field: Schema, defs: Schema) -> list[tuple[str, Schema]]:
    """The sections that a key holds: none, one, or one per plugin name."""
    options = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
    if isinstance(field.get("items"), Mapping):
        options.append(field["items"])
        key_path += "[]"
    if isinstance(field.get("additionalProperties"), Mapping):
        options.append(field["additionalProperties"])
        key_path += ".*"
    inner = [
        defs[option["$ref"].split("/")[-1]] if "$ref" in option else option for option in options
    ]
    inner = [option for option in inner if option.get("properties")]
    names = [option["properties"].get("name", {}).get("const") for option in inner]
    return [
        (f"{key_path}: {name}" if name else key_path, option)
        for name, option in zip(names, inner, strict=True)
    ]


def section_link(heading: str) -> str:
    """A link to the first heading of a section, as GitHub and Python-Markdown name it."""
    anchor = re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
    return f"[section](#{anchor})"


def type_of(field: Schema, defs: Schema) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return type_of(defs[field["$ref"].split("/")[-1]], defs)
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(type_of(option, defs) for option in options))
    kind = field.get("type", "any value")
    if kind == "array":
        items = field.get("items") or next(iter(field.get("prefixItems", ())), {})
        return f"list of {type_of(items, defs)}" if items else "list"
    name = {"object": "mapping", "string": "text", "boolean": "true or false", "null": "null"}
    bounds = [
        f"{sign} {field[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in field
    ]
    return " ".join([name.get(kind, kind), ", ".join(bounds)]).strip()


def default_of(field: Schema, *, has_section: bool) -> str:
    if "default" not in field or (has_section and isinstance(field["default"], Mapping)):
        return ""
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


# Index


def index_of_pages(texts: Mapping[Path, str]) -> str:
    """List every page with its first sentence, for programs that read documentation."""
    pages = sorted(
        {*DOCS.rglob("*.md"), *(path for path in texts if path.suffix == ".md")}, key=rank
    )
    first, *others = (page_entry(page, texts) for page in pages)
    lines = [f"# {first[0]}", "", f"> {first[2]}", "", "## Pages", ""]
    lines += [f"- [{title}]({path}): {sentence}" for title, path, sentence in (first, *others)]
    return "\n".join(lines) + "\n"


def rank(page: Path) -> tuple[int, str]:
    name = page.relative_to(DOCS).as_posix()
    order = ["index.md", "install.md", "tutorials/", "guides/", "reference/"]
    return next((at for at, start in enumerate(order) if name.startswith(start)), len(order)), name


def page_entry(page: Path, texts: Mapping[Path, str]) -> tuple[str, str, str]:
    text = texts.get(page) or page.read_text(encoding="utf-8")
    title, _, body = text.partition("\n")
    paragraphs = (
        part for part in body.split("\n\n") if not part.strip().startswith(("<", "```", "#", "|"))
    )
    paragraphs = (part for part in paragraphs if part.strip())
    paragraph = " ".join(next(paragraphs, "").split())
    sentence = paragraph.split(". ")[0].rstrip(".") + "."
    return title.removeprefix("# "), page.relative_to(DOCS).as_posix(), plain(sentence)


def plain(sentence: str) -> str:
    """A sentence without the targets of its links."""
    for part in sentence.split("](")[1:]:
        sentence = sentence.replace(f"]({part.split(')')[0]})", "").replace("[", "", 1)
    return sentence


def main() -> int:
    for path, text in render().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
