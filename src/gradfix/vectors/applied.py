"""What an application of a task vector did, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradfix.checkpoints.expressions import Tally
from gradfix.errors import listed
from gradfix.report.summary import Summarised, Summary


@dataclass
class TensorFacts:
    """What happened to one tensor.

    Attributes:
        coordinates: Elements.
        nonzero: Where τ was not 0 before masking; None without a mask.
        kept: Where the mask kept it; None without a mask.
        square: Σ τ_i² before masking; None without a mask.
        kept_square: Σ (m_i τ_i)²; None without a mask.
        wanted: Where α m τ is not 0.
        lost: Of those, where the output's number format rounded the change away.
        voted: Coordinates on which samples voted; None where no votes masked.
        tied: Of those, where the votes are even.
        net: Σ abs(v_i), the votes by which the majorities won; over ``voted`` and N, the mean margin.
        rank: Of the factors that stand for it; None where it is written whole.
        retained: Share of its squared norm that they keep.
    """

    coordinates: int
    nonzero: int | None = None
    kept: int | None = None
    square: float | None = None
    kept_square: float | None = None
    wanted: int = 0
    lost: int = 0
    voted: int | None = None
    tied: int | None = None
    net: int | None = None
    rank: int | None = None
    retained: float | None = None

    def count(self, tally: Tally | None) -> None:
        """Take over what a mask counted.

        Args:
            tally: Of the tensor, once all of it was read; None without a mask.
        """
        if tally is None:
            return
        self.nonzero, self.kept = tally.coordinates, tally.kept
        self.square, self.kept_square = tally.square, tally.kept_square
        if tally.voted:
            self.voted, self.tied, self.net = tally.voted, tally.tied, tally.net


@dataclass(frozen=True, repr=False)
class Applied(Summarised):
    """What :func:`apply` wrote.

    Attributes:
        output: The model directory.
        alpha: The scaling coefficient used.
        tensors: Facts by output name, of the tensors that τ covers.
        untouched: Parameters that kept θ_B's value because τ has nothing for them.
        added: Parameters copied from the tuned model.
        dropped: Parameters of the target that the output leaves out.
        rule: How names were matched; None where they were the same.
        matched_tokens: Rows matched by token text out of all, by vocabulary tensor.
        remarks: What was carried over of the tuned model's files, or left out.
        seconds: Wall time.
        left_out: Tensors of the vector that an adapter has nothing for.
        retained: Share of the vector's squared norm that an adapter has; None where nothing was truncated.
    """

    output: str
    alpha: float
    tensors: Mapping[str, TensorFacts]
    untouched: list[str]
    added: list[str]
    dropped: list[str]
    rule: str | None
    matched_tokens: Mapping[str, tuple[int, int]]
    remarks: list[str]
    seconds: float = field(compare=False)
    left_out: list[str] = field(default_factory=list)
    retained: float | None = None

    @property
    def kept_share(self) -> float | None:
        """Share of τ's nonzero coordinates that the mask kept; None without a mask."""
        nonzero = sum(facts.nonzero or 0 for facts in self.tensors.values())
        return sum(facts.kept or 0 for facts in self.tensors.values()) / nonzero if nonzero else None

    @property
    def lost_share(self) -> float:
        """Share of the wanted changes that the output's number format rounded away."""
        wanted = sum(facts.wanted for facts in self.tensors.values())
        return sum(facts.lost for facts in self.tensors.values()) / wanted if wanted else 0.0

    def summary(self) -> Summary:
        """Say what was written.

        Returns:
            The sentences of :meth:`notes`.
        """
        first, *others = self.notes()
        return Summary(first, [("note", note) for note in others[:8]])

    def notes(self, *, told: bool = False) -> list[str]:
        """Say in plain words what was written, and what a reader should know of it.

        Args:
            told: Whether the check has said already what goes where.

        Returns:
            Sentences, the main one first.
        """
        kept = "" if self.kept_share is None else f", {self.kept_share:.1%} of the task vector kept"
        count = sum(facts.wanted > 0 for facts in self.tensors.values())
        changed = f"{count} tensors changed, α = {self.alpha:g}{kept}"
        notes = [f"wrote {self.output}: {changed if self.alpha else 'the new base as it is (α = 0)'}"]
        if self.retained is not None:
            ranks = sorted({facts.rank for facts in self.tensors.values() if facts.rank is not None})
            between = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
            notes.append(f"as an adapter of {between}, {self.retained:.1%} of the squared norm is retained")
        if self.left_out:
            notes.append(f"left out, an adapter has nothing for it: {listed(self.left_out)}")
        if not told:
            notes += self._placed()
        if self.lost_share > 0.01:
            notes.append(
                f"{self.lost_share:.1%} of the changed weights were rounded back by the output's number format; "
                "--dtype float32 or --rounding stochastic keeps them"
            )
        return notes

    def _placed(self) -> list[str]:
        notes = []
        if self.rule:
            notes.append(f"names matched: {self.rule}")
        if self.matched_tokens:
            counts = ", ".join(
                f"{name} {matched} of {rows}" for name, (matched, rows) in self.matched_tokens.items()
            )
            notes.append(f"vocabularies differ; rows matched by token text: {counts}")
        if self.added:
            notes.append(f"copied from the tuned model: {listed(self.added)}")
        if self.dropped:
            notes.append(f"left out of the new base: {listed(self.dropped)}")
        if self.untouched:
            notes.append(f"kept as in the new base, nothing to add: {listed(self.untouched)}")
        notes += self.remarks
        return notes
