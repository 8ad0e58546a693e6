"""What a campaign found, as a line of a table."""

from dataclasses import dataclass, field

from tests.campaigns.runner import Outcome


@dataclass
class Result:
    """Cases tried and what was wrong with which.

    Attributes:
        name: Of the campaign.
        tried: Cases.
        faults: What was wrong, after the case it was wrong with.
        slowest: Seconds of the slowest command.
        largest: Bytes of memory of the largest.
        seconds: Of the campaign.
    """

    name: str
    tried: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Result") -> "Result":
        """Both parts of one campaign as a whole."""
        return Result(
            self.name,
            self.tried + other.tried,
            self.faults + other.faults,
            max(self.slowest, other.slowest),
            max(self.largest, other.largest),
            self.seconds + other.seconds,
        )

    def add(self, case: str, fault: str, *outcomes: Outcome) -> None:
        """Count a case.

        Args:
            case: What was tried.
            fault: What was wrong; empty where nothing was.
            *outcomes: Of its commands.
        """
        self.slowest = max([self.slowest, *(outcome.seconds for outcome in outcomes)])
        self.largest = max([self.largest, *(outcome.peak for outcome in outcomes)])
        self.tried += 1
        if fault:
            self.faults.append((case, fault))
