"""What a table of the paper consists of: models, data and prompts by id, and the paper's figures, as a file says it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from gradfix.errors import GradfixError, listed, option
from gradfix.text_files import read_yaml, validated

HERE = Path(__file__).parent


def _with_task(place: str) -> str:
    if "{task}" not in place:
        raise ValueError("expected a place with {task} in it")
    return place


Place = Annotated[str, AfterValidator(_with_task)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StudyTask(_Part):
    """One task of a study.

    Attributes:
        data: Labelled data to draw samples from: a Hub id or a path.
        split: Of the data.
        test: Data to judge on, where they are another place.
        test_split: Of the test data.
        configuration: Of a Hub data set that has several.
        columns: The data's column for each role of the task.
        names: What prompts call each label, in the order of classes, where the data's own word says nothing.
        templates: Prompts for zero-shot images; a file of the study's folder.
        prompt: For the row of generated answers: with the columns' names in braces.
        answers: What is to be generated for each label.
        classes: How many classes there are.
        test_samples: How many test samples.
        megabytes: About what the data take.
    """

    data: str
    split: str = "train"
    test: str | None = None
    test_split: str = "test"
    configuration: str | None = None
    columns: dict[str, str] = {}
    names: dict[str, str] = {}
    templates: str | None = None
    prompt: str | None = None
    answers: dict[str, str] = {}
    classes: int
    test_samples: int
    megabytes: float = 0.0


class Study(_Part):
    """A table of the paper.

    Attributes:
        task: Of which kind all its tasks are.
        source_base: The old base.
        source_tuned: Its fine-tunes, with ``{task}``; None where nobody released any.
        target_base: The new base.
        default: The tasks of the paper.
        tasks: All that are known, by name.
        figures: The paper's scores in per cent, by method and task.
        figures_at: Samples a class that they are of.
        notes: How this differs from what the paper did.
        model_megabytes: About what a base, and a fine-tune, take.
        gigaflops: Of one forward pass of one sample.
    """

    task: str
    source_base: str
    source_tuned: Place | None = None
    target_base: str
    default: list[str]
    tasks: dict[str, StudyTask]
    figures: dict[str, dict[str, float]] = {}
    figures_at: int = 2
    notes: list[str] = []
    model_megabytes: tuple[float, float]
    gigaflops: float

    def chosen(self, names: Sequence[str]) -> Mapping[str, StudyTask]:
        """Give some tasks.

        Args:
            names: Which; none for the paper's.

        Returns:
            The tasks by name.

        Raises:
            GradfixError: If there is none of a name.
        """
        unknown = [name for name in names if name not in self.tasks]
        if unknown:
            raise GradfixError(
                f"{option('tasks')} {unknown[0]}: the study has no such task; expected of {listed(self.tasks, 30)}"
            )
        return {name: self.tasks[name] for name in names or self.default}


def load_study(table: str, path: Path | None = None) -> tuple[Study, Path]:
    """Read a study.

    Args:
        table: ``vision`` or ``language``, of the package's own.
        path: A file of the caller's in its place.

    Returns:
        The study, and the folder that its templates are in.

    Raises:
        GradfixError: If the file is not laid out so.
    """
    place = path or HERE / f"{table}.yaml"
    study = validated(Study, read_yaml(place), str(place), "lay it out as the package's own (docs/paper.md)")
    missing = [name for name in study.default if name not in study.tasks]
    if missing:
        raise GradfixError(f"{place}: default: names {listed(missing)}, which is none of its tasks")
    return study, place.parent
