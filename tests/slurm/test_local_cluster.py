"""The cluster that all other tests here run on."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import CLUSTER, Cluster


@pytest.mark.slurm
def test_two_nodes_that_know_their_names_and_gpus(cluster: Cluster) -> None:
    told = 'getent hosts n1 n2 >/dev/null && echo "$(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"'
    out = cluster.call("srun", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1", "bash", "-c", told).stdout
    assert sorted(out.splitlines()) == ["n1 0 0", "n1 1 1", "n2 2 0", "n2 3 1"]


@pytest.mark.slurm
def test_a_second_start_is_refused_and_status_tells_of_the_first(cluster: Cluster) -> None:
    folder = str(Path(cluster.environment["SLURM_CONF"]).parent)
    again = cluster.call(str(CLUSTER), "start", folder, check=False)
    assert again.returncode == 1
    assert f"a cluster runs in {folder} already" in again.stderr
    status = cluster.call(str(CLUSTER), "status", folder).stdout
    assert "idle" in status


def local_cluster(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLUSTER, *arguments], env={"PATH": path}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("folder", ["", "relative", "/" + "x" * 70])
def test_a_folder_that_cannot_be_used_is_refused(folder: str) -> None:
    done = local_cluster("start", folder)
    assert done.returncode == 1
    assert "absolute path, of less than 70 characters" in done.stderr


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    folder = f"/tmp/{tmp_path.name[:30]}"
    assert local_cluster("stop", folder).returncode == 0
    done = local_cluster("status", folder)
    assert done.returncode == 1
    assert f"start {folder}` starts one" in done.stderr


def test_missing_packages_are_named(tmp_path: Path) -> None:
    for name in ("bash", "env", "id", "sed", "unshare"):  # one of what it needs is on every machine
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    script = CLUSTER.read_text().replace("PATH=$PATH:/usr/sbin:/sbin", "")
    (tmp_path / "script").write_text(script)
    command = ["/usr/bin/bash", tmp_path / "script"]
    environment = {"PATH": str(tmp_path)}
    for arguments, words in {("start", "/tmp/x"): "install` as root", ("install",): "apt-get install"}.items():
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert words in done.stderr
