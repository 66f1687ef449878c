"""What the check found, and what of it looks wrong: sentences that say what to do."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scripts.cluster.disks import Disks
from scripts.cluster.node import MISSING, Seen

SHARED_MEMORY = 1 << 30  # bytes; the loaders' batches and NCCL's buffers of a node
CLOCKS = 1.0  # seconds
EFFICIENCY = 0.8


@dataclass
class Findings:
    """Everything that was measured; lists by rank, rates in images or bytes a second."""

    seen: list[Seen]
    device: str  # cuda | cpu
    clocks: list[float]  # seconds ahead of the first process's
    bandwidth: dict[int, dict[str, float]]  # by number of processes and size
    steps: dict[int, float]  # of all processes together, by their number
    loaders: Sequence[float]
    disks: dict[str, Disks]  # by host
    notes: list[str] = field(default_factory=list)  # what is no fault

    @property
    def nodes(self) -> dict[str, list[int]]:
        """The ranks of each host, in order."""
        nodes: dict[str, list[int]] = {}
        for rank, seen in enumerate(self.seen):
            nodes.setdefault(seen.host, []).append(rank)
        return nodes

    def on(self, host: str) -> list[Seen]:
        return [self.seen[rank] for rank in self.nodes[host]]

    def cores(self, host: str) -> int:
        """Number of cores that the processes of a node may use together."""
        return len(frozenset[int]().union(*(seen.cores for seen in self.on(host))))

    def loader(self, host: str) -> float:
        """Images a second of a node."""
        return sum(self.loaders[rank] for rank in self.nodes[host])

    def efficiency(self, processes: int) -> float:
        """Speed as a share of so many times that of one process."""
        return self.steps[processes] / (processes * self.steps[1])


def looks_wrong(found: Findings) -> list[str]:
    """A sentence for everything that looks wrong."""
    everywhere = (_versions, _ffcv, _clocks, _scaling)
    by_node = (_gpus, _cores, _threads, _shared_memory, _home, _disks, _loader)
    sentences = [sentence for check in everywhere for sentence in check(found)]
    return sentences + [sentence for host in found.nodes for check in by_node for sentence in check(found, host)]


# -- of all nodes together --------------------------------------------------------------------------------------------


def _versions(found: Findings) -> Iterator[str]:
    for name in dict.fromkeys(name for seen in found.seen for name in seen.versions):
        hosts = defaultdict(list)
        for host in found.nodes:
            hosts[found.on(host)[0].versions.get(name, MISSING)].append(host)
        if len(hosts) > 1:
            which = " and ".join(f"{version} on {_listed(names)}" for version, names in hosts.items())
            remedy = "ask for nodes of one kind" if name == "driver" else "use one environment on all nodes"
            yield f"{name} is {which}: {remedy}."


def _ffcv(found: Findings) -> Iterator[str]:
    hosts = [host for host in found.nodes if found.on(host)[0].versions["ffcv"] == MISSING]
    if hosts:
        yield f"FFCV cannot be imported on {_listed(hosts)}, so loading is slower: make setup says what is missing."


def _clocks(found: Findings) -> Iterator[str]:
    ahead = {host: found.clocks[ranks[0]] for host, ranks in found.nodes.items()}
    slow, fast = min(ahead, key=ahead.__getitem__), max(ahead, key=ahead.__getitem__)
    if ahead[fast] - ahead[slow] > CLOCKS:
        yield (
            f"The clock of {fast} is {ahead[fast] - ahead[slow]:.0f} s ahead of that of {slow}: set it (NTP); "
            "until then, times of different nodes cannot be compared."
        )


def _scaling(found: Findings) -> Iterator[str]:
    poor = [k for k in found.steps if found.efficiency(k) < EFFICIENCY]
    if not poor:
        return
    k, share = poor[0], found.efficiency(poor[0])
    if found.device == "cuda":
        remedy = "look at the all-reduce above, and at what NCCL_DEBUG=INFO says about the network that NCCL uses"
    elif len(found.nodes) > 1:
        remedy = "look at the all-reduce above, and let GLOO_SOCKET_IFNAME name the fast network"
    else:
        remedy = "processes on one CPU share its cores and memory, so one may be as good"
    yield f"{k} processes train {k * share:.1f} times as fast as one ({share:.0%} of what they could): {remedy}."


# -- of each node -----------------------------------------------------------------------------------------------------


def _gpus(found: Findings, host: str) -> Iterator[str]:
    processes = found.on(host)
    used = len({seen.gpu_id for seen in processes if seen.gpu_id})
    most = max(seen.gpus for seen in processes)
    driver = processes[0].versions.get("driver")
    if found.device == "cpu" and most:
        yield f"{host} has {most} GPUs, and the processes compute on its CPU: set run.device=cuda."
    elif driver and not most:
        yield (
            f"{host} has NVIDIA's driver {driver}, but PyTorch sees no GPU: ask for some (--gpus-per-node), look at "
            "CUDA_VISIBLE_DEVICES, or install a PyTorch for the CUDA of this driver."
        )
    elif 0 < used < len(processes):
        shared = f"{used} GPU{'s' * (used > 1)} of {host}"
        yield f"{len(processes)} processes share {shared}: start one for each (--ntasks-per-node)."
    elif 1 < most > used:
        yield f"{used} of the {most} GPUs of {host} are used: start one process for each (--ntasks-per-node)."


def _cores(found: Findings, host: str) -> Iterator[str]:
    processes = found.on(host)
    most, cores = max(len(seen.cores) for seen in processes), processes[0].machine_cores
    if most == 1 < cores:
        yield (
            f"Each process on {host} may use 1 of {cores} cores: give sbatch --cpus-per-task, and before srun "
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK."
        )


def _threads(found: Findings, host: str) -> Iterator[str]:
    processes, cores = found.on(host), found.cores(host)
    workers, threads = sum(seen.workers for seen in processes), sum(seen.threads for seen in processes)
    if workers > 1.5 * cores:
        yield f"{workers} loader threads share {cores} cores of {host}: lower run.workers, or leave it unset."
    if found.device == "cpu" and threads > cores:
        yield f"{threads} threads of PyTorch share {cores} cores of {host}: lower OMP_NUM_THREADS, or unset it."


def _shared_memory(found: Findings, host: str) -> Iterator[str]:
    free = found.on(host)[0].shared_memory
    if free is not None and free < SHARED_MEMORY:
        yield (
            f"/dev/shm of {host} has {free / 1e6:.0f} MB free, NCCL and data.loader=torch want a gigabyte: give a "
            "container more of it (--shm-size=8g), or remove what dead jobs left there."
        )


def _home(found: Findings, host: str) -> Iterator[str]:
    if refused := found.on(host)[0].home:
        yield (
            f"The home folder cannot be written on {host} ({refused}), where caches go: make room there, or point "
            "XDG_CACHE_HOME and TORCH_HOME elsewhere."
        )


def _disks(found: Findings, host: str) -> Iterator[str]:
    disks = found.disks[host]
    if disks.refused:
        yield f"run.dir cannot be written on {host} ({disks.refused}): set run.dir to a folder that all nodes share."
    if not disks.shared:
        yield (
            f"{host} does not see what the first node writes into run.dir: set run.dir to the full path of a folder on "
            "a file system that all nodes share."
        )
    if disks.stage_refused:
        yield f"Nothing can be staged on {host} ({disks.stage_refused}): set data.stage to a folder on its own disk."


def _loader(found: Findings, host: str) -> Iterator[str]:
    processes, rate = max(found.steps), found.loader(host)
    needed = found.steps[processes] * len(found.nodes[host]) / processes
    if rate < needed:
        yield (
            f"The loader of {host} gives {rate:,.0f} images/s and its processes train on {needed:,.0f}: ask for more "
            "cores (--cpus-per-task), or write smaller images (data.write.max_size=400, or data.write.mode=raw)."
        )


def _listed(hosts: list[str], shown: int = 3) -> str:
    return ", ".join(hosts[:shown]) + (f" and {len(hosts) - shown} more" if len(hosts) > shown else "")
