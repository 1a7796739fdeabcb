"""Snakemake's command line as ``dmdpipe run`` starts it: without its default limit of jobs a second, and with somebody
who sees to preempted jobs of SLURM.

With such a limit Snakemake looks for jobs to start one second after every such look, and once more after every job. So
the more jobs have finished, the more often it looks, until it takes a whole core from those that run (seen in 9.27;
``benchmarks/scheduling.py``). In Snakemake's API no limit is the default; its command line has none that says so.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from snakemake.cli import args_to_api, parse_args
from snakemake.exceptions import print_exception

from dmdpipe.slurm import SLURM, preempted_jobs_put_back

DEFAULT_LIMIT = (100, 1)  # jobs, seconds


def main() -> None:
    """Run Snakemake with this process's arguments; exit with 1 if it fails. A limit that was asked for is kept."""
    try:
        parser, options = parse_args(sys.argv[1:])
        limit = options.max_jobs_per_timespan
        if limit and (limit.max_jobs, limit.timespan) == DEFAULT_LIMIT:
            options.max_jobs_per_timespan = None
        is_on_slurm = options.executor == SLURM
        with preempted_jobs_put_back(Path(os.environ["DMDPIPE_RESULTS"])) if is_on_slurm else nullcontext():
            succeeded = args_to_api(options, parser)
    except Exception as error:
        print_exception(error)
        sys.exit(1)
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
