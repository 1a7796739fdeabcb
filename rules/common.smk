# Every helper that a rule uses. A rule's inputs and its one parameter come from the plan; nothing else decides.
import shlex
import sys

from dmdpipe.artifacts.dag import plan_run
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.audit.status import steps_to_run
from dmdpipe.cost import megabytes_to_ask_for, minutes_to_ask_for, runs_on_gpu, takes_much_of_a_gpu
from dmdpipe.data.fashion import FOLDER
from dmdpipe.data.fetching import files_to_fetch
from dmdpipe.errors import UserError
from dmdpipe.forking import client

try:
    RUN = plan_run(config)
except UserError as error:
    sys.exit(f"dmdpipe: {error}")

# Scripts are handed to the server that `dmdpipe run` keeps for them; without one, the client starts their Python.
shell.prefix(f"set -euo pipefail; {shlex.join([sys.executable, '-I', '-S', client.__file__])} ")

RESULTS = RUN.config.results
# The manifests that `dmdpipe run` wants made; None where Snakemake was started by itself and must find out.
TO_RUN = steps_to_run()
SCALE = RUN.config.scale


def manifest_of(step):
    """The file that stands for a finished step."""
    return f"{RESULTS}/{step.folder}/manifest.json"


def files_of(step):
    """All files that a finished step is known to have."""
    names = ["manifest.json", *find_stage(step.stage).payload]
    return [f"{RESULTS}/{step.folder}/{name}" for name in names]


def planned(stage, wildcards):
    """The step that a rule's wildcards name."""
    return RUN.step(f"{find_stage(stage).folder}/{wildcards.step}")


def parents_of(stage):
    """Input function of a rule: the manifests of the step's parents.

    `dmdpipe run` has read all manifests and forces the steps that they show to be stale. All others need nothing, so
    that neither times of files nor a parent that is mended make them run again.
    """

    def parents(wildcards):
        step = planned(stage, wildcards)
        manifests = [manifest_of(parent) for parent in step.parents.values()]
        return manifests if TO_RUN is None or manifest_of(step) in TO_RUN else []

    return parents


def fetched(wildcards):
    """Input function of rule data: the files that it reads and `fetch` gets.

    Their bytes are checked, so their times say nothing.
    """
    step = planned("data", wildcards)
    is_to_run = TO_RUN is None or manifest_of(step) in TO_RUN
    return [ancient(str(path)) for path in files_to_fetch(step.spec)] if is_to_run else []


def spec_of(stage):
    """Params function of a rule: the step's order as canonical JSON."""

    def spec(wildcards):
        return planned(stage, wildcards).canonical()

    return spec


# What a job asks a cluster for. It changes how steps run, never what: it is in no parameter and no digest.


def default_of(resource):
    """What the profile says of a resource in `default-resources`, as text; None if nothing."""
    defaults = workflow.resource_settings.default_resources or {}
    return str(defaults[resource].raw).strip("'\"") if resource in defaults else None


def limit_of(resource):
    """The most that the profile allows a job; 0 if any."""
    given = default_of(resource) or "0"
    if not given.isdecimal():
        sys.exit(f"dmdpipe: default-resources: {resource}: '{given}' must be a whole number; 0: no limit")
    return int(given)


# Minutes and megabytes.
LONGEST_JOB, LARGEST_JOB = limit_of("longest_job"), limit_of("largest_job")


def at_most(limit, wanted):
    """What a job wants, but no more than a limit, if there is one."""
    return min(wanted, limit) if limit else wanted


def memory_of(stage):
    """Resource function of a rule: megabytes."""

    def megabytes(wildcards, attempt):
        step = planned(stage, wildcards)
        return at_most(LARGEST_JOB, RUN.devices_of(step) * megabytes_to_ask_for(step, attempt))

    return megabytes


def minutes_of(stage):
    """Resource function of a rule: the time limit in minutes."""

    def minutes(wildcards, attempt):
        return at_most(LONGEST_JOB, minutes_to_ask_for(planned(stage, wildcards), attempt))

    return minutes


def cpus_of(stage):
    """Resource function of a rule that trains: for each of its processes, as many CPUs as its spec has threads."""

    def cpus(wildcards):
        step = planned(stage, wildcards)
        threads = getattr(step.spec.score, "threads", 1) if stage == "teacher" else step.spec.threads
        return RUN.devices_of(step) * threads

    return cpus


def devices_of(stage):
    """Resource function of a rule that trains: how many processes share a training, a device each."""

    def devices(wildcards):
        return RUN.devices_of(planned(stage, wildcards))

    return devices


def gpus_of(stage):
    """Resource function of a rule that trains or samples: if its spec says so, a GPU for each process; else none."""

    def gpus(wildcards):
        step = planned(stage, wildcards)
        return RUN.devices_of(step) if runs_on_gpu(step) else None

    return gpus


def large_on_gpu_of(stage):
    """Resource function of such a rule: 1 if it takes much of a GPU, as a U-Net does, else 0.

    `profiles/default` limits the sum on one machine, since all steps there share a card; a cluster's jobs have their own.
    """

    def large_on_gpu(wildcards):
        return int(takes_much_of_a_gpu(planned(stage, wildcards)))

    return large_on_gpu


def partition_of(stage):
    """Resource function of such a rule: the partition that the profile names for its device, if it names one."""

    def partition(wildcards):
        return default_of("gpu_partition" if runs_on_gpu(planned(stage, wildcards)) else "slurm_partition")

    return partition


def labels_of_page(wildcards):
    """How the report's menu names a page."""
    return {"page": wildcards.step.split("/")[1].replace("_", " ")}
