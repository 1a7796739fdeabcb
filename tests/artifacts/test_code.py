"""The code digest: what must change it, and what must not."""

from __future__ import annotations

import ast
import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from dmdpipe.artifacts.code import SourceTree, _definitions_in, definitions, own_sources
from dmdpipe.artifacts.dag import plan_run, plan_study, steps_below
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.errors import UserError
from dmdpipe.specs.config import study_names

TOY = {
    "__init__.py": '"""A toy."""\n',
    "specs.py": "COLOUR = 'red'\n",
    "errors.py": "class Problem(Exception): ...\n",
    "unreached.py": "x = 1\n",
    "networks/__init__.py": "",
    "networks/mlp.py": "import torch\n\nWIDTH = 64\n",
    "networks/linear.py": "BIAS = False\n",
    "loop/__init__.py": "from .rate import RATE\n",
    "loop/rate.py": "RATE = 0.1\n",
    "loop/rate.c": '#include "product.h"\n\nint twice(int x) { return 2 * x; }  // why\n',
    "loop/product.h": "/* A\n * product. */\n#include <stdint.h>\n#define TIMES(a, b) ((a) * (b))\n",
    "loop/unreached.h": "#define UNUSED 1\n",
    "loop/late.py": "LATE = True\n",
    "loop/only_types.py": "T = int\n",
    "loop/train.py": '''
from typing import TYPE_CHECKING
import numpy as np
from toy.specs import COLOUR
from ..errors import Problem
if TYPE_CHECKING:
    from toy.loop.only_types import T

def train(x):
    """Train."""
    from toy.loop import late
    return x + 1  # one more
''',
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in TOY.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "toy"


def digest_of(*modules: str) -> str:
    return SourceTree("toy").reach(*modules).digest


def test_reach_is_the_closure_with_the_packages_on_the_way(toy: Path) -> None:
    code = SourceTree("toy").reach("toy.loop.train")
    assert list(code.modules) == ["toy", "toy.loop", "toy.loop.late", "toy.loop.rate", "toy.loop.train"]
    assert code.libraries == ("numpy",)


def test_selected_modules_are_reached_without_their_neighbours(toy: Path) -> None:
    code = SourceTree("toy").reach("toy.loop.train", "toy.networks.mlp")
    assert {"toy.networks", "toy.networks.mlp"} <= set(code.modules)
    assert "toy.networks.linear" not in code.modules
    assert "torch" in code.libraries


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("loop/train.py", "x + 1  # one more", "(x  +\n 1)"),
        ("loop/train.py", '"""Train."""', '"""Train\n\n    longer."""'),
        ("loop/train.py", '    """Train."""\n', ""),
        ("loop/rate.py", "RATE = 0.1", 'RATE = 1e-1\n"""What stands below an attribute."""'),
        ("__init__.py", "A toy", "Another toy"),
        ("loop/only_types.py", "int", "float"),
        ("specs.py", "red", "blue"),
        ("errors.py", "...", "pass"),
        ("unreached.py", "1", "2"),
        ("networks/mlp.py", "64", "65"),
        ("loop/rate.c", "  // why", ""),
        ("loop/rate.c", "{ return", "{\n    /* The double. */\n    return"),
        ("loop/product.h", "A\n * product", "Another // product"),
        ("loop/unreached.h", "1", "2"),
    ],
)
def test_an_edit_that_cannot_matter_keeps_the_digest(toy: Path, module: str, old: str, new: str) -> None:
    before = digest_of("toy.loop.train")
    edit(toy / module, old, new)
    assert digest_of("toy.loop.train") == before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("loop/train.py", "x + 1", "x + 2"),
        ("loop/train.py", "x + 1", "1 + x"),
        ("loop/rate.py", "0.1", "0.2"),
        ("loop/late.py", "True", "1"),
        ("loop/late.py", "True", "'True'"),
        ("__init__.py", '"""A toy."""', "import os"),
        ("loop/rate.c", "2 * x", "3 * x"),
        ("loop/rate.c", "#include", "// #include"),
        ("loop/product.h", "(a) * (b)", "(b) * (a)"),
    ],
)
def test_an_edit_that_can_matter_changes_the_digest(toy: Path, module: str, old: str, new: str) -> None:
    before = digest_of("toy.loop.train")
    edit(toy / module, old, new)
    assert digest_of("toy.loop.train") != before


DEFINITIONS = """
import os
LIMIT = 3
def area(x): return x
@cache
class Disc(Base):
    radius: int = 1
    def grow(self): return self.radius
    class Rim: width = 2
async def late(): pass
if LIMIT: LIMIT = 4
"""


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("return x", "return -x", {"area"}),
        ("return self.radius", "return 2", {"Disc.grow"}),
        ("radius: int = 1", "radius: int = 2", {"Disc"}),
        ("(Base)", "(Other)", {"Disc"}),
        ("@cache", "@lazy", {"Disc"}),
        ("width = 2", "width = 3", {"Disc.Rim"}),
        ("late(): pass", "late(): return", {"late"}),
        ("LIMIT = 3", "LIMIT = 5", {"(module)"}),
        ("LIMIT = 4", "LIMIT = 5", {"(module)"}),
        ("area", "size", {"area", "size", "(module)"}),
        ("def grow", "async def grow", {"Disc.grow"}),
        ("async def late(): pass", "def late(): pass", {"late"}),
        ("import os\n", "", {"(module)"}),
        ("return x", "return x  # why", set()),
        ("radius: int = 1", "'A word.'\n    radius : int=1", set()),
        ("def area(x): return x\n", "def area(x): return x\ndef area(x): return 0\n", {"area", "(module)"}),
    ],
)
def test_an_edit_changes_the_digests_of_the_definitions_that_it_touches(old: str, new: str, changed: set[str]) -> None:
    before, after = definitions(DEFINITIONS), definitions(DEFINITIONS.replace(old, new))
    assert before.keys() == {"area", "Disc", "Disc.grow", "Disc.Rim", "late", "(module)"}
    names = before.keys() | after.keys()
    assert {name for name in names if before.get(name) != after.get(name)} == changed


def test_the_order_of_definitions_counts() -> None:
    before, after = definitions("def a(): ...\ndef b(): ..."), definitions("def b(): ...\ndef a(): ...")
    assert {name for name in before if before[name] != after[name]} == {"(module)"}


def test_the_digests_of_modules_name_the_one_that_changed(toy: Path) -> None:
    before = SourceTree("toy").reach("toy.loop.train").modules
    edit(toy / "loop/rate.py", "0.1", "0.2")
    after = SourceTree("toy").reach("toy.loop.train").modules
    assert [module for module in before if before[module] != after[module]] == ["toy.loop.rate"]


def test_the_digests_of_c_files_stand_with_the_module_beside_them(toy: Path) -> None:
    before = SourceTree("toy").reach("toy.loop.train").modules
    assert before["toy.loop.rate"].keys() == {"(module)", "rate.c", "product.h"}
    edit(toy / "loop/product.h", "TIMES", "PRODUCT")
    after = SourceTree("toy").reach("toy.loop.train").modules
    assert [module for module in before if before[module] != after[module]] == ["toy.loop.rate"]
    changed = {name for name, value in after["toy.loop.rate"].items() if value != before["toy.loop.rate"][name]}
    assert changed == {"product.h"}


def test_a_missing_or_unreadable_c_file_is_one_line(toy: Path) -> None:
    (toy / "loop/product.h").write_bytes(b"\xff")
    with pytest.raises(UserError, match="the code cannot be read"):
        digest_of("toy.loop.train")
    (toy / "loop/product.h").unlink()
    with pytest.raises(UserError, match=r"the code cannot be read.*product\.h"):
        digest_of("toy.loop.train")


def test_a_process_sees_the_code_as_it_first_looked(toy: Path) -> None:
    sources = SourceTree("toy")
    before = sources.reach("toy.loop.train")
    edit(toy / "loop/rate.py", "0.1", "0.2")
    assert sources.reach("toy.loop.train") is before


def test_missing_modules_and_invalid_python_are_named(toy: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="toy.absent"):
        digest_of("toy.absent")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        SourceTree("no_such_package")
    (toy / "unreached.py").write_text("def :\n")
    with pytest.raises(UserError, match="unreached.py"):
        digest_of("toy.loop.train")


def test_the_normalised_source_is_the_same_on_every_python() -> None:
    """Pinned: where a Python parses otherwise, this fails there, before teachers are trained again."""
    source = (
        "def f(x): ...\n"
        "class A:\n    y: int = 1\n"
        "async def g(*, a=None, **k):\n    return f'{a!r:>{3}} {k[\"b\"]}\\n{{}}' + b'x'.hex() + str(1e-3)\n"
        "match [1, *()]:\n    case [1, *_] if True: pass\n"
    )
    assert hashlib.sha256(repr(definitions(source)).encode()).hexdigest()[:16] == "64e4b04762ef3511"


def test_own_code_leaves_the_store_out_of_a_noise_bank() -> None:
    modules = own_sources().reach("dmdpipe.pairing.bank").modules
    assert "dmdpipe.seeds" in modules
    assert not [name for name in modules if name.startswith(("dmdpipe.artifacts", "dmdpipe.specs"))]


NETWORKS = {"mlp.c", "denoiser.h", "mlp.h", "products.h", "arithmetic.h"}
TRAININGS = {*NETWORKS, "learning.h", "noise.c", "noise.h", "optimiser.c", "optimiser.h"}


@pytest.mark.parametrize(
    ("stage", "c_files"),
    [
        ("data", set()),
        ("noise", set()),
        ("teacher", {*TRAININGS, "teacher.c"}),
        ("student", {*TRAININGS, "dmd.c"}),
        ("teacher_samples", NETWORKS),
        ("pairs", NETWORKS),
        ("metrics", {"assignment.c", "distances.c", "arithmetic.h"}),
        ("evidence", {"assignment.c", "distances.c", "arithmetic.h"}),
        ("verdicts", set()),
    ],
)
def test_an_edit_of_a_kernel_touches_the_steps_that_use_it(stage: str, c_files: set[str]) -> None:
    """So new arithmetic in the networks leaves metrics valid, and that of distances leaves trainings valid."""
    run = plan_run({"scale": "smoke", "studies": ["dimension"]}, Path(__file__).parents[2] / "config")
    step = next(step for step in run.steps.values() if step.stage == stage)
    names = {name for definitions_of in step.code.modules.values() for name in definitions_of}
    assert {name for name in names if name.endswith((".c", ".h"))} == c_files


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("content", [b"\xff", b"def (", b"\0", None])
def test_a_source_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "source.py"
    path.symlink_to("nowhere") if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match="the code cannot be read"):
        _definitions_in(path)


NETWORK = {"asyncio", "ftplib", "http", "requests", "smtplib", "socket", "socketserver", "ssl", "urllib", "xmlrpc"}


def test_no_step_of_any_study_can_open_a_connection_by_itself() -> None:
    """What is fetched is fetched before, where there is a network: ``dmdpipe.data.fetching``."""
    steps = [step for name in study_names() for step in steps_below(plan_study(name, "laptop").evidence)]
    codes = [find_stage(step.stage).code(step.spec) for step in steps]
    assert any("dmdpipe.data.fashion" in code.modules for code in codes)
    reached = {module for code in codes for module in code.modules if module.startswith("dmdpipe")}
    assert "dmdpipe.data.fetching" not in reached
    imported = {module: _imported(module) for module in reached}
    assert not {module: names & NETWORK for module, names in imported.items() if names & NETWORK}
    assert _imported("dmdpipe.data.fetching") & NETWORK


def _imported(module: str) -> set[str]:
    """The top-level names of all that a module imports, anywhere in it."""
    spec = find_spec(module)
    assert spec and spec.origin
    nodes = list(ast.walk(ast.parse(Path(spec.origin).read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}
