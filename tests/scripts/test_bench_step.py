import csv
import os
import time
from argparse import Namespace
from pathlib import Path

import pytest

from scripts import bench_step
from scripts.bench.processes import Served
from scripts.bench.step_networks import GROUPS, Network, targets
from scripts.bench.step_worker import Measured
from scripts.bench.tables import update_table
from scripts.bench_step import Bench, forms

FUSED = Network("gab_vit", {}, "fused")
WHOLE = GROUPS["tiny"]["tiny + GAB"]


@pytest.fixture
def given(tmp_path):
    return Namespace(
        **{"device": "cpu", "batch_size": 8, "rounds": 2, "steps": 2, "source_steps": 2, "together": 2, "forms": None},
        source=["data=digits", "data.loader=torch", f"data.root={tmp_path}", "run.workers=1"],
        **{"budget_seconds": None, "deterministic": False, "output": tmp_path / "table.csv", "groups": ["tiny"]},
    )


def test_forms(given):
    assert forms(WHOLE, given) == ["eager", "trainer", "trainer, files"]
    assert forms(FUSED, given) == []
    given.device, given.deterministic, given.source = "cuda", True, None
    assert forms(FUSED, given) == ["compiled", "compiled, deterministic"]
    given.forms = ["trainer"]
    assert forms(WHOLE, given) == ["trainer", "trainer, deterministic"]


@pytest.mark.parametrize("form", ["eager", "trainer", "trainer, files"])
def test_measures(form, given):
    measured = Measured(WHOLE, form, given)
    assert measured.about["parameters"] == 19852
    assert measured.about["attention"] == "sdpa (no CUDA)"
    for _ in range(2):
        result = measured.measure()
        assert 0 < result["seconds"] < 5
        assert 0 < result["cpu"] < 5
        assert (0 < result["waited"] < 1) if form.startswith("trainer") else result["waited"] == 0
    measured.steps.close()


class Fake:
    """A process whose steps take as many seconds as its name tells, and which ends after `rounds`."""

    def __init__(self, seconds, rounds=9):
        self.about, self.seconds, self.rounds = {"parameters": 5, "macs": 1e9, "attention": None}, seconds, rounds

    def ask(self):
        self.rounds -= 1
        return None if self.rounds < 0 else {"seconds": self.seconds, "cpu": 1.0, "waited": 0.25, "memory": 2.0**30}

    def close(self):
        self.rounds = 0


@pytest.fixture
def bench(given, monkeypatch):
    """Of networks that are not there: the second takes three times the time, and images from files four times."""

    def fake(script, *arguments, deadline):
        _, name, form = arguments[:3]
        return Fake((3.0 if "GAB" in name else 1.0) * (4 if "files" in form else 1), 1 if form == "eager" else 9)

    monkeypatch.setattr(bench_step, "Served", fake)
    return Bench(given, None, 1e12)


def read(path):
    with path.open(newline="") as file:
        return {(row["network"], row["form"]): row for row in csv.DictReader(file)}


def test_table(bench, given, capsys):
    given.output.write_text("group,network,form,gpu,images\ntiny,tiny,eager,,\nold,old,eager,,\n")
    bench.run("tiny")
    table = read(given.output)
    assert len(table) == 7
    assert table["old", "eager"]["mfu"] == ""
    row = table["tiny + GAB", "trainer"]
    assert (row["milliseconds"], row["ratio"], row["memory_ratio"], row["rounds"]) == ("3000.0", "3.0", "1.0", "2")
    assert float(row["mfu"]) == round(6 * 1e9 * 8 / 3 / 1e12, 4)
    assert row["images"] == row["of_synthetic"] == ""
    row = table["tiny + GAB", "trainer, files"]
    assert (row["of_synthetic"], row["waited"], row["images"][:11]) == ("0.25", "0.25", "data=digits")
    assert table["tiny", "eager"]["rounds"] == "1"
    assert "it has ended or was too slow" in capsys.readouterr().out


def test_the_budget_ends_it(bench, given, capsys):
    given.budget_seconds = 60.0
    bench.deadline = time.monotonic()
    bench.run("tiny")
    assert "no time is left to start it" in capsys.readouterr().out
    assert not given.output.exists()
    bench.deadline = time.monotonic() + 60
    bench.run("tiny")
    assert len(read(given.output)) == 6


def test_every_target_can_be_measured(given):
    given.device = "cuda"
    for target in targets():
        for group, name, form in filter(None, (target.of, target.against)):
            assert form in forms(GROUPS[group][name], given)


def test_targets(bench, capsys):
    plain, biased = ("gab_base", "ViT-base", "compiled"), ("gab_base", "ViT-base, RelPosMlp + GAB", "compiled")
    bench.check_targets()
    assert capsys.readouterr().out == ""
    for key, seconds, memory in ((plain, [1.0, 2.0], 100.0), (biased, [1.02, 2.02], 103.0)):
        bench.rounds[key] = [
            {"round": n, "seconds": s, "memory": memory, "images_per_second": 5000.0, "mfu": 0.5}
            for n, s in enumerate(seconds)
        ]
    bench.check_targets()
    said = capsys.readouterr().out
    assert "met     B/16 + RelPosMlp + GAB, time over plain B/16's: 1.015 (<= 1.03)" in said
    assert "NOT MET B/16, peak memory over plain's: 1.030 (<= 1.02)" in said
    assert "met     B/16 + RelPosMlp + GAB, images/s: 5,000.000 (>= 4,500)" in said
    assert "NOT MET B/16 + RelPosMlp + GAB, share of the ceiling: 0.500 (>= 0.6)" in said
    assert "timm" not in said


def test_a_table_keeps_the_rows_of_others(tmp_path):
    path = tmp_path / "table.csv"
    update_table(path, [{"name": "a", "old": 1}, {"name": "b", "old": 2}], ("name",))
    update_table(path, [{"name": "b", "new": 3}], ("name",))
    assert path.read_text() == "name,new,old\na,,1\nb,3,\n"


def test_processes_that_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    script = tmp_path / "script.py"
    script.write_text(
        "import itertools, os, sys, time\n"
        "from scripts.bench.processes import serve\n"
        "def measure(question, numbers=itertools.count()):\n"
        "    print('a library says something')\n"
        "    number = next(numbers)\n"
        "    time.sleep(60 if number == 2 else 0)\n"
        "    return question + str(number)\n"
        "serve({'name': sys.argv[1]}, measure)\n"
    )
    served = Served(str(script), "it")
    assert served.about == {"name": "it"}
    assert [served.ask(), served.ask("which? ")] == ["0", "which? 1"]
    served.deadline = time.monotonic() + 0.2
    assert served.ask() is None
    assert served.ask() is None
    script.write_text("raise SystemExit(1)")
    assert Served(str(script)).about is None


@pytest.mark.slow
def test_whole(command, tmp_path):
    table = tmp_path / "table.csv"
    done = command("scripts/bench_step.py", "--groups=tiny", "--rounds=1", "--batch-size=4", f"--output={table}")
    assert done.code == 0, done.err
    assert set(read(table)) == {(name, form) for name in GROUPS["tiny"] for form in ("eager", "trainer")}
    assert float(read(table)["tiny", "trainer"]["ceiling_tflops"]) > 0
    assert os.listdir(tmp_path) == ["table.csv"]
