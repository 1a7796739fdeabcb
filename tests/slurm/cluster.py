"""A real SLURM on this one machine: munge, a controller, and three nodes of one stand-in GPU each.

    python tests/slurm/cluster.py [--accounts]

brings it up until Ctrl-C. Needs root and the packages of tests/slurm/install; with --accounts also those that
``tests/slurm/install --accounts`` adds. Else there is no accounting database, so ``sacct`` knows nothing. Nodes are
daemons on 127.0.0.1 that claim more than the machine has; no cgroups, so memory is counted but not enforced.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Snakemake's job steps drop SLURM_CONF, so the file must be where the programs look by themselves.
SYSTEM_CONFIG = Path("/etc/slurm/slurm.conf")
# Of a cluster's files. Short, for a Unix socket, and open to munge's own user: pytest's folders are neither.
FOLDERS, PREFIX, LOCK = Path("/tmp"), "slurm-", "lock"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PROGRAMS_OF_ACCOUNTS = ("slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb-install-db", "my_print_defaults")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
NODES = ("node1", "node2", "node3")
SECONDS_TO_START = 60
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/{gather}
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
ReturnToService=2
MinJobAge=3600
KillWait=20
GresTypes=gpu
{accounts}
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT MaxTime=1440 DefMemPerCPU=200 State=UP PreemptMode=OFF
PartitionName=usual Nodes=node1,node2 Default=YES
PartitionName=cpu Nodes=node1,node2
PartitionName=gpu Nodes=node1,node2
# A job of the last preempts those of the others.
PartitionName=cancelled Nodes=node3 PriorityTier=1 PreemptMode=CANCEL
PartitionName=requeued Nodes=node3 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=node3 PriorityTier=2
"""
NO_ACCOUNTS = "AccountingStorageType=accounting_storage/none"
ACCOUNTS = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={folder}/munge/socket
AccountingStoreFlags=job_comment
"""
DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[0]}
StorageUser=root
"""


class NoSlurmError(Exception):
    """Why no cluster can be had here."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    Attributes:
        folder: where its configuration, logs and state lie.
        start_node: starts the daemon of a node.
        has_accounts: whether there is an accounting database.
        daemons: the daemon of each node, by its name.
    """

    folder: Path
    start_node: Callable[[str], None]
    has_accounts: bool
    daemons: dict[str, subprocess.Popen[bytes]]

    def ask(self, *command: str) -> str:
        """Return what a program of SLURM prints."""
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    def jobs(self, states: str = "all") -> dict[str, str]:
        """Return the state of every job in these states, by its id."""
        lines = self.ask("squeue", "--noheader", f"--states={states}", "--format=%A %T").splitlines()
        return dict(line.split() for line in lines)

    def facts(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        words = self.ask("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def node_of(self, job: str) -> str:
        """Return the node on which a job runs or ran last."""
        return self.facts(job)["NodeList"]

    def lose(self, node: str) -> None:
        """End all that runs on a node at once, as a power cut does, and have the controller see it."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        # Stopped first, so that none is born meanwhile.
        stopped: set[psutil.Process] = set()
        while born := self._steps_of(node) - stopped:
            for process in born:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            stopped |= born
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # By itself the controller would wait for SlurmdTimeout.
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def _steps_of(self, node: str) -> set[psutil.Process]:
        """Return the overseers of the steps on a node, each known by its socket in the node's own folder, and all that
        they started.
        """
        place = f"{self.folder}/spool-{node}/"
        overseers = {each.pid for each in psutil.net_connections("unix") if str(each.laddr).startswith(place)}
        found: set[psutil.Process] = set()
        for identity in overseers - {None}:
            with suppress(psutil.NoSuchProcess):
                overseer = psutil.Process(identity)
                found |= {overseer, *overseer.children(recursive=True)}
        return found

    def repair(self, node: str) -> None:
        """Bring a node back that was lost."""
        self.start_node(node)
        self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


def missing(programs: Iterable[str]) -> list[str]:
    """Return which of these programs are not installed."""
    return [program for program in programs if not shutil.which(program, path=PATH)]


def taken_by(config: Path) -> str:
    """Return whose cluster the machine's configuration is: its own, or that of tests which are still running.

    Nobody's, and empty, if there is none, or a link into the folder of tests that were killed, there still or not.
    """
    if not os.path.lexists(config):
        return ""
    folder = Path(os.readlink(config)).parent if config.is_symlink() else config
    if folder.parent != FOLDERS or not folder.name.startswith(PREFIX):
        return "a SLURM of its own"
    with suppress(FileNotFoundError), (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "the SLURM of other tests, which are still running"
    return ""


@contextmanager
def running_cluster(has_accounts: bool = False) -> Iterator[Cluster]:
    """Bring a cluster up, and take it down after the block, jobs first.

    Args:
        has_accounts: whether there is an accounting database, and what jobs use is measured.

    Raises:
        NoSlurmError: if that cannot be done here.
    """
    if os.geteuid() != 0:
        raise NoSlurmError("SLURM's daemons need root")
    if absent := missing(PROGRAMS + (PROGRAMS_OF_ACCOUNTS if has_accounts else ())):
        option = " --accounts" if has_accounts else ""
        raise NoSlurmError(f"SLURM is not installed ({', '.join(absent)}): tests/slurm/install{option} does it")
    if whose := taken_by(SYSTEM_CONFIG):
        raise NoSlurmError(f"this machine has {whose}: {SYSTEM_CONFIG}")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
    folder.chmod(0o755)
    with ExitStack() as stack:
        # The kernel lets go of it when this process ends, however it does.
        fcntl.flock(stack.enter_context((folder / LOCK).open("w")), fcntl.LOCK_EX)

        def start_node(node: str) -> None:
            daemons[node] = _start(stack, folder, "slurmd", "-D", "-N", node)

        daemons: dict[str, subprocess.Popen[bytes]] = {}
        cluster = Cluster(folder, start_node, has_accounts, daemons)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _start_munge(stack, folder)
        accounts = _start_accounts(stack, folder) if has_accounts else NO_ACCOUNTS
        _write_config(folder, accounts, "linux" if has_accounts else "none")
        SYSTEM_CONFIG.unlink(missing_ok=True)
        SYSTEM_CONFIG.symlink_to(folder / "slurm.conf")
        stack.callback(SYSTEM_CONFIG.unlink, missing_ok=True)
        if has_accounts:
            _wait_for(folder, "sacctmgr", "--noheader", "show", "cluster")
            cluster.ask("sacctmgr", "--immediate", "add", "cluster", "tests")
        _start(stack, folder, "slurmctld", "-D")
        _wait_for(folder, "scontrol", "ping")
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            start_node(node)
        stack.callback(_end_jobs, cluster)
        _wait_for(folder, "srun", "--nodes=2", "--mem=10", "--time=1", "true")
        yield cluster


def _start_munge(stack: ExitStack, folder: Path) -> None:
    munge = folder / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(secrets.token_bytes(1024))
    (munge / "key").chmod(0o600)
    for item in (munge, munge / "key"):
        shutil.chown(item, "munge", "munge")
    options = (f"--{name}={munge / file}" for name, file in MUNGE_FILES.items())
    _start(stack, folder, "munged", "--foreground", *options, user="munge")
    _wait_for(folder, "munge", "--no-input", f"--socket={munge / 'socket'}")


MUNGE_FILES = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def _start_accounts(stack: ExitStack, folder: Path) -> str:
    """Start a database and slurmdbd; return what the controller must know of them."""
    names = {"host": _host(), "folder": folder, "ports": _free_ports(2)}
    data = f"--datadir={folder / 'mariadb'}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    (folder / "mariadb").mkdir()
    install = ["mariadb-install-db", "--no-defaults", "--user=root", data, "--skip-test-db"]
    subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, **quiet)
    options = ["--no-defaults", "--user=root", data, f"--socket={folder / 'mariadb.socket'}", "--skip-grant-tables"]
    listening = ["--bind-address=127.0.0.1", f"--port={names['ports'][0]}"]
    _start(
        stack,
        folder,
        "mariadbd",
        *options,
        *listening,
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
    )
    _wait_for(folder, "test", "-S", str(folder / "mariadb.socket"))  # slurmdbd looks every five seconds
    (folder / "slurmdbd.conf").touch(mode=0o600)
    (folder / "slurmdbd.conf").write_text(DATABASE.format(**names))
    _start(stack, folder, "slurmdbd", "-D")
    return ACCOUNTS.format(**names)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _write_config(folder: Path, accounts: str, gather: str) -> None:
    host = _host()
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=16000 Gres=gpu:1"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    (folder / "state").mkdir()
    text = CONFIG.format(host=host, folder=folder, ports=ports, nodes=nodes, accounts=accounts, gather=gather)
    (folder / "slurm.conf").write_text(text)
    devices = "\n".join(f"NodeName={node} Name=gpu File=/dev/null" for node in NODES)
    (folder / "gres.conf").write_text(f"AutoDetect=off\n{devices}\n")
    # SLURM 22.05 always loads a plugin for cgroups; this one touches nothing until it is used, and none here uses it.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(
    stack: ExitStack, folder: Path, program: str, *options: str, user: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a daemon as a child, which ends with the stack."""
    command = [shutil.which(program, path=PATH) or program, *options]
    log = stack.enter_context((folder / f"{program}{options[-1] if program == 'slurmd' else ''}.log").open("w"))
    # No variable of another cluster, and no group of this terminal: Ctrl-C is for whoever asked for the cluster.
    variables = {"PATH": PATH, "HOME": "/root", "SLURM_CONF": str(folder / "slurm.conf")}
    daemon = subprocess.Popen(command, stdout=log, stderr=log, env=variables, user=user, start_new_session=True)
    stack.callback(_stop, daemon)
    return daemon


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _end_jobs(cluster: Cluster) -> None:
    """Cancel what still waits or runs: it would outlive its node's daemon."""
    active = "pending,running,completing"
    deadline = time.monotonic() + 30
    while (left := cluster.jobs(active)) and time.monotonic() < deadline:
        subprocess.run(["scancel", *left], check=False)
        time.sleep(0.2)


def _wait_for(folder: Path, *command: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            if subprocess.run(command, capture_output=True, timeout=SECONDS_TO_START).returncode == 0:
                return
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-1000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"gave up waiting for {' '.join(command)}\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        with running_cluster(has_accounts="--accounts" in sys.argv[1:]) as up:
            print(f"SLURM is up; its logs are in {up.folder}. Ctrl-C ends it.", flush=True)
            signal.pause()
    except NoSlurmError as reason:
        sys.exit(str(reason))
    except KeyboardInterrupt:
        pass
