"""A study as a Workflow Run RO-Crate: its files, and which actions made them from what.

Follows RO-Crate 1.1, Workflow RO-Crate 1.0 and the profiles Process, Workflow and Provenance Run Crate 0.5. Workflow:
the Snakefile. Tool: the script of a rule. Run of a step: a ``CreateAction`` with the parents' files and the values in
its spec as ``object`` and its own files as ``result``. Nothing is read from a clock: equal trees give equal metadata.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts.checked import inside, read_bytes
from dmdpipe.artifacts.manifest import FILE_NAME, RUN_FILE_NAME
from dmdpipe.artifacts.stages import STAGES, find_stage
from dmdpipe.audit.rerun import check_intact
from dmdpipe.audit.tree import Artifact, read_artifact
from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json, digest

if TYPE_CHECKING:
    from rocrate.model import Entity
    from rocrate.rocrate import ROCrate

WORKFLOW = "Snakefile"
RUN_TERMS = "https://w3id.org/ro/terms/workflow-run/context"
COMPLETED = "http://schema.org/CompletedActionStatus"
WORKFLOW_PROFILE = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
PARAMETER_PROFILE = "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
HOMES = {
    "python": "https://www.python.org/",
    "numpy": "https://numpy.org/",
    "scipy": "https://scipy.org/",
    "torch": "https://pytorch.org/",
    "pandas": "https://pandas.pydata.org/",
    "pyarrow": "https://arrow.apache.org/",
    "safetensors": "https://huggingface.co/docs/safetensors/",
    "pydantic": "https://docs.pydantic.dev/",
    "sklearn": "https://scikit-learn.org/",
    "matplotlib": "https://matplotlib.org/",
    "papermill": "https://papermill.readthedocs.io/",
    "snakemake": "https://snakemake.readthedocs.io/",
}
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".py": "text/x-python",
    ".safetensors": "application/octet-stream",
    ".yaml": "application/yaml",
}
VALUE_TYPES = {bool: "Boolean", int: "Integer", float: "Float", str: "Text"}


def write_crate(leaf: Artifact, folder: Path, checkout: Path = Path()) -> Path:
    """Write a crate of a step and of everything that it was made from.

    Args:
        leaf: the evidence step of a study, or the verdicts step for all studies of a run.
        folder: the folder to make; must not exist.
        checkout: where the Snakefile, rules, scripts, configuration, locks and licence lie.

    Raises:
        UserError: if an artifact or a source is missing or damaged, if no step says when it ran, or if ``folder``
            exists or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it or name another folder with --output")
    crate = _Builder(leaf, checkout).crate()
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        crate.write(temporary)
        os.rename(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another with --output") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def steps_above(leaf: Artifact) -> list[Artifact]:
    """Return a step and all that it was made from, each once, parents first, as the manifests say.

    Raises:
        UserError: if one is missing or damaged, or a parent is not the one that its child was made from.
    """
    found: dict[str, Artifact] = {}

    def visit(step: Artifact, path: tuple[str, ...]) -> None:
        if step.folder in path:
            raise UserError(f"{step.path}: its manifest says that it was made from itself; run again")
        for _, parent in sorted(step.manifest.result.parents.items()):
            if parent.folder not in found:
                visit(read_artifact(inside(leaf.results, parent.folder)), (*path, step.folder))
            if found[parent.folder].manifest.result.result_digest != parent.result_digest:
                raise UserError(f"{step.path}: was not made from the {parent.folder} that is there; run again")
        check_intact(step)
        found[step.folder] = step

    visit(leaf, ())
    return list(found.values())


def with_other_code(steps: Iterable[Artifact]) -> list[str]:
    """Return the folders of the steps whose recorded code is not today's."""
    changed = []
    for step in steps:
        stage = find_stage(step.manifest.result.stage)
        if stage.code(stage.parse(step.manifest.result.spec)).digest != step.manifest.provenance.code:
            changed.append(step.folder)
    return changed


def own_values(step: Artifact, parents: Iterable[Artifact]) -> dict[str, Any]:
    """Return the values in a step's spec by dotted key, without those that are a parent's whole spec.

    A list is one value.
    """
    inherited = [parent.manifest.result.spec for parent in parents]

    def walk(tree: Mapping[str, Any], above: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in sorted(tree.items()):
            if isinstance(value, dict) and value:
                values |= {} if value in inherited else walk(value, f"{above}{key}.")
            else:
                values[f"{above}{key}"] = value
        return values

    return walk(step.manifest.result.spec, "")


@dataclass
class _Builder:
    leaf: Artifact
    checkout: Path
    connections: dict[str, list[Entity]] = field(default_factory=dict)

    @cached_property
    def steps(self) -> dict[str, Artifact]:
        return {step.folder: step for step in steps_above(self.leaf)}

    @cached_property
    def stages(self) -> list[str]:
        """The stages of the steps, in the order in which data flow."""
        present = {step.manifest.result.stage for step in self.steps.values()}
        return [name for name in STAGES if name in present]

    @cached_property
    def _crate(self) -> ROCrate:
        from rocrate.rocrate import ROCrate

        crate = ROCrate(version="1.1")
        crate.metadata.extra_contexts.append(RUN_TERMS)
        return crate

    def crate(self) -> ROCrate:
        scripts = [f"workflow/scripts/{stage}.py" for stage in self.stages]
        for name in [WORKFLOW, *self._sources(), *scripts]:
            if not (self.checkout / name).is_file():
                raise UserError(f"{self.checkout / name}: is not there; run this in the folder of your checkout")
        workflow = self._workflow()
        for name in self._sources():
            self._file(name, self.checkout / name, {"name": name})
        for stage in self.stages:
            self._tool(stage)
        actions = [self._action(step) for step in self.steps.values()]
        self._run(workflow, actions)
        self._root(actions)
        self._link_parameters()
        for entity in self._crate.get_entities():
            for key, value in entity.items():
                if isinstance(value, list) and len(value) == 1:
                    entity[key] = value[0]
        return self._crate

    # Entities

    def _add(self, identifier: str, kind: str, /, **properties: Any) -> Entity:
        """Return the contextual entity with this identifier, made if it is new."""
        from rocrate.model import ContextEntity

        return self._crate.get(identifier) or self._crate.add(
            ContextEntity(self._crate, identifier, {"@type": kind, **properties})
        )

    def _file(self, name: str, source: Path, properties: dict[str, Any]) -> Entity:
        described = {"encodingFormat": MEDIA_TYPES.get(source.suffix, "text/plain"), **properties}
        if "sha256" not in described:
            described |= _fingerprint(source)
        return self._crate.add_file(source, name, properties=described)

    def _workflow(self) -> Entity:
        from rocrate.model import ComputerLanguage

        language = ComputerLanguage(
            self._crate,
            "https://w3id.org/workflowhub/workflow-ro-crate#snakemake",
            {"name": "Snakemake", "url": HOMES["snakemake"], "version": version("snakemake")},
        )
        path = self.checkout / WORKFLOW
        return self._crate.add_workflow(
            path,
            WORKFLOW,
            main=True,
            lang=self._crate.add(language),
            properties={
                "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
                "name": "dmdpipe",
                "conformsTo": self._add(WORKFLOW_PROFILE, "CreativeWork", name="ComputationalWorkflow", version="1.0"),
                "encodingFormat": "text/plain",
                **_fingerprint(path),
                "version": version("dmdpipe"),
                "license": self._licence(),
            },
        )

    def _licence(self) -> Entity:
        return self._add(
            "https://spdx.org/licenses/MIT", "CreativeWork", name="MIT License", url="https://spdx.org/licenses/MIT"
        )

    def _sources(self) -> list[str]:
        """The files of the checkout that decide what a run does, apart from the Snakefile, scripts and library."""
        spec = self.leaf.manifest.result.spec
        studies = spec.get("studies") or [spec["study"]]
        configs = ["config.yaml", "claims.yaml", f"scales/{spec['scale']}.yaml"]
        configs += [f"studies/{name}.yaml" for name in studies]
        rules = sorted(path.name for path in (self.checkout / "rules").glob("*.smk"))
        locks = sorted(path.name for path in (self.checkout / "envs").glob("*.txt"))
        return [
            "LICENSE",
            *(f"config/{name}" for name in configs),
            *(f"rules/{name}" for name in rules),
            *(f"envs/{name}" for name in locks),
        ]

    def _software(self, name: str, number: str) -> Entity:
        home = HOMES.get(name)
        page = {"url": home} if home else {}
        return self._add(
            f"{home}#{number}" if home else f"#{name}-{number}",
            "SoftwareApplication",
            name=name,
            version=number,
            **page,
        )

    # The plan: a tool and a step of the workflow for each stage, with what goes in and out

    def _tool(self, stage: str) -> None:
        name = f"workflow/scripts/{stage}.py"
        tool = self._file(
            name,
            self.checkout / name,
            {
                "@type": ["File", "SoftwareSourceCode"],
                "name": f"rule {stage}",
                "description": f"runs {find_stage(stage).entry.replace(':', '.')}",
                "version": version("dmdpipe"),
            },
        )
        step = self._add(
            f"#step/{stage}",
            "HowToStep",
            name=stage,
            position=str(self.stages.index(stage)),
            workExample=tool,
        )
        workflow = self._crate.mainEntity
        workflow.append_to("hasPart", tool)
        workflow.append_to("step", step)

    def _parameter(self, owner: Entity, role: str, name: str, kind: str) -> Entity:
        """Return the formal parameter ``name`` of a tool or of the workflow; ``role`` is input or output."""
        identifier = f"#parameter/{PurePosixPath(owner.id).stem}/{role}/{name}"
        if identifier not in self._crate:
            profile = self._add(PARAMETER_PROFILE, "CreativeWork", name="FormalParameter", version="1.0")
            owner.append_to(
                role, self._add(identifier, "FormalParameter", name=name, additionalType=kind, conformsTo=profile)
            )
        return self._crate.get(identifier)

    # The run: what was done

    def _action(self, step: Artifact) -> Entity:
        result, provenance = step.manifest.result, step.manifest.provenance
        tool = self._crate.get(f"workflow/scripts/{result.stage}.py")
        libraries = {"python": provenance.environment.python, **provenance.environment.libraries}
        for name, number in sorted(libraries.items()):
            _append_once(tool, "softwareRequirements", self._software(name, number))
        parents = [self.steps[folder] for folder in sorted({parent.folder for parent in result.parents.values()})]
        identifier = f"#run/{step.folder}"
        self._add(
            identifier,
            "CreateAction",
            name=f"{result.stage} {PurePosixPath(step.folder).name}",
            description=f"made in: {provenance.environment.name}",
            instrument=tool,
            object=self._values(step, parents, tool) + self._inputs(result.stage, parents, tool),
            result=self._outputs(step, tool),
            actionStatus=COMPLETED,
            identifier=self._digests(identifier, step),
            **_times([step]),
        )
        return self._add(
            f"#control/{step.folder}",
            "ControlAction",
            name=f"orchestration of {step.folder}",
            instrument=self._crate.get(f"#step/{result.stage}"),
            object=self._crate.get(identifier),
        )

    def _digests(self, owner: str, step: Artifact) -> list[Entity]:
        result, provenance = step.manifest.result, step.manifest.provenance
        values = {
            "result digest": result.result_digest,
            "provenance digest": provenance.provenance_digest,
            "code digest": provenance.code,
        }
        return [
            self._add(f"{owner}/{name.replace(' ', '-')}", "PropertyValue", name=name, propertyID=name, value=value)
            for name, value in values.items()
        ]

    def _values(self, step: Artifact, parents: list[Artifact], tool: Entity) -> list[Entity]:
        found = []
        for key, value in own_values(step, parents).items():
            parameter = self._parameter(tool, "input", key, VALUE_TYPES.get(type(value), "Text"))
            said = value if type(value) in VALUE_TYPES else canonical_json(value)
            identifier = f"{parameter.id}/{digest(value)}"
            found.append(self._add(identifier, "PropertyValue", name=key, value=said, exampleOfWork=parameter))
        return found

    def _inputs(self, stage: str, parents: list[Artifact], tool: Entity) -> list[Entity]:
        found = []
        for parent in parents:
            above = parent.manifest.result.stage
            for name in sorted(parent.manifest.result.payload):
                file = self._crate.get(_path(parent, name))
                source = file["exampleOfWork"][0]
                target = self._parameter(tool, "input", f"{above}/{_declared(above, name)}", "File")
                _append_once(file, "exampleOfWork", target)
                connection = self._add(
                    f"#connection/{stage}/{target['name']}",
                    "ParameterConnection",
                    sourceParameter=source,
                    targetParameter=target,
                )
                _append_once(self._crate.get(f"#step/{stage}"), "connection", connection)
                found.append(file)
        return found

    def _outputs(self, step: Artifact, tool: Entity) -> list[Entity]:
        stage = step.manifest.result.stage
        found = []
        for name in sorted(step.manifest.result.payload):
            parameter = self._parameter(tool, "output", _declared(stage, name), "File")
            recorded = step.manifest.result.payload[name]
            properties = {
                "name": f"{step.folder}/{name}",
                "exampleOfWork": [parameter],
                "contentSize": str(recorded.size),
                "sha256": recorded.sha256,
            }
            found.append(self._file(_path(step, name), step.path / name, properties))
        about = {FILE_NAME: "digests of the step's files and of what they were made from", RUN_FILE_NAME: "when, where"}
        for name, description in about.items():
            if (step.path / name).is_file():
                properties = {"name": f"{step.folder}/{name}", "description": description}
                file = self._file(_path(step, name), step.path / name, properties)
                found += [file] if name == FILE_NAME else []
        return found

    def _run(self, workflow: Entity, controls: list[Entity]) -> None:
        configs = [name for name in self._sources() if name.startswith("config/")]
        for name in configs:
            self._crate.get(name)["exampleOfWork"] = self._parameter(workflow, "input", name, "File")
        results = []
        for name in sorted(self.leaf.manifest.result.payload):
            file = self._crate.get(_path(self.leaf, name))
            _append_once(file, "exampleOfWork", self._parameter(workflow, "output", name, "File"))
            results.append(file)
        run = self._add(
            "#run",
            "CreateAction",
            name=f"dmdpipe run of {self.leaf.folder}",
            description="all steps below; steps that were finished already are not run again, so they may be older",
            instrument=workflow,
            object=[self._crate.get(name) for name in configs],
            result=results,
            actionStatus=COMPLETED,
            **_times(self.steps.values()),
        )
        self._add(
            "#organize",
            "OrganizeAction",
            name="Snakemake's run of the workflow",
            instrument=self._software("snakemake", version("snakemake")),
            object=controls,
            result=run,
        )

    def _root(self, controls: list[Entity]) -> None:
        times = _times(self.steps.values())
        if not times:
            raise UserError(
                f"{self.leaf.path}: neither it nor its parents say in {RUN_FILE_NAME} when they ran; run again"
            )
        root = self._crate.root_dataset
        description = (
            f"Every step of {self.leaf.folder}: {len(self.steps)} steps with their files, digests and lineage."
        )
        others = with_other_code(self.steps.values())
        if others:
            description += f" {len(others)} of them were made by other code than the sources in this crate."
        root["name"] = f"dmdpipe: {self.leaf.folder}"
        root["description"] = description
        root["datePublished"] = times["endTime"]
        root["license"] = self._licence()
        root["identifier"] = [
            self._add(f"#{name.replace(' ', '-')}", "PropertyValue", name=name, propertyID=name, value=value)
            for name, value in {
                "result root": self.leaf.manifest.result.result_digest,
                "provenance root": self.leaf.manifest.provenance.provenance_digest,
            }.items()
        ]
        root["conformsTo"] = [
            self._add(identifier, "CreativeWork", name=name, version=number)
            for identifier, (name, number) in PROFILES.items()
        ]
        root["mentions"] = [
            self._crate.get("#run"),
            self._crate.get("#organize"),
            *(control["object"] for control in controls),
        ]

    def _link_parameters(self) -> None:
        """Say at each formal parameter what stands for it: the inverse of ``exampleOfWork``."""
        for entity in list(self._crate.get_entities()):
            parameters = entity.get("exampleOfWork", [])
            for parameter in parameters if isinstance(parameters, list) else [parameters]:
                parameter.append_to("workExample", entity)


def _fingerprint(source: Path) -> dict[str, str]:
    content = read_bytes(source)
    return {"contentSize": str(len(content)), "sha256": hashlib.sha256(content).hexdigest()}


def _path(step: Artifact, name: str) -> str:
    return f"results/{step.folder}/{name}"


def _declared(stage: str, name: str) -> str:
    """Return the name under which the stage declares the file; those that it need not write share one."""
    return name if name in find_stage(stage).payload else "more"


def _append_once(entity: Entity, key: str, value: Entity) -> None:
    present = entity.get(key, [])
    if value not in (present if isinstance(present, list) else [present]):
        entity.append_to(key, value)


def _times(steps: Iterable[Artifact]) -> dict[str, str]:
    """Return ``startTime`` of the first and ``endTime`` of the last step that says so; empty if none does."""
    spans = []
    for step in steps:
        facts = step.run_facts()
        try:
            started = datetime.fromisoformat(facts["started"])
            started = started if started.tzinfo else started.replace(tzinfo=UTC)
            spans.append((started, started + timedelta(seconds=facts["seconds"])))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    if not spans:
        return {}
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    return {"startTime": first.isoformat(timespec="seconds"), "endTime": last.isoformat(timespec="seconds")}
