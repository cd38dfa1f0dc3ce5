"""`python tests/site_pages.py ZENSICAL`: build the documentation as a site in build/site.

Pages are copied to build/docs without comments, and without links that lead out of docs. The build
is strict about links, and a page that loads anything from another host is an error."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS, COPY, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
LOADS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(https?:)?//")


def main(arguments: list[str]) -> int:
    copy_pages()
    process = subprocess.run([*arguments, "build", "--clean", "--strict"], cwd=ROOT)
    if process.returncode:
        return process.returncode
    if loading := list(external(SITE)):
        print("\n".join(loading))
        return 1
    num_pages = len(list(SITE.rglob("*.html")))
    print(f"{num_pages} pages: {(SITE / 'index.html').relative_to(ROOT)}")
    return 0


def copy_pages() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(DOCS, COPY)
    for page in COPY.rglob("*.md"):
        page.write_text(
            for_site(page.read_text(encoding="utf-8"), page.relative_to(COPY)), encoding="utf-8"
        )


def for_site(text: str, page: Path) -> str:
    """Return a page without comments; a link that leads out of docs becomes its text."""
    text = re.sub(r" ?<!--.*?-->\n?", lambda match: "\n" * match[0].endswith("\n"), text)
    here = (DOCS / page).parent

    def keep(match: re.Match[str]) -> str:
        target = (here / match[2].partition("#")[0]).resolve()
        return match[0] if target.is_relative_to(DOCS) else match[1]

    return LINK.sub(keep, text)


def external(site: Path) -> Iterator[str]:
    """Name each page that loads a script, style, font or image from another host."""
    for page in sorted(site.rglob("*.html")):
        if LOADS.search(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(site)}: loads from another host"


def in_navigation() -> set[str]:
    """Return the pages that the navigation lists."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    return set(leaves(project["nav"]))


def leaves(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        yield from leaves(list(entries.values()))
    else:
        for entry in entries:
            yield from leaves(entry)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
