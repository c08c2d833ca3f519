"""SLURM on one machine: two slurmd with names of their own, one slurmctld, no munge, everything in one folder.

with Bed.start(folder) as bed:
    bed.run("sbatch", ...)
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
GPUS = 2
DAEMONS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")

CONF = """
ClusterName=bed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout={node_timeout}
KillWait=5
OverTimeLimit=0
CompleteWait=0
MessageTimeout=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no test bed here; None where there can."""
    lacking = [name for name in DAEMONS if not shutil.which(name, path=search_path())]
    return f"SLURM is not installed: no {lacking[0]} (Debian: apt-get install slurm-wlm)" if lacking else None


def search_path() -> str:
    """The daemons lie in sbin, which is not on every user's PATH."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(n)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


@dataclass
class Bed:
    """A cluster of `nodes` nodes (node1, node2, ...) with `cpus` CPUs each, whatever the machine has."""

    folder: Path
    nodes: int = 2
    cpus: int = 4
    node_timeout: int = 30
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which SLURM's commands find this cluster, and nothing of a job around the tests."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**plain, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}

    def __enter__(self) -> Bed:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        controller_port, *ports = free_ports(self.nodes + 1)
        names = [f"node{i + 1}" for i in range(self.nodes)]
        host = socket.gethostname().split(".")[0]
        every = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs={self.cpus} Gres=gpu:{GPUS} State=UNKNOWN"
        lines = [f"NodeName={name} Port={port} {every}" for name, port in zip(names, ports, strict=True)]
        text = CONF.format(
            host=host,
            user=getpass.getuser(),
            folder=self.folder,
            controller_port=controller_port,
            node_timeout=self.node_timeout,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        for i in range(GPUS):  # SLURM asks no more of a GPU than a file
            (self.folder / f"gpu{i}").touch()
        gres = f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gres, encoding="utf-8")
        try:
            self._spawn("slurmctld", "slurmctld", "-D")
            for name in names:
                self.start_node(name)
            self._wait_until_idle()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_node(self, name: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        self._spawn(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """As if the machine lost its power: its daemon and everything it started is gone at once."""
        daemon = self.daemons.pop(name)
        kill(daemon.pid)
        for pid in step_daemons(self.folder):  # they do not say of which node they are; their children do
            below = descendants(pid)
            if any(f"SLURMD_NODENAME={name}" in environment_of(p) for p in below):
                for victim in (pid, *below):
                    kill(victim)
        daemon.wait()

    def _spawn(self, key: str, *command: str) -> None:
        with (self.folder / f"{key}.out").open("ab") as out:
            self.daemons[key] = subprocess.Popen(
                command, env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _wait_until_idle(self, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            states = self.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()
            if len(states) == self.nodes and set(states) == {"idle"}:
                return
            if any("drain" in state or "inval" in state for state in states):
                raise RuntimeError(f"SLURM refuses a node:\n{self.logs()}")
            dead = [key for key, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead:
                raise RuntimeError(f"{dead[0]} did not start:\n{self.logs()}")
            time.sleep(0.2)
        raise RuntimeError(f"the nodes did not come up in {timeout} s:\n{self.logs()}")

    def stop(self) -> None:
        """Cancels what runs and ends every process of the cluster, jobs included."""
        started = {p for pid in step_daemons(self.folder) for p in (pid, *descendants(pid))}
        for pid in started:
            kill(pid)
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for pid in step_daemons(self.folder):  # begun meanwhile
            for below in (pid, *descendants(pid)):
                kill(below)

    def run(
        self, *command: object, check: bool = True, timeout: float = 60, cwd: Path | None = None, **more: object
    ) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands, or any program, against this cluster; `more` goes into its environment."""
        done = subprocess.run(
            [*map(str, command)],
            env=self.env | {str(k): str(v) for k, v in more.items()},
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        text = self.run("scontrol", "show", "job", "-o", job_id).stdout
        return dict(item.split("=", 1) for item in text.split() if "=" in item)

    def wait(self, job_id: str, *states: str, timeout: float = 180) -> dict[str, str]:
        """Waits until the job is in one of these states; returns what SLURM says of it then."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            job = self.job(job_id)
            if job["JobState"] in states:
                return job
            time.sleep(0.3)
        raise TimeoutError(f"job {job_id} is {job['JobState']} ({job['Reason']}) after {timeout} s, not {states}")

    def logs(self, lines: int = 30) -> str:
        """The last lines of every daemon's log."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {f.name}\n" + "\n".join(f.read_text().splitlines()[-lines:]) for f in files)


def _processes() -> dict[int, tuple[int, str]]:
    """pid: (parent, command line) of all processes."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            found[int(entry.name)] = int(stat[1]), (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
    return found


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    table, found = _processes(), [pid]
    for parent in found:
        found += [p for p, (above, _) in table.items() if above == parent]
    return found[1:]


def step_daemons(folder: Path) -> list[int]:
    """slurmstepd of this cluster: they leave slurmd's family, so their environment tells."""
    conf = f"SLURM_CONF={folder / 'slurm.conf'}"
    return [
        pid for pid, (_, command) in _processes().items() if "slurmstepd" in command and conf in environment_of(pid)
    ]


def environment_of(pid: int) -> list[str]:
    """NAME=value of a process; nothing where it has ended."""
    try:
        return (Path("/proc") / str(pid) / "environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
