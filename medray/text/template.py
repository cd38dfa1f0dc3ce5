"""Text with named places in braces, `Question: {question}`: how columns become a text, and a text a
prompt. Nothing else is interpreted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

# The conclusion of a PubMedQA abstract: it states the answer, so a prompt that held it would
# measure reading, not knowledge.
_ANSWERS = ("longanswer",)


@dataclass(frozen=True, slots=True)
class Template:
    text: str
    parts: tuple[tuple[str, str | None], ...]  # a literal, and the name of the place after it

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Raises ValueError, which a configuration answers with the option's path."""
        parts: list[tuple[str, str | None]] = []
        for literal, name, form, conversion in Formatter().parse(text):
            if name is not None and (not name or form or conversion):
                raise ValueError(
                    f"template {text!r}: a place is a name in braces, such as {{question}}; a "
                    "brace itself is written twice"
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
        """The literals before and after the one place of this name."""
        if [place for _, place in self.parts if place is not None] != [name]:
            raise ValueError(
                f"template {self.text!r}: must hold {{{name}}} once, and no other place"
            )
        at = next(number for number, (_, place) in enumerate(self.parts) if place == name)
        return "".join(literal for literal, _ in self.parts[: at + 1]), "".join(
            literal for literal, _ in self.parts[at + 1 :]
        )


def check_no_answer(names: tuple[str, ...]) -> None:
    """A column that is known to state the answer reaches no prompt, whatever format it comes in."""
    for name in names:
        if re.sub(r"[\W_]", "", name).lower() in _ANSWERS:
            raise ValueError(f"{name!r} states the answer and can be no part of a text or prompt")
