"""``gradfix paper``: the paper's tables, and the fine-tunes that they need."""

import typer

from gradfix.cli.command import app, command
from gradfix.cli.console import Console
from gradfix.recipes.paper import PaperFinetuneRecipe, PaperLanguageRecipe, PaperRecipe, PaperVisionRecipe

paper = typer.Typer(
    help="The paper's tables, from ids on the Hub.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(paper, name="paper")


@command(PaperVisionRecipe, paper)
def vision(recipe: PaperVisionRecipe, console: Console) -> None:
    """Measure the table of CLIP models."""
    _table(recipe, console)


@command(PaperLanguageRecipe, paper)
def language(recipe: PaperLanguageRecipe, console: Console) -> None:
    """Measure the table of T5 models."""
    _table(recipe, console)


def _table(recipe: PaperRecipe, console: Console) -> None:
    from gradfix.paper.plan import plan
    from gradfix.paper.study import load_study

    study, folder = load_study(recipe.table, recipe.study)
    tasks = dict(study.chosen(recipe.tasks))
    if recipe.dry_run:
        planned = plan(study, tasks, recipe)
        console.answer("\n".join(planned.lines()))
        console.result(
            {
                "downloads_megabytes": dict(planned.downloads),
                "forward_passes": planned.forward,
                "tasks": list(tasks),
            }
        )
        return
    from gradfix.paper.run import run

    table = run(study, tasks, recipe, folder, tell=console.tell, progress=console.progress)
    console.answer(table.markdown())
    console.say(f"wrote {recipe.output}")
    console.result({"output": str(recipe.output), "tasks": list(table.lines)})


@command(PaperFinetuneRecipe, paper)
def finetune(recipe: PaperFinetuneRecipe, console: Console) -> None:
    """Fine-tune a base on each task."""
    from gradfix.paper.finetune import run
    from gradfix.paper.study import load_study

    study, folder = load_study(recipe.table, recipe.study)
    made = run(study, study.chosen(recipe.tasks), recipe, folder, say=console.say, progress=console.progress)
    console.say(f"wrote {', '.join(map(str, made))}")
    console.result({"output": [str(path) for path in made]})
