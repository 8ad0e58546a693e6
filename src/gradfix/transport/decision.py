"""What a transport adds to θ_B: as a recipe says it, or as `methods` chooses it; and the control of the same make."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradfix.alignment import Aligned, require_something
from gradfix.alignment.teacher import Teacher
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import Rows, used_columns
from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes import TransportRecipe
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.tasks.data import row_hash
from gradfix.transport.candidates import Candidate, Choice
from gradfix.transport.context import SelectionContext, Setting, StartingPoint, controls
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import AlphaChoice, split_folds
from gradfix.transport.methods import AddVector, FineTune, MaskVector, Method, Revote
from gradfix.transport.selection import select, training_from
from gradfix.vectors.mask_strategies import find_strategy
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes


@dataclass(frozen=True)
class Decision:
    """A direction, how far to go, and what is known of how they were found.

    Attributes:
        way: How it was made.
        setting: The candidate of it.
        delta: δ.
        control: δ made in the same way from a shuffled τ.
        alpha: α and its curve.
        votes: The votes that masked; None where none did.
        method: What was chosen among what, and why; None where the recipe said it all.
        steps: Losses of re-voting, step by step; None without it.
        known: What α·δ gave on the validation data, by α, as far as it was measured.
    """

    way: Method
    setting: Setting
    delta: TaskVector
    control: TaskVector
    alpha: AlphaChoice
    votes: Votes | None
    method: Choice | None
    steps: list[dict[str, Any]] | None
    known: Mapping[float, Evaluation]

    def kept(self, context: SelectionContext) -> TaskVector:
        """Give δ from a scratch file, for reading that must not count as what was written.

        Args:
            context: On which it was decided.

        Returns:
            A vector of the same values.
        """
        if isinstance(self.way, AddVector | MaskVector):
            return self.way.kept(context, self.setting)
        return context.scratch.keep(self.delta)


def selection_context(
    model: TargetModel,
    support: Rows,
    recipe: TransportRecipe,
    *,
    crossing: bool,
    more: Sequence[Any] = (),
    aligned: Aligned | None = None,
    teacher: Teacher | None = None,
    settings: SelectionSettings = SETTINGS,
    progress: Progress = silent,
) -> SelectionContext:
    """Deal the support set into folds.

    Args:
        model: The target, at θ_B.
        support: The labelled samples.
        recipe: The options.
        crossing: Settings will be chosen by cross-fitting.
        more: Samples that the tuned source labelled.
        aligned: τ in the target's coordinates, where it was aligned.
        teacher: What the tuned source says of inputs, where it was asked.
        settings: The numbers of the selection.
        progress: Told the samples counted.

    Returns:
        The context to decide on, to be entered.

    Raises:
        GradfixError: if settings must be chosen on one sample.
    """
    folds = split_folds(model.task.classes(support), settings.folds, recipe.seed)
    if crossing and len(folds) < 2:
        raise GradfixError(
            "one sample is too few to select α on; give --validation, more samples, or --alpha NUMBER"
        )
    return SelectionContext(
        model,
        support,
        folds if crossing or recipe.steps > 1 else [list(range(len(support)))],
        seed=recipe.seed,
        vote=recipe.vote,
        dtype=recipe.votes_dtype,
        more=more,
        progress=progress,
        settings=settings,
        aligned=aligned,
        teacher=teacher if recipe.method == "auto" else None,
    )


def cross_fitting_doubts(classes: Sequence[int]) -> list[str]:
    """Say what makes a choice by cross-fitting worth less.

    Args:
        classes: The class of each sample of the support set.

    Returns:
        Sentences for people.
    """
    counts = Counter(classes)
    alone = sum(count == 1 for count in counts.values())
    if not alone:
        return []
    return [
        f"{alone} of {len(counts)} classes have one support sample: cross-fitting judges it on votes that never saw "
        "its class, which speaks against every mask; give two a class, --validation, or --alpha"
    ]


def decide(
    context: SelectionContext,
    recipe: TransportRecipe,
    *,
    validation: Rows | None = None,
    alike: float | None = None,
    progress: Progress = silent,
) -> Decision:
    """Find δ and α.

    Args:
        context: The model and its samples.
        recipe: The options.
        validation: Labelled data to select on; without it the support set is cross-fitted.
        alike: How alike the two bases are; None if unknown.
        progress: Told what is being tried.

    Returns:
        The decision; nothing of it was chosen on test data.
    """
    tau = context.model.vector
    encoded = None if validation is None else context.model.encode(validation)
    if recipe.method == "auto":
        choice = select(
            context,
            alike=alike,
            steps=recipe.steps,
            training=recipe.training,
            most_training=recipe.finetune_steps,
            validation=encoded,
            progress=progress,
        )
    else:
        choice = _as_told(context, recipe, encoded, progress)
    way, setting = choice.way, choice.candidate.setting
    delta, alpha = way.build(context, setting)
    control, _ = way.control(controls(tau, context.aligned, recipe.seed)).build(context, setting)
    if isinstance(way, Revote | FineTune):
        # A walk's steps lie in scratch files and don't know where they come from: what made them tells two runs apart.
        made = [row_hash(row, used_columns(context.model.task, row)) for row in context.without(())]
        digest = hashlib.sha256("".join(made).encode()).hexdigest()
        delta = tau.derive(
            delta, operation=way.name, setting=dict(setting), seed=context.seed, samples=digest
        )
    return Decision(
        way,
        setting,
        delta,
        control,
        choice.alpha(alpha),
        way.votes(context),
        choice if recipe.method == "auto" else None,
        choice.steps(),
        choice.candidate.measured,
    )


def _as_told(
    context: SelectionContext,
    recipe: TransportRecipe,
    validation: Any,
    progress: Progress,
) -> Choice:
    """Build the way that the options name; what they leave open is chosen."""
    vector = context.model.vector
    if context.aligned is not None:
        require_something(context.aligned)
        vector = context.aligned.vector
    grid = recipe.alphas() or context.settings.alphas
    way: Method
    if find_strategy(recipe.mask).needs == "nothing":
        # Drawn or kept without asking anybody, so no vote is counted.
        way = AddVector(recipe.mask, _label(recipe), vector=vector, grid=grid, strategy=recipe.mask)
    else:
        naive = AddVector("naive", "naive addition", vector=vector, grid=(1.0,))
        at = StartingPoint(naive, {"alpha": 1.0}) if recipe.vote_at == "naive" else StartingPoint()
        way = MaskVector(
            recipe.mask,
            _label(recipe),
            vector=vector,
            grid=grid,
            at=at,
            strategy=recipe.mask,
            levels=(recipe.confidence,),
        )
    chosen = _settled(context, way, recipe.fixed_alpha(), validation, progress)
    if recipe.steps > 1 and isinstance(way, MaskVector):
        alpha = chosen.candidate.setting["alpha"]
        way = Revote(
            "re-voted",
            f"{way.label} in {recipe.steps} steps",
            vector=vector,
            step=alpha / recipe.steps,
            count=recipe.steps,
            strategy=recipe.mask,
            level=recipe.confidence,
        )
        told = {"alpha": alpha, "steps": float(recipe.steps)} if recipe.fixed_alpha() is not None else None
        chosen = _settled(context, way, told, validation, progress)
    if recipe.finetune_steps:
        start = StartingPoint(chosen.way, chosen.candidate.setting)
        way = replace(
            training_from(start, chosen.candidate, context.settings),
            label=f"{chosen.way.label}, then {recipe.finetune_steps} steps of fine-tuning",
            stops=(recipe.finetune_steps,),
        )
        told = (
            {"learning_rate": way.rates[0], "finetune_steps": float(recipe.finetune_steps)}
            if recipe.fixed_alpha() is not None
            else None
        )
        chosen = _settled(context, way, told, validation, progress)
    return chosen


def _settled(
    context: SelectionContext,
    way: Method,
    told: float | dict[str, float] | None,
    validation: Any,
    progress: Progress,
) -> Choice:
    """Take the setting that was given, or select it."""
    if told is not None:
        setting = told if isinstance(told, dict) else {"alpha": told}
        if isinstance(way, MaskVector) and way.strategy == "confident":
            setting = {**setting, "level": way.levels[0]}
        return Choice(way, Candidate.given(way, setting), (), (), "given", "given")
    candidate = cross_validate(context, way, validation=validation, progress=progress)
    chosen_on = "cross-fit" if validation is None else "validation"
    return Choice(way, candidate, (candidate,), (way,), "the smallest loss", chosen_on)


def _label(recipe: TransportRecipe) -> str:
    return {"none": "naive addition", "agreement": "GradFix"}.get(recipe.mask, f"{recipe.mask} mask")
