"""``gradfix demo``: everything on the embedded pair, offline."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.cli.tables import comparison_table
from gradfix.recipes import DemoRecipe


@command(DemoRecipe)
def demo(recipe: DemoRecipe, console: Console) -> None:
    """Show the table, the changed digits, where everything is, and what to type next."""
    from gradfix.demo.pictures import terminal_digits
    from gradfix.demo.run import demo as run

    console.say(
        "A model fine-tuned to read handwritten digits, and a new base that was pre-trained apart from its own:\n"
        "what does its task vector bring there, with a few labelled digits?"
    )
    made = run(recipe.output, overwrite=recipe.overwrite, progress=console.progress)
    console.answer_table(comparison_table(made.lines, made.caption))
    if made.changed:
        console.say("\nWhat the new base said → what the transported model says:\n")
        console.say(terminal_digits(made.changed))
    console.say(f"\n{made.transported.verdict}\n")
    judged = made.close.judgement
    if judged is not None:
        naive = f"naive addition {judged.naive.score:.1%}, " if judged.naive is not None else ""
        console.say(
            "Where the new base is a close release of the old one, the fine-tune itself carries over: "
            f"{naive}the transported model {judged.transported.score:.1%}, "
            f"its control {judged.control.score:.1%}, the new base {judged.base.score:.1%}.\n"
        )
    console.say(
        f"the transported model: {recipe.output / 'model'} (its card and gradfix.json tell how it was made)"
    )
    console.say(f"the report:            {recipe.output / 'report.html'} (opens in any browser, offline)")
    console.say(f"picture and tables:    {recipe.output / 'digits.png'}, table.md, table.csv")
    console.say(f"\nThe same by hand, from the files of the demo:\n\n{made.command}\n")
    console.say(
        "And for your own models:\n\n"
        "gradfix transport --source-base OLD --source-tuned MINE --target-base NEW \\\n"
        "    --task text-classification --support support.jsonl --output MINE-ON-NEW"
    )
    console.result(made.record())
