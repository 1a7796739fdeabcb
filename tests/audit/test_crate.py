"""The exported crate, read as plain JSON against the disk and the profiles, and read back with the library."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Tree, plant

from dmdpipe.artifacts.checked import json_text
from dmdpipe.artifacts.manifest import sealed
from dmdpipe.audit.crate import own_values, steps_above, write_crate
from dmdpipe.audit.tree import read_artifact
from dmdpipe.errors import UserError

METADATA = "ro-crate-metadata.json"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5",
    "https://w3id.org/ro/wfrun/workflow/0.5",
    "https://w3id.org/ro/wfrun/provenance/0.5",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
}
# What the profiles require ("MUST") of every entity of a type: which property, and what it points to.
REQUIRED = {
    "CreateAction": {"instrument": {"SoftwareSourceCode"}, "object": {"File", "PropertyValue"}, "result": {"File"}},
    "ControlAction": {"instrument": {"HowToStep"}, "object": {"CreateAction"}},
    "OrganizeAction": {
        "instrument": {"SoftwareApplication"},
        "object": {"ControlAction"},
        "result": {"CreateAction"},
    },
    "HowToStep": {"workExample": {"SoftwareSourceCode"}},
    "ParameterConnection": {"sourceParameter": {"FormalParameter"}, "targetParameter": {"FormalParameter"}},
    "ComputationalWorkflow": {
        "hasPart": {"SoftwareSourceCode"},
        "step": {"HowToStep"},
        "programmingLanguage": {"ComputerLanguage"},
        "input": {"FormalParameter"},
        "output": {"FormalParameter"},
    },
    "FormalParameter": {"workExample": {"File", "PropertyValue"}},
}
REQUIRED_VALUES = {
    "FormalParameter": {"additionalType", "name"},
    "PropertyValue": {"name", "value"},
    "SoftwareApplication": {"name", "version", "url"},
    "CreateAction": {"name", "startTime", "endTime", "actionStatus"},
    "HowToStep": {"position"},
    "File": {"sha256", "contentSize", "encodingFormat", "name"},
}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "@id" in value:
            yield value["@id"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


class Crate:
    """A crate's metadata as plain JSON."""

    def __init__(self, folder: Path):
        self.folder = folder
        graph = json.loads((folder / METADATA).read_text())["@graph"]
        self.entities: dict[str, dict[str, Any]] = {entity["@id"]: entity for entity in graph}
        assert len(self.entities) == len(graph)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [entity for entity in self.entities.values() if kind in as_list(entity["@type"])]

    def linked(self, entity: dict[str, Any], key: str) -> list[dict[str, Any]]:
        links = [link["@id"] for link in as_list(entity.get(key)) if isinstance(link, dict)]
        return [self.entities[link] for link in links if link in self.entities]

    def problems(self) -> list[str]:
        """Everything that breaks the crate's own links, the files on disk or a MUST of the profiles."""
        found = []
        for identifier, entity in self.entities.items():
            # The format itself is named, not described.
            dangling = set(references(entity)) - self.entities.keys() - {"https://w3id.org/ro/crate/1.1"}
            found += [f"{identifier}: {link} is nowhere" for link in dangling]
        for kind, required in REQUIRED.items():
            if not self.of_type(kind):
                found.append(f"there is no {kind}")
            for entity in self.of_type(kind):
                for key, kinds in required.items():
                    targets = self.linked(entity, key)
                    if not targets or any(not kinds & set(as_list(target["@type"])) for target in targets):
                        found.append(f"{entity['@id']}: {key}")
        for kind, keys in REQUIRED_VALUES.items():
            found += [f"{e['@id']}: no {key}" for e in self.of_type(kind) for key in keys if e.get(key) in (None, "")]
        described = set()
        for file in self.of_type("File"):
            path = self.folder / file["@id"]
            described.add(path)
            if not path.is_file() or path.is_symlink():
                found.append(f"{file['@id']}: no such file")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
                found.append(f"{file['@id']}: sha256")
            elif str(path.stat().st_size) != file["contentSize"]:
                found.append(f"{file['@id']}: contentSize")
        undescribed = {path for path in self.folder.rglob("*") if path.is_file()} - described
        found += [f"{path}: not described" for path in undescribed if path.name != METADATA]
        parts = {part["@id"] for part in self.linked(self.entities["./"], "hasPart")}
        return found + [f"{file['@id']}: no part" for file in self.of_type("File") if file["@id"] not in parts]


@pytest.fixture(scope="module")
def crate(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Crate:
    return Crate(write_crate(tree.artifact("studies"), tmp_path_factory.mktemp("crate") / "study", tree.checkout))


def test_a_crate_is_whole_and_keeps_what_its_profiles_require(crate: Crate) -> None:
    assert crate.problems() == []
    root = crate.entities["./"]
    assert {profile["@id"] for profile in crate.linked(root, "conformsTo")} == PROFILES
    assert crate.entities[METADATA]["about"] == {"@id": "./"}
    assert {"https://w3id.org/ro/crate/1.1", "https://w3id.org/workflowhub/workflow-ro-crate/1.0"} == {
        link["@id"] for link in crate.entities[METADATA]["conformsTo"]
    }
    assert root["mainEntity"] == {"@id": "Snakefile"} and root["name"] and root["description"]
    assert crate.linked(root, "license")[0]["name"] == "MIT License"
    (language,) = crate.linked(crate.entities["Snakefile"], "programmingLanguage")
    assert language["name"] == "Snakemake" and language["version"]
    mentioned = {entity["@id"] for entity in crate.linked(root, "mentions")}
    assert {action["@id"] for action in crate.of_type("CreateAction")} <= mentioned


@pytest.mark.parametrize("fault", ["file", "missing", "link", "object", "stray"])
def test_the_check_itself_sees_faults(crate: Crate, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "crate"
    shutil.copytree(crate.folder, folder)
    graph = json.loads((folder / METADATA).read_text())
    runs = [entity for entity in graph["@graph"] if entity["@type"] == "CreateAction"]
    action = next(run for run in runs if run["@id"].startswith("#run/students"))
    if fault == "file":
        (folder / "Snakefile").write_text("another\n")
    elif fault == "missing":
        next(folder.glob("results/pairs/*/pairs.safetensors")).unlink()
    elif fault == "link":
        action["object"].append({"@id": "#nowhere"})
    elif fault == "object":
        del action["object"]
    else:
        (folder / "stray.txt").write_text("who am I?")
    (folder / METADATA).write_text(json.dumps(graph))
    assert len(Crate(folder).problems()) == 1


def test_every_step_is_an_action_from_its_parents_files_and_values_to_its_own(tree: Tree, crate: Crate) -> None:
    folders = {path.parent.relative_to(tree.results).as_posix() for path in tree.results.rglob("manifest.json")}
    runs = {action["@id"] for action in crate.of_type("CreateAction")}
    assert runs == {"#run", *(f"#run/{folder}" for folder in folders)}
    for folder in folders:
        step = read_artifact(tree.results / folder)
        result = step.manifest.result
        action = crate.entities[f"#run/{folder}"]
        assert action["instrument"] == {"@id": f"workflow/scripts/{result.stage}.py"}
        made = {file["@id"] for file in crate.linked(action, "result")}
        assert made == {f"results/{folder}/{name}" for name in (*result.payload, "manifest.json")}
        used = {e["@id"] for e in crate.linked(action, "object") if e["@type"] == "File"}
        parents = [read_artifact(tree.results / parent.folder) for parent in result.parents.values()]
        assert used == {f"results/{p.folder}/{name}" for p in parents for name in p.manifest.result.payload}
        digests = {value["name"]: value["value"] for value in crate.linked(action, "identifier")}
        assert digests == {
            "result digest": result.result_digest,
            "provenance digest": step.manifest.provenance.provenance_digest,
            "code digest": step.manifest.provenance.code,
        }
        span = datetime.fromisoformat(action["endTime"]) - datetime.fromisoformat(action["startTime"])
        assert action["startTime"] == step.run_facts()["started"]
        assert abs(span.total_seconds() - step.run_facts()["seconds"]) <= 1
    roots = {value["name"]: value["value"] for value in crate.linked(crate.entities["./"], "identifier")}
    evidence = tree.artifact("studies").manifest
    assert roots["result root"] == evidence.result.result_digest
    assert roots["provenance root"] == evidence.provenance.provenance_digest


def test_every_value_of_a_spec_stands_at_the_step_that_it_belongs_to(tree: Tree, crate: Crate) -> None:
    student = tree.artifact("students")
    action = crate.entities[f"#run/{student.folder}"]
    values = {e["name"]: e["value"] for e in crate.linked(action, "object") if e["@type"] == "PropertyValue"}
    assert values["seed"] == 0 and values["generator_steps"] == 5 and values["network.kind"] == "mlp"
    assert not [name for name in values if name.startswith("teacher")]  # those stand at the teacher's own step
    teacher = read_artifact(tree.results / student.manifest.result.parents["teacher"].folder)
    above = crate.entities[f"#run/{teacher.folder}"]
    assert ("score.steps", 20) in {(e["name"], e.get("value")) for e in crate.linked(above, "object") if "value" in e}


def test_a_parents_spec_is_left_out_of_a_steps_own_values(tree: Tree) -> None:
    student = tree.artifact("students")
    parents = [read_artifact(tree.results / parent.folder) for parent in student.manifest.result.parents.values()]
    alone, own = own_values(student, []), own_values(student, parents)
    assert own == {key: value for key, value in alone.items() if not key.startswith("teacher.")}
    assert len(own) < len(alone)


def test_equal_trees_give_equal_bytes_whatever_the_hash_seed(tree: Tree, crate: Crate, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dmdpipe.audit.crate import write_crate;"
        "from dmdpipe.audit.tree import read_artifact;"
        "write_crate(read_artifact(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    arguments = [str(tree.folder("studies")), str(tmp_path / "again"), str(tree.checkout)]
    variables = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, *arguments], env=variables, check=True, timeout=120)
    assert (tmp_path / "again" / METADATA).read_bytes() == (crate.folder / METADATA).read_bytes()


def test_the_library_reads_it_back(crate: Crate) -> None:
    from rocrate.rocrate import ROCrate

    read = ROCrate(crate.folder)
    assert read.mainEntity.id == "Snakefile"
    assert {entity.id for entity in read.get_by_type("CreateAction")} == {
        action["@id"] for action in crate.of_type("CreateAction")
    }
    assert len(read.get_by_type("File")) == len(crate.of_type("File"))


def test_a_damaged_artifact_is_refused_and_no_folder_is_left(own_tree: Tree, tmp_path: Path) -> None:
    noise = next(own_tree.results.glob("noise/*/noise.safetensors"))
    content = bytearray(noise.read_bytes())
    content[-1] ^= 1
    noise.write_bytes(bytes(content))
    with pytest.raises(UserError, match="noise.safetensors: was changed"):
        write_crate(own_tree.artifact("studies"), tmp_path / "crate", own_tree.checkout)
    assert list(tmp_path.glob("*crate*")) == []


def test_a_parent_that_is_not_the_recorded_one_is_refused(own_tree: Tree) -> None:
    plant(own_tree.folder("data"), "facts.json", b"{}\n")
    with pytest.raises(UserError, match="was not made from the data/"):
        steps_above(own_tree.artifact("studies"))


def test_a_tree_that_does_not_say_when_it_ran_is_refused(own_tree: Tree, tmp_path: Path) -> None:
    runs = list(own_tree.results.rglob("run.json"))
    for run in runs[1:]:
        run.unlink()
    runs[0].write_text('{"started": "yesterday", "seconds": []}')
    with pytest.raises(UserError, match="when they ran"):
        write_crate(own_tree.artifact("studies"), tmp_path / "crate", own_tree.checkout)


def test_the_command_writes_a_new_folder_or_refuses_in_one_line(
    dmdpipe: Callable[..., Any], tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.checkout)
    arguments = ["audit", "export", "dimension", "--scale", "tiny", "--output", str(tmp_path / "crate")]
    ended = dmdpipe(*arguments)
    assert (ended.status, ended.err) == (0, "") and Crate(tmp_path / "crate").problems() == []
    for again in (
        arguments,
        ["audit", "export", "dimensions"],
        ["audit", "export", "gate", "--results", str(tmp_path)],
    ):
        ended = dmdpipe(*again)
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended


def test_payloads_of_any_size_are_packed_without_being_read_whole(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmdpipe.audit.crate.read_bytes", lambda path: b"" if path.suffix != ".safetensors" else 1 / 0)
    assert write_crate(tree.artifact("studies"), tmp_path / "crate", tree.checkout).is_dir()


def test_a_step_made_from_itself_is_refused(own_tree: Tree) -> None:
    folder = own_tree.folder("data")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["result"]["parents"]["self"] = {
        "folder": folder.relative_to(own_tree.results).as_posix(),
        "result_digest": "0" * 64,
    }
    manifest["provenance"]["parents"]["self"] = "0" * 64
    manifest["result"] = sealed(manifest["result"], "result_digest")
    manifest["provenance"] = sealed(manifest["provenance"], "provenance_digest")
    path.write_text(json_text(manifest))
    with pytest.raises(UserError, match="made from itself"):
        steps_above(read_artifact(folder))


def test_times_without_a_zone_are_taken_as_utc(own_tree: Tree, tmp_path: Path) -> None:
    path = own_tree.folder("studies") / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "started": "2099-01-01T00:00:00", "seconds": 1}))
    crate = write_crate(own_tree.artifact("studies"), tmp_path / "crate", own_tree.checkout)
    assert "2099-01-01T00:00:01+00:00" in (crate / METADATA).read_text()
