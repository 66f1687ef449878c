"""The demo: train a small ViT with GAB on handwritten digits, evaluate it, and say where everything is."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOAL = 95.0  # top-1, percent
PYTHON = os.path.relpath(sys.executable, ROOT) if Path(sys.executable).is_relative_to(ROOT) else sys.executable

RESULTS = """
What it left in {folder}
  figures/top1.png             accuracy by epoch
  figures/bias_over_time.png   how far σ and A of every layer moved from their start
  record.jsonl                 all that was measured, one JSON object per line
  config.yaml                  every setting of the run
  checkpoints/                 last.pt (the headline) and best.pt
  eval/                        scores.json, per-class tables and predictions of eval.py

What to try next
  What its biases learned, and where its attention goes, as figures:
    {python} eval.py checkpoint={folder}/checkpoints/last.pt 'evaluators=[bias_maps,rollout]' run.device=cpu
  Without the Gaussian, which this run had (model.gab=true), everything else alike:
    {python} train.py experiment=digits model.gab=false run.device=cpu run.dir={runs} run.name=plain
  Compare both (360 images and one seed show that it runs, not which is better):
    {python} scripts/compare.py {folder} {runs}/plain
  The same in W&B, once you are logged in there:
    {python} scripts/wandb_resync.py {folder}
  Your own images, or ImageNet: README.md, "Training on ImageNet"."""


def main() -> None:
    """Run what is not done yet; the exit code is 1 where a part fails or top-1 stays below the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="where the run's folder goes (default: %(default)s)")
    runs = parser.parse_args().runs
    os.chdir(ROOT)
    folder = Path(runs, "demo")
    scores = folder / "eval" / "scores.json"
    started = time.monotonic()
    if scores.is_file():
        print(f"The demo is finished already; `rm -r {shlex.quote(str(folder))}` and the same command run it again.")
    else:
        train_and_evaluate(runs, folder)
        print(f"\nThe demo took {time.monotonic() - started:.0f} s.")
    found = json.loads(scores.read_text())["scores"]
    top1, top1_ema, images = found["raw"]["top1"], found["ema"]["top1"], found["raw"]["images"]
    print(f"Top-1 {top1:.2f} % (EMA {top1_ema:.2f} %) on {images} digits that it was not trained on.")
    print(RESULTS.format(folder=folder, runs=runs, python=PYTHON))
    if top1 < GOAL:
        sys.exit(f"error: top-1 is below {GOAL:g} %, so something is wrong here: please report it with {folder}")


def train_and_evaluate(runs: str, folder: Path) -> None:
    """The two commands."""
    train = ["train.py", "experiment=digits", "model.gab=true", "run.device=cpu", f"run.dir={runs}", "run.name=demo"]
    if not has_ffcv():
        print("FFCV does not import here, so the images come from the torch loader: the same ones, more slowly.")
        train.append("data.loader=torch")
    call(train)
    call(["eval.py", f"checkpoint={folder}/checkpoints/last.pt", "run.device=cpu", f"eval.out={folder}/eval"])


def has_ffcv() -> bool:
    """Whether FFCV, which links to libraries of the system, really imports."""
    return subprocess.run([sys.executable, "-c", "import ffcv"], capture_output=True).returncode == 0


def call(arguments: list[str]) -> None:
    """Show a command as one would type it, and run it; ends the demo if it fails, since it has said why."""
    print(f"\n$ {shlex.join([PYTHON, *arguments])}", flush=True)
    one_thread = {"OMP_NUM_THREADS": "1"}  # more of them mostly wait for one another where a network is so small
    done = subprocess.run([sys.executable, *arguments], env=one_thread | os.environ)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
