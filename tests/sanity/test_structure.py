"""Rules about the tree itself: tests mirror modules, files stay small, nothing is local."""

import ast
import importlib
import pickle
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import safemerge
from safemerge.config.document import parse_document, read_yaml
from safemerge.config.schema import detect_kind, model_of
from safemerge.errors import SafemergeError

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "safemerge").rglob("*.py")
    if path.name != "__init__.py"
)
PYTHON = sorted(
    path.relative_to(ROOT)
    for folder in ("safemerge", "tests", "benchmarks", "constraints")
    for path in (ROOT / folder).rglob("*.py")
    if "site-packages" not in path.parts  # environments of peers
)
TESTS = {
    path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))
}
MAX_LINES = 700

THROUGH = {
    "safemerge/api/": "tests/unit/api",
    "safemerge/commands/": "tests/unit/commands",
    "safemerge/generation/on_ray.py": "tests/integration",
    "safemerge/robustness/figure.py": "tests/unit/robustness",
    "safemerge/engines/vllm_backend.py": "tests/integration",
    "safemerge/engines/vllm_plugin.py": "tests/integration",
    "safemerge/merge/card.py": "tests/unit/merge",
    "safemerge/merge/fisher.py": "tests/conformance",
    "safemerge/merge/ram.py": "tests/conformance",
    "safemerge/merge/sce.py": "tests/conformance",
    "safemerge/reports/": "tests/unit/reports",
    "safemerge/search/": "tests/unit/search",
    "safemerge/weights/bus_handler.py": "tests/unit/weights",
}
"""Modules that are tested through their room's public functions: the folder of those tests."""


def named_in_tests():
    """Dotted names of safemerge's modules, and of what is in them, in the tests' texts."""
    found = set()
    for text in (text for path, text in TESTS.items() if path != Path(__file__)):
        for dotted in set(re.findall(r"\bsafemerge(?:\.\w+)+", text)):
            parts = dotted.split(".")
            found.update(".".join(parts[:count]) for count in range(2, len(parts) + 1))
        for package, names in re.findall(r"from (safemerge[\w.]*) import ([^\n]*)", text):
            found.update(f"{package}.{name}" for name in re.findall(r"\w+", names))
    return found


NAMED = named_in_tests()


def mirrored(module):
    """Whether a test file has the module's name, or a test imports it."""
    names = {f"test_{module.stem}", f"test_{module.parent.name}_{module.stem}"}
    if names & {test.stem for test in TESTS}:
        return True
    return ".".join(module.with_suffix("").parts) in NAMED


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_test(module):
    folders = [folder for place, folder in THROUGH.items() if str(module).startswith(place)]
    assert mirrored(module) or any((ROOT / folder).glob("test_*.py") for folder in folders)


def test_every_exception_from_the_mirror_is_still_needed():
    unmirrored = [str(module) for module in MODULES if not mirrored(module)]
    for place in THROUGH:
        assert any(module.startswith(place) for module in unmirrored)


def test_test_files_have_distinct_names():
    stems = [path.stem for path in TESTS]
    assert sorted(stems) == sorted(set(stems))


@pytest.mark.parametrize("file", PYTHON, ids=str)
def test_every_file_is_short_enough_to_be_read(file):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) < MAX_LINES


def test_only_the_command_line_prints():
    printing = {
        str(module)
        for module in MODULES
        for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert all(name.startswith(("safemerge/cli", "safemerge/commands/")) for name in printing)
    assert "safemerge/cli.py" in printing


# --- nothing of one machine -------------------------------------------------------------

# NOTE: written in pieces, so that this file does not hold what it looks for.
LOCAL_PATH = re.compile(
    r"(?<![\w./}$~-])/(?:"
    + "|".join(["w" + "ork", "r" + "oot", "o" + "pt", "tmp/" + "w"])
    + r")\b"
)
REGISTRY = re.compile(
    r"https?://[^\s\"'<>)]*(?:py" + r"pi|python" + r"hosted|artif" + r"actory|nex" + r"us|"
    r"download\.pyt" + r"orch|/sim" + r"ple\b)"
)
PUBLIC = {"Makefile": {"https://download.pyt" + "orch"}}
"""Public addresses that a file may name: asked only where pip finds no CPU build of torch."""


def tracked():
    """Text files that git keeps or would keep."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_file_names_a_place_on_one_machine():
    found = [
        f"{name}: {match.group()}"
        for name, text in tracked()
        for match in LOCAL_PATH.finditer(text)
    ]
    assert found == []


def test_no_file_names_a_package_index():
    found = [
        f"{name}: {match.group()}"
        for name, text in tracked()
        for match in REGISTRY.finditer(text)
        if match.group() not in PUBLIC.get(name, ())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("cd /wo" + "rk/main", True),
        ('path: "/op' + 't/models"', True),
        ("results/wo" + "rk/main", False),
        ("$HOME/op" + "t/x", False),
        ("/wo" + "rker/x", False),
        ("~/r" + "oot", False),
    ],
)
def test_a_local_path_would_be_seen(text, local):
    assert bool(LOCAL_PATH.search(text)) is local


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("--index-url https://py" + "pi.org/sim" + "ple", True),
        ("https://mirror.example/api/py" + "pi/x", True),
        ("http://127.0.0.1:8265", False),
        ("https://arxiv.org/abs/2306.01708", False),
        ("https://json-schema.org/draft", False),
    ],
)
def test_a_package_index_would_be_seen(text, index):
    assert bool(REGISTRY.search(text)) is index


# --- declared files, errors -------------------------------------------------------------

SPACES = sorted(path.relative_to(ROOT) for path in (ROOT / "search_spaces").rglob("*.yaml"))


@pytest.mark.parametrize("file", SPACES, ids=str)
def test_every_shipped_file_is_valid(file):
    document = read_yaml(ROOT / file)
    kind = detect_kind(document, where=str(file))
    spec = parse_document(document, model_of(kind), where=str(file))
    located = spec.located((ROOT / file).parent)
    if kind == "statistics":
        return
    for ref in getattr(located, "checkpoints", None) or [located.base]:
        gather = None if ref.statistics is None else ref.statistics.gather
        for needed in (ref.align, ref.finetune, gather):
            assert needed is None or Path(needed).is_file()


def test_there_are_shipped_files():
    assert Path("search_spaces/demo.yaml") in SPACES


def test_every_error_of_the_package_survives_a_process_border():
    for item in pkgutil.iter_modules(safemerge.__path__):
        if not item.ispkg:
            importlib.import_module(f"safemerge.{item.name}")
    family, pending = set(), [SafemergeError]
    while pending:
        kind = pending.pop()
        family.add(kind)
        pending += kind.__subclasses__()
    assert len(family) >= 12
    for kind in family:
        copy = pickle.loads(pickle.dumps(kind("place: rule; got 1.")))
        assert (type(copy), str(copy)) == (kind, "place: rule; got 1.")
