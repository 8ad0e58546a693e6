"""Where the ``gradfix`` command starts: Ctrl-C has its answer before anything that takes time is imported."""

from gradfix.interrupts import end_at_once


def main() -> None:
    """Run the ``gradfix`` command."""
    end_at_once()
    from gradfix.cli import main as run

    run()


if __name__ == "__main__":
    main()
