"""Recipes of the paper's own tables, from ids on the Hub."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gradfix.recipes.base import Recipe
from gradfix.recipes.fields import COMPARED, BatchSize, Output

PAPER_ROWS = ("naive", "permutation", "gradfix", "control", "auto", "few-shot")
"""Rows of the paper's tables that need no fine-tune of the new base, with the control and the default beside them."""


class _Study(Recipe):
    """What every command on a study may be told."""

    study: Annotated[
        Path | None, Field(description="a study file of your own, laid out as the package's (docs/paper.md)")
    ] = None
    tasks: Annotated[list[str], Field(description="repeatable; the paper's own if not given")] = []
    output: Output
    batch_size: BatchSize = 32
    device: Annotated[str, Field(description="cpu, cuda or mps")] = "cpu"


class PaperRecipe(_Study):
    """What both tables may be told."""

    table: ClassVar[str]
    source_tuned: Annotated[
        str | None, Field(description="other fine-tunes of the old base: a place with {task} in it")
    ] = None
    target_tuned: Annotated[
        str | None, Field(description="fine-tunes of the new base, for the bounds: a place with {task} in it")
    ] = None
    methods: Annotated[
        list[str], Field(description=f"rows, repeatable: of {', '.join(COMPARED)}; the paper's if not given")
    ] = []
    validation_samples: Annotated[
        int,
        Field(
            ge=0,
            description="samples of the training data, on which α is chosen, too, as the paper does; 0 for none",
        ),
    ] = 1000
    best_on_test: Annotated[
        bool, Field(description="also each row's best α on the test data, as the authors report it: a bound")
    ] = True
    samples_per_class: Annotated[list[int], Field(description="budgets, repeatable")] = [1, 2, 5, 10]
    seeds: Annotated[int, Field(ge=1, description="draws a budget; 5 is the fewest with intervals")] = 5
    limit: Annotated[int | None, Field(ge=1, description="test samples a task at most, drawn at random")] = (
        None
    )
    dry_run: Annotated[
        bool, Field(description="say what would be downloaded, and about how long it takes")
    ] = False

    @model_validator(mode="after")
    def _places(self) -> "PaperRecipe":
        for name in ("source_tuned", "target_tuned"):
            place = getattr(self, name)
            if place is not None and "{task}" not in place:
                raise ValueError(f"{name}: expected a place with {{task}} in it, found {place!r}")
        return self


class PaperVisionRecipe(PaperRecipe):
    """The paper's table of CLIP models: five image tasks, moved from one pre-training to another."""

    command: ClassVar[str] = "paper vision"
    table: ClassVar[str] = "vision"


class PaperLanguageRecipe(PaperRecipe):
    """The paper's table of T5 models: five tasks of inference, from T5 v1.1 to FLAN-T5."""

    command: ClassVar[str] = "paper language"
    table: ClassVar[str] = "language"
    samples_per_class: Annotated[list[int], Field(description="budgets, repeatable")] = [50]


class PaperFinetuneRecipe(_Study):
    """Fine-tune the old or the new base by the paper's recipe; a run that was ended goes on."""

    command: ClassVar[str] = "paper finetune"
    table: Annotated[Literal["vision", "language"], Field(description="whose tasks")] = "language"
    base: Annotated[Literal["source", "target"], Field(description="the old base, or the new one")] = "source"
    steps: Annotated[int, Field(ge=1, description="of AdamW, under a cosine schedule")] = 2000
    learning_rate: Annotated[float, Field(gt=0, description="at the start")] = 1e-5
    seed: Annotated[int, Field(description="of the order of samples and of dropout")] = 0
