"""A Slurm of one node for tests: real daemons, pretended GPUs, no systemd: ``python slurm_lab.py FOLDER``.

It says ``ready``, lives until its standard input ends, and then leaves nothing behind: no job, daemon, link
or file. Standard input also ends when the process that holds the other end is killed, so a test that dies
takes its cluster with it. By hand, in a terminal: Ctrl-D ends it.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ETC = Path("/etc/slurm")
"""Where Slurm looks by itself: Snakemake's job steps drop SLURM_CONF, so the files must be (links) here."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
DATABASE_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
INSTALL = (
    "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
)
GPUS, CPUS = 4, 16
PATIENCE_S = 30

SLURM_CONF = """\
# cred_expire: how long a job that was queued again waits at least.
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Without cgroups this is what enforces --mem.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
# The node may claim more CPUs than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,sched_min_interval=100000,batch_sched_delay=1,bf_interval=2
MinJobAge={min_job_age}
KillWait=20
PropagateResourceLimits=NONE
{accounting}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} \
ThreadsPerCore=1 RealMemory=64000 Gres=gpu:fake:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=256 State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE DefMemPerCPU=256 PriorityTier=10 State=UP
"""
NO_ACCOUNTS = "AccountingStorageType=accounting_storage/none"
ACCOUNTS = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={folder}/munge.socket
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
# The name makes the client take MariaDB's socket, which this variable of libmariadb moves: MYSQL_UNIX_PORT.
StorageHost=localhost
StorageUser=root
"""


def why_not(accounts: bool = False) -> str | None:
    """Why no cluster can be started on this machine, with the remedy; None where one can.

    ``accounts``: one with an accounting database.
    """
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = PROGRAMS + (DATABASE_PROGRAMS if accounts else ())
    missing = [name for name in wanted if not shutil.which(name, path=search)]
    if missing:
        more = " slurmdbd mariadb-server" if accounts else ""
        return f"Slurm is not installed (no {', '.join(missing)}): {INSTALL}{more}"
    if os.geteuid():
        return "slurmd needs root: run the tests in tests/cluster as root, in a container say"
    conf = ETC / "slurm.conf"
    if conf.exists() and not conf.is_symlink():
        return f"{conf} is a real cluster's: run the tests in tests/cluster on a machine of no cluster"
    return None


class Lab:
    """Its files, its daemons, and its end."""

    def __init__(self, folder: Path, min_job_age: int, accounts: bool):
        self.folder, self.min_job_age, self.accounts = folder, min_job_age, accounts
        self.daemons: list[subprocess.Popen] = []
        names = ["slurm.conf", "gres.conf", *(["slurmdbd.conf"] if accounts else [])]
        self.links = [ETC / name for name in names]

    def start(self) -> None:
        """Start everything; the node is idle when this returns. Raises TimeoutError with slurmctld's log."""
        self._write_files()
        self._run("munged", "--foreground", f"--key-file={self.folder}/munge.key", *self._munge_files())
        self._wait_for((self.folder / "munge.socket").exists)
        if self.accounts:
            self._start_accounts()
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D", "-N", platform.node().split(".")[0])
        self._wait_for(lambda: "idle" in ask("sinfo", "--noheader", "--format=%T"))

    def _start_accounts(self) -> None:
        """A database, its daemon, and an account ``lab`` that root may use."""
        data, socket = self.folder / "database", self.folder / "database.socket"
        install = [
            "mariadb-install-db",
            "--auth-root-authentication-method=normal",
            "--user=root",
            "--skip-test-db",
        ]
        subprocess.run([*install, f"--datadir={data}"], check=True, capture_output=True)
        own = [f"--datadir={data}", f"--socket={socket}", f"--pid-file={data}/pid", "--user=root"]
        self._run("mariadbd", "--no-defaults", *own, "--skip-networking", "--innodb-lock-wait-timeout=900")
        self._wait_for(socket.exists)
        os.environ["MYSQL_UNIX_PORT"] = str(socket)
        self._run("slurmdbd", "-D")
        self._wait_for(lambda: "Cluster" in ask("sacctmgr", "list", "cluster"))
        for words in ("cluster lab", "account lab Cluster=lab", "user root Account=lab Cluster=lab"):
            ask("sacctmgr", "--immediate", "add", *words.split())

    def stop(self) -> None:
        """Cancel every job and wait for its processes, end the daemons, remove the links and the folder."""
        with contextlib.suppress(Exception):
            ask("scancel", "--user=root")
            self._wait_for(lambda: not ask("squeue", "--noheader"))
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(PATIENCE_S)
            daemon.kill()
        for process in leftovers(self.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for link in self.links:
            link.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        host = platform.node().split(".")[0]
        values = {"host": host, "folder": self.folder, "cpus": CPUS, "gpus": GPUS}
        accounting = ACCOUNTS.format(**values) if self.accounts else NO_ACCOUNTS
        conf = SLURM_CONF.format(**values, min_job_age=self.min_job_age, accounting=accounting)
        (self.folder / "slurm.conf").write_text(conf)
        if self.accounts:
            (self.folder / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**values))
            (self.folder / "slurmdbd.conf").chmod(0o600)
        devices = [self._make_device(index) for index in range(GPUS)]
        lines = [f"NodeName={host} Name=gpu Type=fake File={device}\n" for device in devices]
        (self.folder / "gres.conf").write_text("".join(lines))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for link in self.links:
            link.unlink(missing_ok=True)  # of a cluster whose own keeper was killed
            link.symlink_to(self.folder / link.name)

    def _make_device(self, index: int) -> Path:
        """Slurm takes only character devices for GPUs: another /dev/null."""
        path = self.folder / f"gpu{index}"
        os.mknod(path, 0o20666, os.makedev(1, 3))
        return path

    def _munge_files(self) -> list[str]:
        names = {"socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        return [f"--{flag}={self.folder}/{name}" for flag, name in names.items()] + ["--force"]

    def _run(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "ab") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        self.daemons.append(daemon)

    def _wait_for(self, holds) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                logs = (path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
                raise TimeoutError("\n".join(logs))
            time.sleep(0.05)


def ask(*command: str) -> str:
    """What a Slurm command prints; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def leftovers(folder: Path) -> list[psutil.Process]:
    """Processes of the cluster in ``folder``: its daemons, and everything that runs in its jobs.

    Slurm's own are told by their names alone: this machine is of no other cluster.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            slurms = process.name() in ("slurmctld", "slurmd", "slurmstepd", "slurmdbd")
            others = process.name() in ("munged", "mariadbd") and str(folder) in " ".join(process.cmdline())
            of_job = process.environ().get("SLURM_CLUSTER_NAME") == "lab"
            if slurms or others or of_job:
                found.append(process)
    return found


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM to this process when its parent dies (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def main() -> None:
    """Hold a cluster in a folder until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made for it, removed at its end")
    parser.add_argument("--min-job-age", type=int, default=300, help="seconds that ended jobs are remembered")
    parser.add_argument("--accounts", action="store_true", help="with slurmdbd and MariaDB")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    ETC.mkdir(exist_ok=True)
    machine = os.open(ETC, os.O_RDONLY)
    fcntl.flock(machine, fcntl.LOCK_EX)  # one cluster at a time: they would share links and ports
    lab = Lab(options.folder.resolve(), options.min_job_age, options.accounts)
    try:
        lab.start()
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        lab.stop()


if __name__ == "__main__":
    main()
