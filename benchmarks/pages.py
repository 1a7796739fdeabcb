"""What a page of the report costs, beside papermill alone: each page of a finished run, drawn again, in turns.

    ./run --config scale=smoke
    ./run exec python benchmarks/pages.py

Papermill alone is its command line on the executed notebook: a process, a kernel, the cells. A page is all that a
figures step does with it: papermill, what makes bytes equal, and the HTML, its kernel forked as in a run. The
results stay as they are.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit

from dmdpipe.figures.notebooks import run_notebook
from dmdpipe.forking.server import fork_server

PAGES = "report/*/*/notebook.ipynb"


def main() -> None:
    """Print a line for each page, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="root of the results (results)")
    parser.add_argument("--turns", type=int, default=3, help="how often each is timed (3)")
    options = parser.parse_args()
    if not any(options.results.glob(PAGES)):
        parser.error(f"{options.results}: has no pages; ./run makes them")
    totals = []
    with tempfile.TemporaryDirectory(prefix="pages-") as copy, fork_server():
        for stage in ("report", "verdicts"):
            shutil.copytree(options.results / stage, Path(copy, stage))
        notebooks = sorted(Path(copy).glob(PAGES))
        run_page(notebooks[0])  # the first one waits for the server's imports
        for notebook in notebooks:
            turns = [
                [timeit(partial(run, notebook), number=1) for run in (run_papermill, run_page)]
                for _ in range(options.turns)
            ]
            alone, page = (median(column) for column in zip(*turns, strict=True))
            totals.append((alone, page))
            ratio = page / alone
            print(f"{notebook.parent.name:20} papermill {alone:5.2f} s, page {page:5.2f} s: {ratio:.2f} ×", flush=True)
    alone, page = (sum(column) for column in zip(*totals, strict=True))
    print(f"{len(totals)} pages: papermill {alone:.1f} s, pages {page:.1f} s: {page / alone:.2f} ×")


def run_papermill(notebook: Path) -> None:
    """Execute a notebook by papermill's command line, in its folder."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", notebook.name, "alone.ipynb"]
    subprocess.run(command, cwd=notebook.parent, capture_output=True, check=True)


def run_page(notebook: Path) -> None:
    """Execute a notebook as a figures step does, in its folder, beside what it was made from."""
    source = notebook.with_name("source.ipynb")
    shutil.copy2(notebook, source)
    run_notebook(source, {}, notebook.parent)


if __name__ == "__main__":
    main()
