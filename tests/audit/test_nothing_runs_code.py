"""The source has no way to run what a file says: no pickle, no eval, no loader that makes objects."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("workflow/**/*.py"), ROOT / "run"])

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "xmlrpc"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "np.fromfile", "numpy.fromfile", "os.system", "os.popen"),
    *("pd.read_pickle", "pandas.read_pickle", "pd.eval", "pd.read_hdf", "yaml.unsafe_load", "yaml.full_load"),
    *("yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all", "yaml.safe_load", "yaml.safe_load_all"),
}
OUR_LOADER = "_Loader"
CONVERTER = ROOT / "src" / "dmdpipe" / "measuring" / "convert.py"


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for such an expression, else an empty text."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def dangers(source: str) -> list[str]:
    """Every import or call in a program that could run what a file says, by its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            said = [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{name.name}" for name in node.names]
            said = [name for name in names if module.split(".")[0] in MODULES or name in CALLS]
        elif isinstance(node, ast.Call):
            said = [name for name in [called(node)] if name]
        elif isinstance(node, ast.Attribute):
            said = [node.attr] if node.attr in ("to_pickle", "__reduce__", "UnsafeLoader") else []
        else:
            said = []
        found += [f"{node.lineno}: {name}" for name in said]
    return found


def called(node: ast.Call) -> str | None:
    name = dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    is_dangerous = (
        name in NAMES
        or name in CALLS
        or (
            name in ("np.load", "numpy.load")
            and "allow_pickle" in given
            and not is_constant(given["allow_pickle"], False)
        )
        or (name == "yaml.load" and dotted(given.get("Loader", ast.Constant(0))) != OUR_LOADER)
        or ("shell" in given and not is_constant(given["shell"], False))
    )
    return name or "shell=" if is_dangerous else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_a_file_says(path: Path) -> None:
    found = dangers(path.read_text(encoding="utf-8"))
    if path == CONVERTER:
        assert [danger.partition(": ")[2] for danger in found] == ["torch.load"]
    else:
        assert found == []


def test_the_one_pickle_that_may_be_opened_is_opened_as_weights_alone() -> None:
    calls = [node for node in ast.walk(ast.parse(CONVERTER.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    (load,) = (node for node in calls if dotted(node.func) == "torch.load")
    assert is_constant({keyword.arg: keyword.value for keyword in load.keywords}["weights_only"], True)


def test_nothing_but_the_command_line_imports_the_converter() -> None:
    importers = [
        str(path.relative_to(ROOT)) for path in SOURCES if "measuring.convert" in path.read_text(encoding="utf-8")
    ]
    assert importers == ["src/dmdpipe/cli.py"]


@pytest.mark.parametrize(
    "program",
    [
        "import pickle",
        "def f():\n    import marshal as m",
        "from shelve import open",
        "from torch import load",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "table.to_pickle(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "yaml.safe_load(text)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_a_planted_danger_is_found(program: str) -> None:
    assert len(dangers(program)) == 1


def test_what_only_looks_like_one_is_not() -> None:
    harmless = "model.eval()\nre.compile(x)\nnp.load(p)\nyaml.load(t, Loader=_Loader)\nsubprocess.run(x, shell=False)"
    assert dangers(harmless) == []
