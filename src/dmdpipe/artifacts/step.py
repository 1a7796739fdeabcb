"""Running one step: parents checked, payload written in private, then published at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts import manifest as manifests
from dmdpipe.artifacts.atomic import replace_folder, sync_folder, write_synced
from dmdpipe.artifacts.checked import inside, json_text
from dmdpipe.artifacts.disk import failures_told
from dmdpipe.artifacts.environment import current_environment, git_state, lock_digest, peak_memory_mib, user_name
from dmdpipe.artifacts.leaving import signals_as_exit
from dmdpipe.artifacts.links import refuse_links_on_the_way
from dmdpipe.artifacts.plan import Order, read_order
from dmdpipe.artifacts.stages import Stage, find_stage
from dmdpipe.artifacts.tables import decode_table, encode_table
from dmdpipe.artifacts.tensors import decode_tensors, encode_tensors
from dmdpipe.artifacts.ticket import FOLDER as TICKETS
from dmdpipe.artifacts.ticket import Ticket
from dmdpipe.errors import UserError
from dmdpipe.specs.base import digest

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SECONDS_BETWEEN_PROGRESS = 0.5


class Step:
    """One step while it runs: what its function sees.

    Attributes:
        spec: the typed spec.
        label: a readable name.
        folder: a private folder; what the function puts there, and nothing else, is published.
        resume: where checkpoints go (made on the first one). It outlives a killed step, and only a step with
            the same spec, code, parents' results, libraries and instruction set finds it again.
        devices: how many processes may share a training, a device each; they change no byte.
        rank: which of them this is.
        meeting: the folder where the first of them waits for this one; None for the first.
    """

    rank = 0
    meeting: Path | None = None

    def __init__(self, canonical: str, results: Path, devices: int = 1):
        """Check the order and the parents' manifests.

        Raises:
            UserError: if the order is not valid or its code is no longer this code; if a parent is missing,
                was made from another spec, or has a manifest that was tampered with; if the step would have to
                write through a link.
        """
        self._canonical = canonical
        self.order: Order = read_order(canonical)
        self.devices = devices
        self.stage = find_stage(self.order.stage)
        self.spec: Any = self.stage.parse(self.order.spec)
        self.label = self.stage.label(self.spec)
        if self.spec.model_dump(mode="json") != self.order.spec:
            raise UserError(f"{self.stage.name} {self.label}: its spec lacks keys that specs have today; run it anew")
        self.digest = self.stage.digest(self.spec)
        self.code = self.stage.code(self.spec)
        if self.code.digest != self.order.code:
            raise UserError(f"{self.stage.name} {self.label}: its code was edited after the run was planned; run again")
        self.target = inside(results, self.stage.path(self.spec))
        self.parents = {role: self._read_parent(role, results) for role in self.order.parents}
        self._parent_folders = {role: inside(results, parent.folder) for role, parent in self.order.parents.items()}

        self._results = results
        self._ticket: Ticket | None = None
        self._private = results / ".tmp" / f"{self.digest}-{os.getpid()}-{secrets.token_hex(4)}"
        # As deep below the results as the target, so that relative paths to parents hold in both places.
        self.folder = self._private.joinpath(*self.target.relative_to(results).parts[2:])
        self.resume = results / ".resume" / f"{self.digest}-{self._resume_key()}"
        self._resumed = self.resume.exists()
        self._progress_file = results / ".progress" / f"{self.digest}.json"
        self._progress_at = 0.0
        self._done = 0
        self._started = time.time()
        for path in (self.target, self._private.parent, self.resume, self._progress_file, results / TICKETS):
            refuse_links_on_the_way(results, path)

    def _read_parent(self, role: str, results: Path) -> manifests.Manifest:
        declared = self.order.parents[role]
        path = inside(results, declared.folder) / manifests.FILE_NAME
        found = manifests.read_manifest(path)
        if found.result.digest != declared.digest:
            raise UserError(f"{path}: belongs to another spec than the {role} that is needed; delete it and run again")
        return found

    def _resume_key(self) -> str:
        parents = {role: parent.result.result_digest for role, parent in self.parents.items()}
        environment = current_environment(self.code.libraries).model_dump(exclude={"device", "threads"})
        return digest({"order": self.order.model_dump(), "parents": parents, "environment": environment})

    # What the step's function reads

    def read_tensors(self, role: str, name: str) -> dict[str, NDArray[Any]]:
        """Return a parent's tensors by name.

        Raises:
            UserError: if the file is not the one that the parent's manifest describes.
        """
        return decode_tensors(*self._read(role, name))

    def read_table(self, role: str, name: str) -> pd.DataFrame:
        """Return a parent's table; raises as ``read_tensors``."""
        return decode_table(*self._read(role, name))

    def read_json(self, role: str, name: str) -> Any:
        """Return what a parent's JSON file says; raises as ``read_tensors``."""
        data, where = self._read(role, name)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: is no valid JSON; run its step again") from None

    def parent_file(self, role: str, name: str) -> Path:
        """Return the path of a parent's file, for readers that want one; raises as ``read_tensors``."""
        self._read(role, name)
        return self._parent_folders[role] / name

    def _read(self, role: str, name: str) -> tuple[bytes, str]:
        folder = self._parent_folders[role]
        described = self.parents[role].result.payload.get(name)
        if described is None:
            raise UserError(f"{folder / manifests.FILE_NAME}: lists no '{name}'; run this step again")
        return manifests.read_payload(folder, name, described), str(folder / name)

    # What the step's function writes

    def write_tensors(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays by name as safetensors, with the step's stage and spec in the header."""
        self._write(name, encode_tensors(tensors, {"stage": self.stage.name, "spec": self.order.spec}))

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write the columns of a table as parquet."""
        self._write(name, encode_table(table))

    def write_json(self, name: str, value: Any) -> None:
        """Write plain JSON types."""
        self.write_text(name, json_text(value))

    def write_text(self, name: str, text: str) -> None:
        """Write text as UTF-8."""
        self._write(name, text.encode())

    def _write(self, name: str, data: bytes) -> None:
        if name not in self.stage.payload:
            raise ValueError(f"stage {self.stage.name} declares no file {name!r}, only {self.stage.payload}")
        (self.folder / name).write_bytes(data)

    def progress(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` rounds are done, in a small file for whoever shows it."""
        self._done = done
        if time.monotonic() - self._progress_at < SECONDS_BETWEEN_PROGRESS:
            return
        self._progress_at = time.monotonic()
        facts = {
            "stage": self.stage.name,
            "label": self.label,
            "done": done,
            "total": total,
            "started": self._started,
        }
        temporary = self._progress_file.with_suffix(f".{os.getpid()}")
        # No result depends on it, so a full disk does not end a training here.
        with suppress(OSError):
            self._progress_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.unlink(missing_ok=True)
                with temporary.open("x") as file:
                    file.write(json.dumps(facts))
                os.replace(temporary, self._progress_file)
            finally:
                temporary.unlink(missing_ok=True)

    def to_follow(self, rank: int, meeting: Path) -> dict[str, Any]:
        """Return the arguments of the ``FollowingStep`` in another process that shares this step, as JSON types."""
        order = {"canonical": self._canonical, "results": str(self._results.resolve())}
        return order | {"devices": self.devices, "rank": rank, "meeting": str(meeting)}

    # What happens around it

    def _open(self) -> None:
        self._ticket = Ticket(self._results, self.digest)
        self.folder.mkdir(parents=True)

    def _publish(self) -> None:
        written = {path.name for path in self.folder.iterdir()}
        missing = set(self.stage.payload) - written
        if missing or (written != set(self.stage.payload) and not self.stage.more_files):
            raise RuntimeError(
                f"stage {self.stage.name} must write {sorted(self.stage.payload)}, not {sorted(written)}"
            )
        manifest = self._manifest().model_dump(mode="json")
        write_synced(self.folder / manifests.FILE_NAME, json_text(manifest).encode())
        write_synced(self.folder / manifests.RUN_FILE_NAME, json_text(self._run_facts()).encode())
        sync_folder(self.folder)
        assert self._ticket
        with self._ticket.publishing() as is_allowed:
            if not is_allowed:
                raise UserError(f"{self.label}: another job makes this step now; what this one made is thrown away")
            replace_folder(self.folder, self.target)
        for finished in self.resume.parent.glob(f"{self.digest}-*"):
            shutil.rmtree(finished, ignore_errors=True)

    def _close(self) -> None:
        if self._ticket:
            self._ticket.give_back()
        shutil.rmtree(self._private, ignore_errors=True)
        self._progress_file.unlink(missing_ok=True)

    def _manifest(self) -> manifests.Manifest:
        result = {
            "stage": self.stage.name,
            "spec": self.order.spec,
            "digest": self.digest,
            "seeds": manifests.seeds_in(self.order.spec),
            "payload": {path.name: _synced_fingerprint(path) for path in sorted(self.folder.iterdir())},
            "parents": {
                role: {
                    "folder": self.order.parents[role].folder,
                    "result_digest": parent.result.result_digest,
                }
                for role, parent in self.parents.items()
            },
        }
        provenance = {
            "code": self.code.digest,
            "modules": self.code.modules,
            "environment_lock": lock_digest(),
            "environment": current_environment(self.code.libraries).model_dump(),
            "equality": self.stage.equality_of(self.spec).model_dump(),
            "parents": {role: parent.provenance.provenance_digest for role, parent in self.parents.items()},
        }
        return manifests.Manifest.model_validate(
            {
                "result": manifests.sealed(result, "result_digest"),
                "provenance": manifests.sealed(provenance, "provenance_digest"),
            }
        )

    def _run_facts(self) -> dict[str, Any]:
        seconds = time.time() - self._started
        return {
            "started": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "rounds_per_second": round(self._done / seconds, 2) if self._done and not self._resumed else None,
            "peak_memory_mib": peak_memory_mib(),
            "user": user_name(),
            "host": socket.gethostname(),
            "git": git_state(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "resumed": self._resumed,
        }


class FollowingStep(Step):
    """A step in another process than its own (``Step.to_follow``): its function reads the same and writes nothing."""

    def __init__(self, canonical: str, results: str, devices: int, rank: int, meeting: str):
        super().__init__(canonical, Path(results), devices)
        self.rank, self.meeting = rank, Path(meeting)

    def progress(self, done: int, total: int) -> None:
        """Say nothing: the step's own process does."""

    def _write(self, name: str, data: bytes) -> None:
        pass


@contextmanager
def open_step(canonical: str, manifest: Path | str, log: Path | str | None = None, devices: int = 1) -> Iterator[Step]:
    """Open the step that an order describes, for the script of its rule.

    Leaving without an error publishes the folder with its manifest.json and run.json. An error or SIGTERM
    leaves nothing but checkpoints. A ``UserError`` becomes one line on stderr and exit status 1.

    Args:
        canonical: the order, ``PlannedStep.canonical()``.
        manifest: the manifest.json that the rule promises; says where the root of the results is.
        log: file for what goes wrong.
        devices: how many processes may share the step's training.
    """
    try:
        with _running(canonical, _results_root(canonical, Path(manifest)), devices) as step:
            yield step
    except UserError as error:
        if log is None:
            print(f"dmdpipe: {error}", file=sys.stderr)
        else:
            _write_log(log, f"{error}\n")
        raise SystemExit(1) from None
    except Exception:
        _write_log(log, traceback.format_exc())
        raise


def run_step(canonical: str, results: Path | str, devices: int = 1) -> Path:
    """Run one step without Snakemake and return its folder below ``results``.

    Raises:
        UserError: as ``Step``, and whatever the step's function raises; then nothing is published.
    """
    run = function_of(find_stage(read_order(canonical).stage))
    with _running(canonical, Path(results), devices) as step:
        run(step)
    return step.target


def function_of(stage: Stage) -> Callable[[Step], None]:
    """Return a stage's function. Only those of the table are imported, never a name that stands in an order."""
    module, _, function = stage.entry.partition(":")
    found: Callable[[Step], None] = getattr(import_module(module), function)
    return found


@contextmanager
def _running(canonical: str, results: Path, devices: int) -> Iterator[Step]:
    step = Step(canonical, results, devices)
    with signals_as_exit(), failures_told(step.target):
        try:
            step._open()
            yield step
            step._publish()
        except MemoryError:
            raise UserError(f"{step.target}: this step needs more memory than this machine has") from None
        finally:
            step._close()


def _results_root(canonical: str, manifest: Path) -> Path:
    order = read_order(canonical)
    stage = find_stage(order.stage)
    path = Path(stage.path(stage.parse(order.spec)), manifests.FILE_NAME)
    if manifest.parts[-len(path.parts) :] != path.parts:
        raise UserError(f"{manifest}: this step's manifest belongs at {path} below the results; run again")
    return manifest.parents[len(path.parts) - 1]


def _synced_fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size": os.fstat(file.fileno()).st_size,
        }


def _write_log(log: Path | str | None, text: str) -> None:
    if log is None:
        return
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        Path(log).unlink(missing_ok=True)
        with Path(log).open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:  # where a step failed, its log may fail for the same reason
        sys.stderr.write(f"{log} could not be written; it would say:\n{text}")
