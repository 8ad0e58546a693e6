"""What records consist of, each part defined once: made from a result, written as JSON, read back by pages and cards.

A part is made from the result it tells of: ``Judgement.model_validate(judgement)`` takes the attributes of the same
names. Fields with a default are those that an earlier record of the same version may lack.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Square = Annotated[float, Field(ge=0)]
"""A sum of squares."""
Seconds = Annotated[float, Field(ge=0, le=1e9)]
"""Wall time; thirty years are damage."""


class Part(BaseModel):
    """A part of a record: JSON on a disk, or the attributes of a result."""

    model_config = ConfigDict(from_attributes=True, extra="ignore", protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """Give what ``json.dumps`` takes.

        Returns:
            Every field by name.
        """
        return self.model_dump(mode="json")


class Interval(Part):
    """A value with its 95 % interval, as :class:`gradfix.evaluation.intervals.Interval` says it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int
    method: str

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is beyond chance: both ends are on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Evaluation(Part):
    """One model on one data set, without each sample's values; see :class:`gradfix.evaluation.evaluate.Evaluation`."""

    task: str
    metric: str
    n: int
    score: float
    interval: Interval
    loss: float
    truncated: int
    seconds: Seconds
    also: dict[str, float] = {}


class EvaluatedSamples(Evaluation):
    """The same with the values of each sample."""

    scores: list[float]
    losses: list[float]
    predictions: list[Any]


class Judgement(Part):
    """See :class:`gradfix.evaluation.judgement.Judgement`."""

    data: str
    base: Evaluation
    naive: Evaluation | None = None
    transported: Evaluation
    control: Evaluation
    gain: Interval
    over_control: Interval
    over_naive: Interval | None = None


class Input(Part):
    """A model that a result is made from.

    Attributes:
        location: Hub id or path.
        sha256: Over its weights.
        license: As its own card says it.
        hub: The Hub id that a directory is a copy of, or was trained from, as far as it says so.
    """

    location: str
    sha256: str
    license: str | None = None
    hub: str | None = None


class Sample(Part):
    """A sample of the support set.

    Attributes:
        row: Where it is from.
        sha256: Over the columns that were used.
    """

    row: str
    sha256: str


class Finding(Part):
    """See :class:`gradfix.transport.checks.Finding`."""

    level: str
    text: str


class Check(Part):
    """See :class:`gradfix.transport.checks.Findings`."""

    ok: bool
    findings: list[Finding]
    cosine_tuned: float | None
    cosine_target: float | None
    relative_norm: float | None
    output_bytes: int | None
    seconds: Seconds | None


class Stability(Part):
    """See :class:`gradfix.votes.stability.Stability`."""

    split_half: float
    redraw: float
    coordinates: int
    settling: list[tuple[int, float]]

    @property
    def mask_change(self) -> tuple[float, float]:
        """Range within which the share of signs lies that another draw of as many samples would change."""
        low, high = sorted((1 - self.redraw, 1 - self.split_half))
        return low, high


class Votes(Part):
    """The votes that masked.

    Attributes:
        vote: ``majority`` or ``mean``.
        samples: N.
        tie_rate: Share of coordinates with as many votes for plus as for minus.
        uncovered: Parameters without votes.
        counted_plainly: Why a parameter was counted one sample at a time, by name.
        stability: How sure the signs are; None for what is no count, and for one sample.
    """

    vote: str
    samples: int
    tie_rate: float
    uncovered: list[str]
    counted_plainly: dict[str, str]
    stability: Stability | None = None


class Candidate(Part):
    """One method with its best setting; see :class:`gradfix.transport.candidates.Candidate`."""

    name: str
    label: str
    alpha: float | None = None
    setting: dict[str, float] = {}
    loss: float
    calibrated_loss: float | None = None
    score: float


class RunnerUp(Part):
    """The best of the methods that were not chosen.

    Attributes:
        name: The candidate's.
        label: What people read.
        over: The chosen method's score minus its, paired by sample.
    """

    name: str
    label: str
    over: Interval


class Method(Part):
    """Which method ``auto`` took.

    Attributes:
        name: Of the candidate that was chosen.
        why: A sentence.
        chosen_on: ``validation`` or ``cross-fit``.
        candidates: All that were tried, in that order.
        runner_up: The next best; None in older records.
    """

    name: str
    why: str
    chosen_on: str = "cross-fit"
    candidates: list[Candidate]
    runner_up: RunnerUp | None = None


class Alignment(Part):
    """How the task vector was carried over to the target's coordinates.

    Attributes:
        method: As ``regression``.
        inputs: On how many inputs.
        held_out: Whether the residuals are of inputs that did not shape it.
        added: Whether what was added to the target comes of it; that it was there to choose does not say so.
        tensors: What is known of each tensor.
    """

    method: str
    inputs: int = 0
    held_out: bool = False
    added: bool = True
    tensors: dict[str, dict[str, float | int | str | None]]


class Observation(Part):
    """What was seen of the source.

    Attributes:
        inputs: On how many inputs it was run.
        input_classes: Of how many classes these are; None where they have no labels.
        predicted_classes: How many classes the tuned source sees in them.
        similarity: Cosine of the two bases' weights.
        source_on_support: The tuned source on the labelled samples.
        unlabelled: How many inputs it was to label, or answers it was to write.
        labelled_by_source: Of how many it was sure, or how many it wrote; these voted.
    """

    inputs: int
    input_classes: int | None = None
    predicted_classes: int | None = None
    similarity: float | None
    source_on_support: Evaluation | None
    unlabelled: int
    labelled_by_source: int


class Step(Part):
    """The model after one step of voting anew.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss a sample.
        score: Mean score.
        kept: Share of the task vector kept; None where it was not counted.
    """

    step: int
    loss: float
    score: float | None = None
    kept: float | None = None


class AlphaPoint(Part):
    """See :class:`gradfix.transport.folds.AlphaPoint`."""

    alpha: float
    loss: float
    score: float


class Alpha(Part):
    """See :class:`gradfix.transport.folds.AlphaChoice`."""

    alpha: float
    chosen_on: str
    samples: int = 0
    curve: list[AlphaPoint] = []

    def at(self, alpha: float) -> AlphaPoint | None:
        """Find what a candidate gave.

        Args:
            alpha: The candidate.

        Returns:
            Its point; None where it was not measured.
        """
        return next((point for point in self.curve if point.alpha == alpha), None)


class Descent(Part):
    """See :class:`gradfix.evaluation.certificate.Descent`."""

    alpha: float
    predicted: float
    measured: float


class Certificate(Part):
    """See :class:`gradfix.evaluation.certificate.Certificate`."""

    slope: float
    loss: float
    steps: list[Descent]


class Picture(Part):
    """An image of an example, as ``data:`` address."""

    image: str


class Turn(Part):
    """What one side of a conversation says."""

    role: str
    content: str


class Example(Part):
    """An input whose prediction changed.

    Attributes:
        row: Where it is from.
        input: Text, picture or conversation by role.
        label: The right answer.
        before: The new base's answer.
        after: The transported model's.
        was_right: Whether the new base was right.
        is_right: Whether the transported model is.
        shares: How much of the answer each of the two has right, where answers are right in parts (of tokens).
    """

    row: str
    input: dict[str, str | Picture | list[Turn]]
    label: str
    before: str
    after: str
    was_right: bool
    is_right: bool
    shares: tuple[float, float] | None = None


class Examples(Part):
    """Predictions that changed.

    Attributes:
        fixed: From wrong to right, or where answers are right in parts: better than before.
        broken: From right to wrong, or worse.
        other: From one wrong answer to another, or as good as before.
        shown: Some of them.
    """

    fixed: int
    broken: int
    other: int
    shown: list[Example]


class TensorFacts(Part):
    """See :class:`gradfix.vectors.applied.TensorFacts`."""

    coordinates: Count
    nonzero: Count | None = None
    kept: Count | None = None
    square: Square | None = None
    kept_square: Square | None = None
    wanted: Count = 0
    lost: Count = 0
    voted: Count | None = None
    tied: Count | None = None
    net: int | None = None
    rank: Count | None = None
    retained: float | None = None


class Applied(Part):
    """What was written; see :class:`gradfix.vectors.applied.Applied`."""

    output: str = ""
    alpha: float
    tensors: dict[str, TensorFacts]
    untouched: list[str] = []
    added: list[str] = []
    dropped: list[str] = []
    rule: str | None = None
    matched_tokens: dict[str, tuple[int, int]] = {}
    seconds: Seconds
    kept_share: float | None
    lost_share: float
    left_out: list[str] = []
    retained: float | None = None


class Options(Part):
    """The few options of a recipe that pages speak of; a command without one leaves it None."""

    task: str | None = None
    source_tuned: str | None = None
    target_base: str | None = None
    test: str | None = None
    method: str | None = None
    mask: str | None = None
    output_format: str | None = None
    dtype: str | None = None
    device: str | None = None
