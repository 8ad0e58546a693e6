"""What the studies may be told."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from gradfix.recipes.base import Recipe

STUDIES = ("main", "beyond", "masks", "votes", "sampling", "merging", "signs", "pairs", "retention")


class StudiesRecipe(Recipe):
    """Measure the paper's studies on the embedded pair, and write each as a table, raw CSV and figure."""

    command: ClassVar[str] = "studies"
    output: Annotated[
        Path, Field(description="folder for tables; what is finished in it is not measured again")
    ]
    quick: Annotated[bool, Field(description="a small version, in about three minutes")] = False
    study: Annotated[
        list[str], Field(description=f"only this one of {', '.join(STUDIES)}, repeatable; all if not given")
    ] = []
    draws: Annotated[int | None, Field(ge=1, description="support sets a cell; 5, or 2 with --quick")] = None
    test_samples: Annotated[
        int | None, Field(ge=1, description="test images a task; 500, or 200 with --quick")
    ] = None
    jobs: Annotated[int | None, Field(ge=1, description="processes; as many as processors if not given")] = (
        None
    )
    only_write: Annotated[bool, Field(description="measure nothing; write what is finished")] = False
    write_docs: Annotated[
        Path | None, Field(description="also write the page here, and its figures into figures/ beside it")
    ] = None

    @field_validator("study")
    @classmethod
    def _known(cls, study: list[str]) -> list[str]:
        unknown = [name for name in study if name not in STUDIES]
        if unknown:
            raise ValueError(f"expected some of {', '.join(STUDIES)}, found {unknown[0]!r}")
        return study
