"""The look at an allocation: what it says of nodes that are as they should be, and of those that are not."""

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from data import files
from data.config import DataConfig
from gab.distributed.processes import Processes
from scripts.check_cluster import Effort, images, main
from scripts.cluster import disks, loading, network, node
from scripts.cluster.disks import Disks
from scripts.cluster.findings import Findings, looks_wrong
from scripts.cluster.node import Seen
from scripts.cluster.table import report

VERSIONS = {"python": "3.12.1", "torch": "2.11.0", "driver": "550.54.15", "wandb": "0.31.0", "ffcv": "1.0.2"}
TINY = ["model=vit_t16", "model.embed_dim=48", "model.depth=2", "data.image_size=32", "run.device=cpu"]
Change = Callable[[Findings], Findings]


@pytest.fixture
def healthy() -> Findings:
    """Two nodes with two GPUs each, and nothing to complain about."""
    seen = [
        Seen(
            host=f"n{rank // 2 + 1}",
            versions=VERSIONS,
            gpu="NVIDIA H100 80GB HBM3",
            gpu_id=f"GPU-{rank}",
            gpus=2,
            cores=frozenset(range(24)),
            machine_cores=24,
            threads=12,
            workers=12,
            shared_memory=64 << 30,
            home="",
        )
        for rank in range(4)
    ]
    return Findings(
        seen=seen,
        device="cuda",
        clocks=[0.0, 0.001, -0.02, -0.02],
        bandwidth={2: {"1 MB": 30e9, "25 MB": 200e9, "350 MB": 330e9}, 4: {"1 MB": 3e9, "25 MB": 20e9}},
        steps={1: 2000.0, 2: 3900.0, 4: 7400.0},
        loaders=[2100.0, 2000.0, 2200.0, 2100.0],
        disks={"n1": Disks(staging=2e9, writing=1.2e9), "n2": Disks(staging=1.9e9)},
        notes=["W&B cannot be reached"],
    )


def seen(**change: object) -> Change:
    """All processes of the second node see something else."""
    return lambda found: replace(found, seen=found.seen[:2] + [replace(one, **change) for one in found.seen[2:]])


def on_cpu(found: Findings, **change: object) -> Findings:
    """The same without GPUs, and with `change` of every process."""
    processes = [replace(one, gpu="", gpu_id="", gpus=0, **change) for one in found.seen]
    return replace(found, device="cpu", seen=[replace(one, versions=no_driver(one.versions)) for one in processes])


def no_driver(versions: dict[str, str]) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name != "driver"}


def second(**change: object) -> Change:
    """The second node's disks differ."""
    return lambda found: replace(found, disks=found.disks | {"n2": replace(found.disks["n2"], **change)})


def test_a_healthy_allocation_is_called_so(healthy: Findings) -> None:
    assert looks_wrong(healthy) == []
    assert report("title", healthy).endswith("nothing looks wrong")
    assert looks_wrong(on_cpu(healthy)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (seen(versions=VERSIONS | {"torch": "2.15.0"}), r"torch is 2\.11\.0 on n1 and 2\.15\.0 on n2: use one env"),
        (seen(versions=VERSIONS | {"driver": "535.1"}), r"driver is 550\.54\.15 on n1 and 535\.1 on n2: ask for"),
        (seen(versions=VERSIONS | {"ffcv": "missing"}), r"FFCV cannot be imported on n2, .* make setup"),
        (seen(gpu="", gpu_id="", gpus=0), r"n2 has NVIDIA's driver 550\.54\.15, but .* no GPU: .*--gpus-per-node"),
        (seen(gpu_id="GPU-2"), r"2 processes share 1 GPU of n2: start one for each"),
        (seen(gpus=8), r"2 of the 8 GPUs of n2 are used: start one process for each"),
        (lambda found: replace(found, device="cpu"), r"n1 has 2 GPUs, and .* on its CPU: set run\.device=cuda"),
        (seen(cores=frozenset([3])), r"Each process on n2 may use 1 of 24 cores: .*SRUN_CPUS_PER_TASK"),
        (seen(workers=24), r"48 loader threads share 24 cores of n2: lower run\.workers"),
        (lambda found: on_cpu(found, threads=24), r"48 threads of PyTorch share 24 cores of n1: lower OMP_NUM_THREADS"),
        (seen(shared_memory=64 << 20), r"/dev/shm of n2 has 67 MB free, .*--shm-size"),
        (seen(home="Disk quota exceeded"), r"home folder cannot .* n2 \(Disk quota exceeded\).*XDG_CACHE_HOME"),
        (second(refused="Read-only file system"), r"run\.dir cannot be written on n2 \(Read-only .*\): set run"),
        (second(shared=False), r"n2 does not see what the first node writes into run\.dir: set run\.dir"),
        (second(stage_refused="No space left"), r"Nothing can be staged on n2 \(No space left\): set data\.stage"),
        (lambda found: replace(found, clocks=[0, 0, 90, 90]), r"clock of n2 is 90 s ahead of that of n1: set it"),
        (lambda found: replace(found, loaders=[2100, 2000, 200, 300]), r"loader of n2 gives 500 images/s .* 3,700:"),
        (lambda found: replace(found, steps={1: 2000, 2: 3900, 4: 4000}), r"4 processes train 2\.0 .*\(50%.*NCCL"),
    ],
)  # fmt: skip
def test_what_looks_wrong_is_said_once_with_a_remedy(healthy: Findings, change: Change, sentence: str) -> None:
    matching = [told for told in looks_wrong(change(healthy)) if re.search(sentence, told)]
    assert len(matching) == 1
    assert "looks wrong:\n1. " in report("title", change(healthy))


@pytest.mark.parametrize(("hosts", "remedy"), [(1, "share its cores"), (2, "GLOO_SOCKET_IFNAME")])
def test_scaling_on_cpus_has_remedies_of_its_own(healthy: Findings, hosts: int, remedy: str) -> None:
    slow = replace(on_cpu(healthy), steps={1: 10.0, 4: 12.0})
    if hosts == 1:
        slow = replace(slow, seen=[replace(one, host="n1", threads=6, workers=6) for one in slow.seen])
    [sentence] = [told for told in looks_wrong(slow) if "4 processes train 1.2 times" in told]
    assert remedy in sentence


def test_the_table_can_be_pasted(healthy: Findings) -> None:
    wrong = seen(home="Disk quota exceeded", shared_memory=1 << 20, cores=frozenset([3]))(healthy)
    lines = report("title", wrong).splitlines()
    assert max(map(len, lines)) < 100
    text = "\n".join(lines)
    assert "torch 2.11.0" in text
    assert "2 x H100 80GB HBM3" in text
    assert re.search(r"^4 +3\.00 +20\.00 +-$", text, re.MULTILINE)
    assert re.search(r"^4 +7,400 +92%$", text, re.MULTILINE)
    assert "run.dir takes 1.20 GB/s: 1 s for a checkpoint of ViT-B" in text


# -- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "per_node", "expected"),
    [(1, 1, [1]), (2, 2, [1, 2]), (6, 6, [1, 2, 4, 6]), (12, 6, [1, 2, 4, 6, 8, 12]), (16, 8, [1, 2, 4, 8, 16])],
)
def test_numbers_of_processes(processes: int, per_node: int, expected: list[int]) -> None:
    assert network.counts(processes, per_node) == expected


def test_a_size_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "all_reduce", lambda processes, group, size, seconds: 25e6)
    found = network.bandwidth(Processes(), {1: None, 4: None}, network.SIZES, 6.0)
    assert found == {4: {"1 MB": 37.5e6, "25 MB": 37.5e6}}


def test_disks_that_take_files_are_left_as_they_were(tmp_path: Path) -> None:
    runs, stage = tmp_path / "runs", tmp_path / "stage"
    found = disks.try_disks(Processes(), runs, stage, None, 1 << 20)
    assert found is not None
    assert (found.refused, found.shared, found.stage_refused) == ("", True, "")
    assert found.staging
    assert found.writing
    assert [path for path in tmp_path.rglob("*") if path not in (runs, stage)] == []


def test_disks_that_refuse_are_told(tmp_path: Path) -> None:
    in_the_way, stage = tmp_path / "file", tmp_path / "stage"
    in_the_way.write_bytes(bytes(1000))
    no_runs = disks.try_disks(Processes(), in_the_way, stage, in_the_way, 1 << 20)
    assert no_runs is not None
    assert (no_runs.refused, no_runs.writing, no_runs.shared) == ("Not a directory", None, True)
    assert no_runs.staging
    no_stage = disks.try_disks(Processes(), tmp_path / "runs", in_the_way, None, 1 << 20)
    assert no_stage is not None
    assert (no_stage.stage_refused, no_stage.staging) == ("File exists", None)


def test_a_node_with_another_file_system_is_noticed(tmp_path: Path) -> None:
    """The second of two nodes, whose first has told that it wrote a file."""

    class Second(Processes):
        def broadcast(self, value: object) -> object:
            return "name" if isinstance(value, str) else True

    found = disks.try_disks(Second(rank=1), tmp_path / "runs", tmp_path / "stage", None, 1 << 20)
    assert found is not None
    assert (found.shared, found.refused, found.staging) == (False, "", None)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    assert node.cannot_write(tmp_path) == ""
    assert node.cannot_write(tmp_path / "nowhere") == "No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_listens_and_one_that_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert node.reaches(url)
    assert not node.reaches(url)


def test_the_server_of_wandb_is_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert node.wandb_url() == wandb.Settings().base_url
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert node.wandb_url() == node.WANDB


@pytest.mark.parametrize("imported", [False, pytest.param(True, marks=pytest.mark.ffcv)])
def test_ffcv_that_is_not_there_is_missing(imported: bool, request: pytest.FixtureRequest) -> None:
    if imported:
        pytest.importorskip("data.ffcv_loader", exc_type=ImportError)
    request.getfixturevalue("no_ffcv")
    assert node.versions()["ffcv"] == "missing"


def test_photos_are_as_large_as_imagenets(tmp_path: Path) -> None:
    loading.make_photos(tmp_path, 1)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.jpg")]
    assert len(sizes) >= 2 * loading.BATCH
    assert 90e3 < sum(sizes) / len(sizes) < 130e3


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A dashboard that refuses."""
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("offline")
def test_alone_on_a_laptop(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And where FFCV does not import: the torch loader stands in for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(node, "ffcv_version", lambda: node.MISSING)
    main(["--quick", *TINY, "run.workers=1"])
    out = capsys.readouterr().out
    assert "1 process on cpu, 1 node; vit_t16 at 32 px, fp32" in out
    assert f"\n{socket.gethostname().split('.')[0]} " in out
    assert "all-reduce" not in out
    assert re.search(r"\n1 +[\d,.]+ +100%\n", out[out.index("train step") :])
    assert "the loader is torch: 64 original images" in out
    assert "photos that were made up for it" in out
    assert "FFCV cannot be imported on" in out
    assert f"W&B ({os.environ['WANDB_BASE_URL']}) cannot be reached from here" in out
    assert "scripts/wandb_resync.py" in out
    assert str(tmp_path) not in out
    assert str(Path.home()) not in out
    assert list((tmp_path / "runs").iterdir()) == []


def test_photos_are_written_as_a_data_set_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "ffcv_version", lambda: "1.0.2")
    effort = Effort(seconds=1.0, sizes={}, block=0, made_up=True)
    with images(Processes(), DataConfig(name="imagenet", root="/nowhere"), effort) as (dataset, source, classes):
        assert files.check(files.train_beton(dataset), dataset, "train").count == 2 * loading.BATCH
        assert (source, classes) == (None, 1000)
    assert not Path(dataset.root).exists()


@pytest.mark.usefixtures("offline")
def test_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"data.root={tmp_path}/digits", f"run.dir={tmp_path}/runs"]
    main(["--quick", *TINY, "data=digits", "data.loader=torch", "run.workers=1", *where])
    out = capsys.readouterr().out
    assert "the loader is torch: 1,437 original images" in out
    assert "made up" not in out


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_two_processes(tmp_path: Path, command: Callable[..., SimpleNamespace]) -> None:
    done = command(
        "scripts/check_cluster.py", "--quick", *TINY, "data.loader=torch", "run.processes=2", "run.workers=1"
    )
    assert done.code == 0, done.err
    assert "2 processes on cpu, 1 node" in done.out
    bandwidth, steps = done.out[done.out.index("all-reduce by gloo") :].split("train step")
    assert "\n2  " in bandwidth
    assert "\n1  " in steps
    assert "\n2  " in steps
    assert max(map(len, done.out.splitlines())) < 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data=digit"], "digits"),
        (["model=vit_t61"], "vit_t16"),
        (["--batch-size=12"], "augment.mixing_group=8 does not divide the 12 images"),
        (["data=folder", "data.root=/nowhere/at/all"], "The data folder /nowhere/at/all does not exist"),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # as in a fresh process
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "run.device=cpu", "data.loader=torch"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1
