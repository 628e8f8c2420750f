"""What the documents show works: files are valid, commands parse, targets and links exist."""

import io
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import yaml

from safemerge.cli import build_parser
from safemerge.config.document import parse_document
from safemerge.config.metric import TASK_METRICS
from safemerge.config.schema import detect_kind, model_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "design/*.md",
        "cluster/*.md",
        "benchmarks/*.md",
        "results/**/*.md",
        "docs/*.md",
        "docs/files/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md" and "demo/" not in str(path) and not path.is_symlink()
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .+\n)+", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
COMMAND = re.compile(r"\bsafemerge (?=[a-z])[^`#]*")


def blocks(text, *languages):
    return [block for language, block in FENCE.findall(text) if language in languages]


def shown_lines(text):
    """Lines of shell in fences and indented blocks, continued lines joined."""
    prose = FENCE.sub("", text)
    shown = [*blocks(text, "sh", "bash", "console"), *INDENTED.findall(prose)]
    return re.sub(r"\\\n\s*", "", "".join(shown)).splitlines()


def shown(find):
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        found += [(document, item) for item in find(text)]
    return found


def whole(fragment):
    """A part of a study, put into the README's."""
    study = yaml.safe_load(blocks((ROOT / "README.md").read_text(encoding="utf-8"), "yaml")[0])
    if "suites" in fragment and "objectives" not in fragment:
        study.pop("constraints", None)
        document = {**study, **fragment, "objectives": []}
        suite = document["suites"][0]
        kind = suite.get("task", {}).get("kind", "harm")
        main = TASK_METRICS[kind][0]
        metrics = suite.get("lm_eval", {}).get("metrics") or {main.name: main.direction}
        metric, direction = next(iter(metrics.items()))
        objective = {"metric": f"{suite['name']}.{metric}", "direction": direction}
        document["objectives"] = [{**objective, "reference": float(direction == "minimize")}]
        return document
    return {**study, **fragment}


YAML = shown(lambda text: blocks(text, "yaml"))
COMMANDS = shown(
    lambda text: [
        match.group().strip()
        for line in shown_lines(text)
        if (match := COMMAND.search(line.split("  #")[0]))
    ]
)
TARGETS = shown(lambda text: [line for line in shown_lines(text) if re.match(r"\s*make ", line)])
LINKS = shown(LINK.findall)


def named(cases):
    return [f"{document}-{index}" for index, (document, _) in enumerate(cases)]


@pytest.mark.parametrize(("document", "block"), YAML, ids=named(YAML))
def test_every_file_that_a_document_shows_is_valid(document, block):
    shown_file = yaml.safe_load(block)
    keys_of_study = set(model_of("study").model_fields)
    if set(shown_file) <= keys_of_study and "base" not in shown_file:
        shown_file = whole(shown_file)
    kind = detect_kind(shown_file, where=str(document))
    parse_document(shown_file, model_of(kind), where=str(document))


@pytest.mark.parametrize(("document", "command"), COMMANDS, ids=named(COMMANDS))
def test_every_command_that_a_document_shows_is_one(document, command):
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            options = build_parser().parse_args(shlex.split(command)[1:])
        except SystemExit as stopped:
            pytest.fail(f"{document}: {command}: exit {stopped.code}, {said.getvalue()}")
    for value in vars(options).values():
        for file in value if isinstance(value, list) else [value]:
            if isinstance(file, str) and file.startswith("search_spaces/"):
                assert (ROOT / file).is_file(), f"{document}: {command}"


@pytest.mark.parametrize(("document", "line"), TARGETS, ids=named(TARGETS))
def test_every_make_target_that_a_document_shows_exists(document, line):
    targets = re.findall(
        r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    words = line.split("#")[0].split()[1:]
    names = [word for word in words if re.fullmatch(r"[a-z][a-z0-9-]*", word)]
    assert set(names) <= set(targets), document


@pytest.mark.parametrize(("document", "target"), LINKS, ids=named(LINKS))
def test_every_relative_link_leads_somewhere(document, target):
    assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


def test_the_documents_show_files_commands_targets_and_links():
    assert min(len(YAML), len(COMMANDS), len(TARGETS)) >= 3
    assert len(LINKS) >= 30


def test_every_claim_about_security_names_tests_that_exist():
    rows = [
        line
        for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| claim")
    ]
    assert len(rows) >= 10
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert tests, f"a claim without a test: {row}"
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
