from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import nbformat
import planted
import pytest

from dmdpipe.artifacts.tables import encode_table
from dmdpipe.errors import UserError
from dmdpipe.figures.notebooks import normalise, run_notebook, to_html
from dmdpipe.forking import client
from dmdpipe.forking.server import fork_server

REPORTS = Path(__file__).parents[2] / "reports"
NAMES = ["gate", "overview", "start_quality", "study"]


def write_notebook(path: Path, *cells: str) -> Path:
    made = [nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]
    made[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=made)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def executed(*outputs: dict) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.from_dict(output) for output in outputs])
    return nbformat.v4.new_notebook(cells=[cell])


def stream(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def test_equal_inputs_give_equal_bytes_in_any_folder(tmp_path: Path) -> None:
    source = write_notebook(
        tmp_path / "tiny.ipynb",
        'table = "x.csv"\nword = "no"',
        "import os, sys, warnings\nwarnings.warn('loud')",
        "print(os.getcwd(), sys.prefix, open(table).read(), word)",
    )
    written = []
    for place in (tmp_path / "a", tmp_path / "b" / "deeper"):
        place.mkdir(parents=True)
        (place / "in.csv").write_text("42")
        folder = place / "out"
        run_notebook(source, {"table": place / "in.csv", "word": "yes"}, folder, log=place / "log.ipynb")
        assert sorted(path.name for path in folder.iterdir()) == ["tiny.html", "tiny.ipynb"]
        written.append([(folder / name).read_bytes() for name in ("tiny.ipynb", "tiny.html")])
        assert "loud" in (place / "log.ipynb").read_text()
    assert written[0] == written[1]
    text = written[0][0].decode()
    assert ". <environment> 42 yes" in text
    assert str(tmp_path) not in text
    assert "stderr" not in text


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the server only starts on Linux")
def test_a_kernel_from_the_server_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.ADDRESS, raising=False)
    source = write_notebook(
        tmp_path / "n.ipynb",
        "scale = 1",
        "import os, sys\nfrom dmdpipe.figures import style\nwith open('../forked', 'a') as file:"
        "\n    print('torch' in sys.modules, file=file)",
        "import pandas\nfigure = style.styled(style.new_figure)(3, 2)\nfigure.add_subplot().plot([1, scale])\n"
        "style.save_figure(figure, '.', 'a', pandas.DataFrame({'x': [scale]}))",
    )
    run_notebook(source, {"scale": 2}, tmp_path / "alone")
    with fork_server():
        run_notebook(source, {"scale": 2}, tmp_path / "server")
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == ["a.csv", "a.pdf", "a.png", "n.html", "n.ipynb"]
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "server" / name).read_bytes()
    assert (tmp_path / "forked").read_text() == "False\nTrue\n"


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "n.ipynb", 'results = "r"', "open('ran', 'w').close()")
    with pytest.raises(UserError, match=r"no parameter 'result' \(did you mean 'results'\?\)"):
        run_notebook(source, {"result": "x"}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_crash_names_the_cell_and_keeps_the_notebook(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "n.ipynb", "a = 1", "print('so far')", "raise ValueError('boom')")
    with pytest.raises(UserError, match=r"n\.ipynb: cell 3 failed: ValueError: boom; .*log\.ipynb") as caught:
        run_notebook(source, {}, tmp_path / "out", log=tmp_path / "log.ipynb")
    assert "\n" not in str(caught.value)
    assert "so far" in (tmp_path / "log.ipynb").read_text()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such notebook"):
        run_notebook(tmp_path / "none.ipynb", {}, tmp_path)


def test_an_objects_address_is_refused() -> None:
    shown = stream("stdout", "<thing object at 0x7f12>")
    with pytest.raises(UserError, match="cell 1 shows an object's address"):
        normalise(executed(shown), Path("n.ipynb"), Path("/out"))


def test_normalising_keeps_results_and_drops_what_differs() -> None:
    book = executed(stream("stdout", "at /out/x"), stream("stderr", "at /out/y"))
    book.cells[0].metadata = nbformat.from_dict({"papermill": {"duration": 1.2}, "tags": ["kept"]})
    book.metadata["papermill"] = {"start_time": "now"}
    plain = normalise(book, Path("n.ipynb"), Path("/out"))
    assert [output.text for output in plain.cells[0].outputs] == ["at ./x"]
    assert plain.cells[0].metadata == {"tags": ["kept"]}
    assert "papermill" not in json.dumps(plain)
    nbformat.validate(plain)


def test_the_page_needs_no_network_and_folds_the_code_away() -> None:
    book = executed(stream("stdout", "shown"))
    book.cells.insert(0, nbformat.v4.new_markdown_cell("# Heading with ρ"))
    page = to_html(book, "a < b")
    assert "shown" in page
    assert "Heading with ρ" in page
    assert "<title>a &lt; b</title>" in page
    assert "<script" not in page
    assert not re.search(r"https?://|<link|@import|src=\"(?!data:)", page)
    assert ".input { display: none }" in page


@pytest.mark.parametrize("name", NAMES)
def test_report_notebooks_are_clean_and_captioned(name: str) -> None:
    text = (REPORTS / f"{name}.ipynb").read_text(encoding="utf-8")
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert code[0].metadata["tags"] == ["parameters"]
    if name != "study":  # which shows the study's own title
        assert book.cells[0].source.startswith("# ")
    caption = jinja2.Template((REPORTS / "page.rst").read_text(encoding="utf-8"))
    step = SimpleNamespace(wildcards=SimpleNamespace(step=f"laptop/{name}"))
    assert caption.render(snakemake=step).strip().endswith(".")
    prose = " ".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert "ΔE" not in prose or "reconstruction" in prose


def test_every_report_notebook_is_tested() -> None:
    assert sorted(path.stem for path in REPORTS.glob("*.ipynb")) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("smoke", [True, False])
def test_report_notebooks_run(tmp_path: Path, name: str, smoke: bool) -> None:
    parameters = {"scale": "smoke", "results": tmp_path / "results.parquet"}
    parameters["results"].write_bytes(encode_table(planted.results(1 if smoke else 3, smoke)))
    judged = {"verdicts": planted.verdicts(), "criteria": planted.criteria()}
    tables = {
        "overview": {**judged, "sensitivity": planted.sensitivity()},
        "study": {**judged, "gallery": planted.gallery()[: 0 if smoke else None]},
    }
    if name == "study":
        parameters["study"] = planted.study_page("dimension" if smoke else "start").model_dump(mode="json")
        tables["study"]["training"] = planted.training()
    for key, table in tables.get(name, {}).items():
        parameters[key] = tmp_path / f"{key}.parquet"
        parameters[key].write_bytes(encode_table(table))
    run_notebook(REPORTS / f"{name}.ipynb", parameters, tmp_path / "out")
    page = (tmp_path / "out" / f"{name}.html").read_text(encoding="utf-8")
    nothing = "No run of this kind at this scale." in page
    assert nothing == (smoke and name == "study")
    assert ("<img" in page) == (name == "study" or not nothing)
    assert name != "study" or '<h1 id="Planted' in page
    assert not re.search(r"https?://", page)
