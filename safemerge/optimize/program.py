"""What `safemerge optimize` adds to the house."""

import argparse

from safemerge.config.program import Program, add_results


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="OPTIMIZE.yaml", help="what to merge, by which data")
    add_results(parser)
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
