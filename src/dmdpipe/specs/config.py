"""Reading the configuration folder: which studies exist, at which scales, and which are to be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.grid import Member, expand
from dmdpipe.specs.problems import parse, read_yaml
from dmdpipe.specs.study import Config, Scale, Study

CONFIG_FOLDER = Path("config")


def load_config(overrides: Mapping[str, Any] | None = None, folder: Path = CONFIG_FOLDER) -> Config:
    """Return ``config.yaml`` with ``overrides`` (as given by ``--config key=value``) laid over it.

    Raises:
        UserError: for an unknown key, a wrong type, or a study or scale that does not exist.
    """
    source = folder / "config.yaml"
    value = read_yaml(source)
    if not isinstance(value, dict):
        raise UserError(f"{source}: expected a mapping of keys to values, got {type(value).__name__}")
    config = parse(Config, {**value, **(overrides or {})}, str(source) if not overrides else f"{source} or --config")
    for kind, names, wanted in (
        ("scale", scale_names(folder), [config.scale]),
        ("studies", study_names(folder), config.studies),
    ):
        for name in wanted:
            if name not in names:
                raise UserError(f"{source}: {kind}: there is no '{name}'{did_you_mean(name, names)}")
    if len(set(config.studies)) < len(config.studies):
        twice = next(name for name in config.studies if config.studies.count(name) > 1)
        raise UserError(f"{source}: studies: '{twice}' is listed twice; list it once")
    parts = Path(config.results).parts
    if not parts or Path(config.results).is_absolute() or ".." in parts:
        raise UserError(f"{source}: results: '{config.results}' must be a folder below the working directory")
    return config.model_copy(update={"results": str(Path(config.results))})  # ./results/ is results


def study_names(folder: Path = CONFIG_FOLDER) -> list[str]:
    """Return the names of all studies, by their number."""
    names = sorted(path.stem for path in (folder / "studies").glob("*.yaml"))
    return sorted(names, key=lambda name: load_study(name, folder).number)


def scale_names(folder: Path = CONFIG_FOLDER) -> list[str]:
    """Return the names of all scales."""
    return sorted(path.stem for path in (folder / "scales").glob("*.yaml"))


def load_study(name: str, folder: Path = CONFIG_FOLDER) -> Study:
    """Return one study's declaration; raises UserError if it is missing or wrong."""
    path = folder / "studies" / f"{name}.yaml"
    study = parse(Study, read_yaml(path), str(path))
    for scale in study.scales:
        if scale not in scale_names(folder):
            raise UserError(f"{path}: scales: there is no scale '{scale}'{did_you_mean(scale, scale_names(folder))}")
    return study


def load_scale(name: str, folder: Path = CONFIG_FOLDER) -> Scale:
    """Return one scale; raises UserError if it is missing or wrong."""
    if name not in scale_names(folder):
        raise UserError(f"{folder}/scales: there is no scale '{name}'{did_you_mean(name, scale_names(folder))}")
    return parse(Scale, read_yaml(folder / "scales" / f"{name}.yaml"), f"{folder}/scales/{name}.yaml")


def members_of(name: str, scale: str, folder: Path = CONFIG_FOLDER) -> list[Member]:
    """Return all members of one study at one scale; raises UserError if the declaration is wrong anywhere."""
    return expand(name, load_study(name, folder), scale, load_scale(scale, folder))
