"""Templates with names in braces, such as `Question: {question}`: they make a text from columns, or
a prompt from a text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

# The conclusion of a PubMedQA abstract states the answer, so a prompt with it would measure reading
# instead of knowledge.
_ANSWERS = ("longanswer",)


@dataclass(frozen=True, slots=True)
class Template:
    text: str
    parts: tuple[tuple[str, str | None], ...]  # a literal and the name after it

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Parse a template; raise ValueError, to which a configuration adds the option's path."""
        parts: list[tuple[str, str | None]] = []
        for literal, name, form, conversion in Formatter().parse(text):
            if name is not None and (not name or form or conversion):
                raise ValueError(
                    f"template {text!r}: braces must hold a name, such as {{question}}; write a "
                    "literal brace twice"
                )
            parts.append((literal, name))
        template = cls(text, tuple(parts))
        check_no_answer(template.names)
        return template

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def render(self, values: Mapping[str, str]) -> str:
        return "".join(
            literal + ("" if name is None else values[name]) for literal, name in self.parts
        )

    def around(self, name: str) -> tuple[str, str]:
        """Return the text before and after the only name in the template."""
        if [place for _, place in self.parts if place is not None] != [name]:
            raise ValueError(
                f"template {self.text!r}: must hold {{{name}}} once, and no other name"
            )
        at = next(number for number, (_, place) in enumerate(self.parts) if place == name)
        return "".join(literal for literal, _ in self.parts[: at + 1]), "".join(
            literal for literal, _ in self.parts[at + 1 :]
        )


def check_no_answer(names: tuple[str, ...]) -> None:
    """Raise ValueError if a column is known to state the answer, which no prompt may hold."""
    for name in names:
        if re.sub(r"[\W_]", "", name).lower() in _ANSWERS:
            raise ValueError(f"{name!r} states the answer; no text or prompt may hold it")
