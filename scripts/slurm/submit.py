"""Submit one run; `scripts/slurm/train.sbatch` calls it, and says how."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from scripts.slurm import jobs
from scripts.slurm.plan import composed, plan, prepare


def main(words: list[str]) -> None:
    """Check the run, copy the code into its folder, and submit it."""
    options, overrides = split(words)
    resources = jobs.Resources.of(options, cpu_only=composed(overrides).run.device == "cpu")
    run = plan(overrides, gpus=resources.gpus, processes=resources.nodes * resources.tasks)
    now = jobs.standing(run, "train", jobs.queued())
    if not now.wanted:
        print(f"{run.folder} is {now.state}: {now.detail}")
        return
    prepare([run])
    log = run.folder / "slurm" / "train.log"
    named = [*resources.options, f"--job-name={run.folder.name}", f"--output={log}"]
    job = jobs.submit([run], "train", run.folder / "slurm" / "work", named)
    print(f"job {job} is queued; its log: {log}")


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Words with a dash, and a value after one that has no `=`, are sbatch's options; the others overrides."""
    options: list[str] = []
    overrides: list[str] = []
    for word in words:
        value = "=" not in word and not word.startswith("~") and options and "=" not in options[-1]
        (options if word.startswith("-") or value else overrides).append(word)
    return options, overrides


def from_job(overrides: list[str], job: str, work: Path) -> None:
    """What a job does at its first start where sbatch got train.sbatch itself."""
    nodes, tasks = (int(os.environ.get(name, 1)) for name in ("SLURM_JOB_NUM_NODES", "SLURM_NTASKS_PER_NODE"))
    run = plan(overrides, gpus=int(os.environ.get("SLURM_GPUS_ON_NODE", 0)), processes=nodes * tasks)
    prepare([run])
    jobs.note_job(run, "train", job)
    work.write_text(run.line("train") + "\n")
    print(f"its log: {run.folder}/slurm/train.log", flush=True)


if __name__ == "__main__":
    with sentences():
        if sys.argv[1:2] == ["--from-job"]:
            from_job(sys.argv[4:], job=sys.argv[2], work=Path(sys.argv[3]))
        else:
            main(sys.argv[1:])
