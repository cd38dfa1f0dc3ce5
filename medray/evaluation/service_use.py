"""The requests to a service that answered a study's questions: their tokens, seconds and cost."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ServiceUse:
    """The requests of a study. Answers that an earlier study stored count with their tokens and
    seconds of then."""

    url: str
    num_requests: int
    num_refusals: int  # answers that the service refused
    input_tokens: int
    output_tokens: int
    seconds: float
    cost: float | None = None  # by its price per million tokens

    @property
    def num_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def columns(self) -> dict[str, Any]:
        """Return the columns of a leaderboard in CSV."""
        return {
            "service_tokens": self.num_tokens,
            "service_cost": self.cost,
            "service_seconds": self.seconds,
            "service_refusals": self.num_refusals,
        }

    def cells(self) -> list[str]:
        """Return tokens and cost for a table."""
        return [f"{self.num_tokens:,}", "" if self.cost is None else f"{self.cost:.4f}"]

    def sentence(self, name: str) -> str:
        cost = "" if self.cost is None else f", which cost {self.cost:.4f} at its price"
        refusals = f"; it refused {self.num_refusals:,} answer(s)" if self.num_refusals else ""
        return (
            f"the service ({name}) read {self.num_requests:,} texts with {self.num_tokens:,} "
            f"tokens{cost}, in {self.seconds:.1f} s of requests{refusals}"
        )
