"""What `safemerge generate` adds to the house."""

import argparse

from safemerge.config.program import Program, add_results


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "spec", metavar="GENERATE.yaml", help="questions, models, judge (see search_spaces/)"
    )
    add_results(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue: whatever was asked already is kept"
    )


GENERATE = Program(
    name="generate",
    help="write refusals and domain samples with the models of a pool",
    add_arguments=_add_arguments,
    run="safemerge.generation.command:run",
    spec="safemerge.generation.spec:GenerateSpec",
)
