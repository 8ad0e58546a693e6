"""A table of the paper, measured: each figure beside the paper's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradfix.paper.study import Study
from gradfix.recipes.fields import BEST_ON_TEST, BY_VALIDATION
from gradfix.report.numbers import MINUS
from gradfix.report.record import Line


@dataclass(frozen=True)
class PaperTable:
    """What was measured.

    Attributes:
        study: The study.
        lines: The rows of each task's comparison.
        generated: Of each task, the score of the new base's own generated answers, where it was measured.
        command: What was asked for, as JSON.
    """

    study: Study
    lines: Mapping[str, Sequence[Line]]
    generated: Mapping[str, float]
    command: Mapping[str, object]

    def markdown(self) -> str:
        """Write the table.

        Returns:
            A table a budget: methods down, tasks across, each with the paper's figure and the difference where there is
            one; then how this differs from the paper, where the study says so.
        """
        budgets = sorted({line.budget for lines in self.lines.values() for line in lines})
        parts = [self._budget(budget) for budget in budgets]
        if self.study.notes:
            notes = "\n".join(f"- {note}" for note in self.study.notes)
            parts += ["How this differs from the paper:", notes]
        return "\n\n".join(parts) + "\n"

    def _budget(self, budget: int) -> str:
        tasks = list(self.lines)
        found = {
            (line.method, name): line
            for name, lines in self.lines.items()
            for line in lines
            if line.budget == budget
        }
        methods = list(dict.fromkeys(method for method, _ in found))
        labels = {line.method: line.label for line in found.values()}
        comparable = budget == self.study.figures_at
        rows = [f"| {budget} samples a class | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
        for method in methods:
            cells = [self._cell(found.get((method, name)), method, name, comparable) for name in tasks]
            rows.append(f"| {labels[method]} | " + " | ".join(cells) + " |")
        if self.generated:
            cells = [f"{self.generated[name] * 100:.1f}" if name in self.generated else "" for name in tasks]
            rows.append("| new base, answers generated | " + " | ".join(cells) + " |")
        figure = (
            "in brackets the paper's figure and the difference"
            if comparable
            else "the paper has no such column"
        )
        bound = (
            " Rows of the best α on test are chosen on the test data: bounds, no results."
            if any(method.endswith(BEST_ON_TEST) for method in methods)
            else ""
        )
        return "\n".join([*rows, "", f"Accuracy in %, means over draws; {figure}.{bound}"])

    def _cell(self, line: Line | None, method: str, task: str, comparable: bool) -> str:
        if line is None:
            return ""
        score = line.score
        text = f"{score.value * 100:.1f}"
        if score.low is not None:
            text += f" ± {(score.value - score.low) * 100:.1f}"
        plain = method.removesuffix(BEST_ON_TEST).removesuffix(BY_VALIDATION)
        paper = self.study.figures.get(plain, {}).get(task)
        if paper is None or not comparable:
            return text
        return f"{text} ({paper:.1f}, {score.value * 100 - paper:+.1f})".replace("-", MINUS)

    def files(self) -> dict[str, str]:
        """Give the files of the output folder.

        Returns:
            Texts by name.
        """
        content = {
            "command": dict(self.command),
            "study": self.study.model_dump(mode="json"),
            "tasks": {name: [line.plain() for line in lines] for name, lines in self.lines.items()},
            "generated": dict(self.generated),
        }
        return {
            "paper.md": self.markdown(),
            "paper.json": json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
        }
