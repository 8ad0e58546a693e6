"""How long the report of a model of 400 tensors takes, and how large it is: `python benchmarks/report.py`.

The record is made up, with every section that a transport's report can have; the promise is under 5 seconds and
under 6 MB. The first report of a process also reads plotly.js; both times are printed.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.report.records import transport_record

PER_LAYER = 8


def main() -> None:
    """Build a report twice and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=400, help="tensors of the model")
    arguments = parser.parse_args()
    content = transport_record(layers=arguments.tensors // PER_LAYER)
    started = time.perf_counter()
    from gradfix.report import report
    from gradfix.report.record import TransportRecord
    from gradfix.report.static import card_figures

    imported = time.perf_counter()
    record = TransportRecord.model_validate(content)
    page = report(record)
    first = time.perf_counter()
    report(record)
    second = time.perf_counter()
    pictures = card_figures(record)
    drawn = time.perf_counter()
    print(f"tensors:                {len(content['applied']['tensors'])}")
    print(f"imports:                {imported - started:.2f} s")
    print(f"first report:           {first - imported:.2f} s")
    print(f"another report:         {second - first:.2f} s")
    print(f"pictures of the card:   {drawn - second:.2f} s")
    print(f"report.html:            {len(page.encode()) / 1e6:.2f} MB")
    print(f"pictures:               {sum(map(len, pictures.values())) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
