"""What `safemerge optimize` adds to the house."""

import argparse

from safemerge.config.program import Program


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="OPTIMIZE.yaml", help="what to merge, by which data")
    parser.add_argument(
        "--results",
        default="results",
        metavar="DIR",
        help="folder for run folders (default: results)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue a run from its last checkpoint"
    )


OPTIMIZE = Program(
    name="optimize",
    help="find a merge's coefficients by data, on Ray Train; write a recipe",
    add_arguments=_add_arguments,
    run="safemerge.optimize.command:run",
    spec="safemerge.optimize.spec:OptimizeSpec",
    marks=frozenset({"optimizer"}),
    method_table="safemerge.optimize.optimizer_table:METHOD_TABLE",
)
