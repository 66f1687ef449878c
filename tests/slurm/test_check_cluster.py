"""The look at an allocation, on two nodes."""

import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TINY = ["model=vit_t16", "model.embed_dim=48", "model.depth=2", "data.image_size=32", "data.loader=torch"]


def test_both_nodes_are_in_the_table(cluster: Cluster, tmp_path: Path) -> None:
    check = [sys.executable, str(ROOT / "scripts" / "check_cluster.py"), "--quick", "run.device=cpu", "run.workers=1"]
    step = ["srun", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
    out = cluster.call(*step, *check, *TINY, f"run.dir={tmp_path}/runs", cwd=tmp_path).stdout
    assert "2 processes on cpu, 2 nodes" in out
    for host in ("n1", "n2"):
        assert f"\n{host}    " in out
        assert f"{host} does not see" not in out
    assert out.count("check_cluster, ") == 1  # one process speaks
    assert "all-reduce by gloo" in out
