"""What `safemerge robustness` adds to the house."""

import argparse

from safemerge.config.program import Program, add_results


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "spec", metavar="ROBUSTNESS.yaml", help="models, attacks and suites (a grid of cells)"
    )
    add_results(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue a measurement: finished cells are kept"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        help="run these seeds of the file alone; the others later, with --resume",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the file and its data, then stop"
    )


ROBUSTNESS = Program(
    name="robustness",
    help="attack hardened models by harmful fine-tuning, and measure",
    add_arguments=_add_arguments,
    run="safemerge.robustness.command:run",
    spec="safemerge.robustness.spec:RobustnessSpec",
    marks=frozenset({"attacks", "methods"}),
    report="safemerge.robustness.page:report_of",
)
