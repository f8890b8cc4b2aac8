"""What became of rows, counted at every stage: in + made = out + dropped + failed, always."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlnet.build.rows import Row


@dataclass
class Counts:
    """Of one stage."""

    came: int = 0
    made: int = 0
    """Rows made beyond those that came: pictures found for a prompt."""
    left: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @classmethod
    def of(cls, came: int, rows: Sequence[Row], seconds: float) -> "Counts":
        """Of rows as they left a stage, `came` of them having come."""
        dropped, failed = (Counter(row.reason for row in rows if row.status == it) for it in ("dropped", "failed"))
        left = sum(row.status == "ok" for row in rows)
        return cls(came, len(rows) - came, left, dropped, failed, seconds)

    @property
    def adds_up(self) -> bool:
        return self.came + self.made == self.left + self.dropped.total() + self.failed.total()

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.came + other.came,
            self.made + other.made,
            self.left + other.left,
            self.dropped + other.dropped,
            self.failed + other.failed,
            self.seconds + other.seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """Without the seconds, which another run would have differently."""
        return {
            "in": self.came,
            "made": self.made,
            "out": self.left,
            "dropped": dict(sorted(self.dropped.items())),
            "failed": dict(sorted(self.failed.items())),
        }

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Counts":
        return cls(told["in"], told["made"], told["out"], Counter(told["dropped"]), Counter(told["failed"]))


def total(counts: Iterable[dict[str, Counts]]) -> dict[str, Counts]:
    """The sum by stage, stages in the order of their first appearance."""
    sums: dict[str, Counts] = {}
    for each in counts:
        for stage, count in each.items():
            sums[stage] = sums.get(stage, Counts()) + count
    return sums
