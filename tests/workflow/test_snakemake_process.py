"""Snakemake's command line as we start it: everything as given, but without the default limit of jobs a second."""

from __future__ import annotations

import sys

import pytest

from dmdpipe import snakemake_process


def options_of(monkeypatch, *words, succeed=True):
    """Return the options that Snakemake would run with, and the exit status."""
    seen = []
    monkeypatch.setattr(snakemake_process, "args_to_api", lambda options, parser: seen.append(options) or succeed)
    monkeypatch.setattr(sys, "argv", ["snakemake", *words])
    with pytest.raises(SystemExit) as ended:
        snakemake_process.main()
    return (seen[0] if seen else None), ended.value.code


def test_the_default_limit_is_gone_and_the_rest_stays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options, status = options_of(monkeypatch, "--cores", "2", "--keep-going", "--scheduler", "greedy", "all")
    assert status == 0
    assert options.max_jobs_per_timespan is None
    assert (options.cores, options.keep_going, options.scheduler, list(options.targets)) == (2, True, "greedy", ["all"])


def test_a_limit_that_was_asked_for_is_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options, _ = options_of(monkeypatch, "--cores", "2", "--max-jobs-per-timespan", "7/60s")
    assert (options.max_jobs_per_timespan.max_jobs, options.max_jobs_per_timespan.timespan) == (7, 60)


def test_the_default_that_is_dropped_is_snakemakes(monkeypatch, tmp_path):
    """If Snakemake changes its default, this constant must follow it."""
    from snakemake.cli import parse_args

    monkeypatch.chdir(tmp_path)
    _, options = parse_args(["--cores", "2"])
    limit = options.max_jobs_per_timespan
    assert (limit.max_jobs, limit.timespan) == snakemake_process.DEFAULT_LIMIT


def test_failures_and_bad_options_end_as_snakemakes_do(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert options_of(monkeypatch, "--cores", "2", succeed=False)[1] == 1
    assert options_of(monkeypatch, "--no-such-option")[1] == 2
    assert "--no-such-option" in capsys.readouterr().err
    assert options_of(monkeypatch, "--cores", "2", "--max-jobs-per-timespan", "many")[1] in (1, 2)
