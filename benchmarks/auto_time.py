"""How much longer `--method auto` takes than `--method gradfix`, on an encoder of 22 million parameters.

    python benchmarks/auto_time.py

Both transport all-MiniLM-L6-v2's fine-tune to its next release (see language.py) as a user would, on the same five
samples a class, without test data. Compared is processor time, which a busy machine hardly changes.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Literal

import language
from gradfix.transport.pipeline import Transported, transport


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path(tempfile.gettempdir()) / "gradfix-bench-language"
    )
    parser.add_argument("--samples-per-class", type=int, default=5)
    options = parser.parse_args()
    language.prepare(options.workdir, oracle=False)
    seconds = {}
    methods: tuple[Literal["auto", "gradfix"], ...] = "gradfix", "auto"
    for method in methods:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            result = run(options.workdir, method, options.samples_per_class, Path(folder) / "output")
        seconds[method] = time.process_time() - started
        stages = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items() if value > 1)
        print(f"{method}: {seconds[method]:.1f} s of processor time; wall: {stages}", flush=True)
    print(result.record.method.why if result.record.method else "")
    print(f"auto / gradfix: {seconds['auto'] / seconds['gradfix']:.2f}")


def run(work: Path, method: Literal["auto", "gradfix"], budget: int, output: Path) -> Transported:
    """Transport by one method."""
    return transport(
        task="text-classification",
        source_base=work / "old",
        source_tuned=work / "old-tuned",
        target_base=work / "new",
        data=work / "pool.jsonl",
        samples_per_class=budget,
        method=method,
        max_length=32,
        output=output,
    )


if __name__ == "__main__":
    main()
