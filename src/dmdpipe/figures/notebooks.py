"""Run a report notebook: check its parameters, execute it, publish it; equal inputs give equal bytes.

What differs between two executions of a notebook (times, random cell identifiers, absolute paths, warnings
that name files) is taken out; what would differ and cannot be taken out (``object at 0x…``) is refused.
"""

from __future__ import annotations

import os
import sys
import tempfile
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.forking import client

if TYPE_CHECKING:
    from nbformat import NotebookNode

_MEMORY_ADDRESS = " object at 0x"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 "DejaVu Sans", Verdana, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
  padding: 0 1.2rem }}
p, ul, ol {{ max-width: 46rem }}
h1 {{ font-size: 1.7rem; line-height: 1.25 }}
h2 {{ font-size: 1.25rem; margin-top: 2.2rem }}
img {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse }}
pre {{ background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .8rem }}
.anchor-link, .input {{ display: none }}
#code:checked ~ main .input {{ display: block }}
label {{ color: #6b6b6b; font-size: .85rem; cursor: pointer }}
</style>
</head>
<body>
<input type="checkbox" id="code"><label for="code"> show the code</label>
<main>
{body}
</main>
</body>
</html>
"""


def run_notebook(
    source: Path,
    parameters: dict[str, Any],
    folder: Path,
    log: Path | None = None,
    timeout: int = 600,
    title: str | None = None,
) -> None:
    """Execute a notebook in ``folder`` and write ``<stem>.ipynb`` and ``<stem>.html`` there.

    The kernel is this Python, whatever kernels are installed, in an empty IPython profile; it works in
    ``folder``, so that a notebook's own relative paths (its figures) lie there. A parameter that is a
    ``Path`` is handed over relative to ``folder``: the executed notebook names no absolute path and can be
    run again where it lies.

    Args:
        source: the notebook, with a cell tagged ``parameters``.
        parameters: values for names that this cell assigns: paths, numbers, text.
        folder: made if it is missing.
        log: where to keep the raw executed notebook; without it, it is kept only after a failure, in
            ``folder`` as ``<stem>.failed.ipynb``.
        timeout: longest time for one cell in seconds.
        title: of the page; made from the notebook's name if left out.

    Raises:
        UserError: the notebook is missing, has no such parameter, fails, or shows the address of an object.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    if not source.is_file():
        raise UserError(f"{source}: no such notebook")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _check_parameters(source, parameters)
    relative = {
        name: _relative(value, folder) if isinstance(value, Path) else value for name, value in parameters.items()
    }
    with tempfile.TemporaryDirectory(prefix="dmdpipe-") as private:
        raw = Path(private) / "raw.ipynb"
        try:
            papermill.execute_notebook(
                str(source),
                str(raw),
                parameters=relative,
                cwd=str(folder),
                kernel_manager_class=_kernel_manager(Path(private)),
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=timeout,
            )
        except papermill.PapermillExecutionError as error:
            kept = _keep(raw, log or folder / f"{source.stem}.failed.ipynb")
            raise UserError(
                f"{source}: cell {error.cell_index + 1} failed: {error.ename}: {_first_line(error.evalue)}; "
                f"the executed notebook is {kept}"
            ) from error
        except (CellTimeoutError, DeadKernelError) as error:
            kept = _keep(raw, log or folder / f"{source.stem}.failed.ipynb")
            raise UserError(f"{source}: stopped: {_first_line(str(error))}; the executed notebook is {kept}") from error
        notebook = _read(raw)
        if log is not None:
            _keep(raw, log)
    _publish(normalise(notebook, source, folder), source, folder, title)


def normalise(notebook: NotebookNode, source: Path, folder: Path) -> NotebookNode:
    """Return an executed notebook without what differs between two executions on the same inputs.

    Left out: papermill's and the kernel's metadata, times, random cell identifiers (numbered instead) and
    standard error. Absolute paths of the folder and of the Python environment are shortened.

    Raises:
        UserError: an output shows the address of an object in memory.
    """
    import nbformat

    cells = []
    for number, cell in enumerate(notebook.cells):
        kept = nbformat.from_dict({**cell, "id": f"cell-{number}", "metadata": {}})
        if tags := cell.metadata.get("tags"):
            kept.metadata["tags"] = tags
        if cell.cell_type == "code":
            kept.outputs = [
                _shorten(output, folder)
                for output in cell.outputs
                if not (output.output_type == "stream" and output.name == "stderr")
            ]
            if _MEMORY_ADDRESS in str(kept.outputs):
                raise UserError(
                    f"{source}: cell {number + 1} shows an object's address (…{_MEMORY_ADDRESS}…): "
                    "it differs in every run; show something else, or end the line with a semicolon"
                )
        cells.append(kept)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def to_html(notebook: NotebookNode, title: str) -> str:
    """Return one page that needs no network: text, tables and figures, the code behind a check box."""
    from nbconvert.exporters import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(notebook)
    return _PAGE.format(title=escape(title), body=body.strip())


def _check_parameters(source: Path, parameters: dict[str, Any]) -> None:
    import papermill

    known = papermill.inspect_notebook(str(source))
    for name in parameters:
        if name not in known:
            raise UserError(f"{source}: the notebook has no parameter '{name}'{did_you_mean(name, known)}")


def _kernel_manager(private: Path) -> type:
    """Return a kernel manager for this Python, on sockets in a private folder: kernels run side by side never
    race for a port, and no other user can reach them. A server that starts steps starts the kernel, too."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    # Agg, because the inline backend would display figures a second time.
    environment = {"IPYTHONDIR": str(private / "ipython"), "MPLBACKEND": "agg"}
    launcher = find_spec("ipykernel_launcher")
    assert launcher and launcher.origin
    start = [sys.executable, "-I", "-S", client.__file__, sys.executable, launcher.origin]
    argv = [*start, "-f", "{connection_file}", "--log-level=CRITICAL"]
    spec = KernelSpec(argv=argv, env=environment, display_name="Python 3", language="python")

    class PrivateKernel(AsyncKernelManager):
        kernel_spec = spec

        def __init__(self, **kwargs: Any) -> None:
            connection = str(private / "kernel.json")
            super().__init__(**{**kwargs, "transport": "ipc", "connection_file": connection})

    return PrivateKernel


def _publish(notebook: NotebookNode, source: Path, folder: Path, title: str | None) -> None:
    import nbformat

    nbformat.validate(notebook)
    (folder / f"{source.stem}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    page = to_html(notebook, title=title or source.stem.replace("_", " "))
    (folder / f"{source.stem}.html").write_text(page, encoding="utf-8")


def _read(path: Path) -> NotebookNode:
    import nbformat

    return nbformat.read(path, as_version=4)


def _keep(raw: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(raw.read_bytes())
    return place


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()


def _shorten(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value.replace(str(folder), ".").replace(sys.prefix, "<environment>")
    if isinstance(value, list):
        return [_shorten(item, folder) for item in value]
    if isinstance(value, dict):
        return type(value)({name: _shorten(item, folder) for name, item in value.items()})
    return value


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0] if text.strip() else "no message"
