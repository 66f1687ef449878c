"""Makes docs/gallery.md anew: trains its networks, runs its commands, and puts their figures beside it.

The page is the plan. Every line of its shell blocks down to MARK is run: those of train.py first, and none whose run is
finished; then the others, which draw SVG in place of PNG and PDF. A picture's title says where its command leaves it.
The table of networks is written from their records. The text is written by hand: look at every picture again, and
correct what it says.

    gallery.py                  all of that
    gallery.py --study FOLDER   what is below MARK: the comparison of a study of scripts/aa_study.py with a third arm
"""

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from gab.comparison import plan
from gab.comparison.runs import load
from gab.errors import UserError
from gab.tracking.record import read
from scripts import aa_study, compare
from scripts.bench.tables import write_table
from scripts.curves import came_from, different
from scripts.demo import has_ffcv

PAGE = Path("docs/gallery.md")
RUNS = Path("runs/gallery")
MARK = "<!-- Down to here by scripts/gallery.py. -->"
RESULTS = Path("results")
AT_A_TIME = 2  # commands, with a thread each


def main() -> None:
    """Train, draw, copy, write; or take in a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, metavar="FOLDER", help="take in a study, in place of all else")
    study = parser.parse_args().study
    if study:
        study = study.absolute()
    os.chdir(ROOT)
    started = time.monotonic()
    with sentences():
        name, text = ("comparison", take_in(study)) if study else ("networks", make(PAGE.read_text()))
    PAGE.write_text(replaced(PAGE.read_text(), name, text))  # read again: somebody may have edited its text meanwhile
    print(f"{PAGE} is written, after {time.monotonic() - started:.0f} s; check it: its text is written by hand.")


def replaced(page: str, name: str, text: str) -> str:
    """The page with what is between two comments anew."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
    return between.sub(lambda _: f"\n{text}\n\n", page, count=1)


def make(page: str) -> str:
    """Every figure of the page, and its table of networks; raises UserError where a command fails."""
    loader = [] if has_ffcv() else ["data.loader=torch"]
    unfinished = [[*words, *loader] for name, words in training(page).items() if not finished(RUNS / name)]
    drawing = [words for words in commands(page) if words[0] != "train.py"]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(run, unfinished))
        list(pool.map(run, drawing))
    for shown, drawn in pictures(page).items():
        shown.parent.mkdir(exist_ok=True)
        shutil.copyfile(drawn, shown)
    return "\n".join(networks(page))


def commands(page: str) -> list[list[str]]:
    """The words after `python` of every command of the page, down to MARK."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.partition(MARK)[0], re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


def training(page: str) -> dict[str, list[str]]:
    """The commands of train.py, by the names of their runs."""
    named = ((words, word.partition("run.name=")[2]) for words in commands(page) for word in words)
    return {name: words for words, name in named if name and words[0] == "train.py"}


def pictures(page: str) -> dict[Path, Path]:
    """Files beside the page, and where commands leave them."""
    found = re.findall(r'^!\[[^\]]*\]\((\S+) "(\S+)"\)', page.partition(MARK)[0], re.MULTILINE)
    return {PAGE.parent / shown: Path(drawn) for shown, drawn in found}


def finished(folder: Path) -> bool:
    """Whether the run has come to its end."""
    record = folder / "record.jsonl"
    return record.is_file() and read(record)[-1]["kind"] == "end"


def run(words: list[str]) -> None:
    """Run a command of the page; raises UserError where it fails."""
    print(f"$ {shlex.join(['python', *words])}", flush=True)
    figures = {} if words[0] == "train.py" else {"GAB_FIGURES": "svg"}
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | figures
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"python {shlex.join(words)}: this command of {PAGE} failed.\n{done.stderr[-2000:]}")


def networks(page: str) -> Iterator[str]:
    """The rows of the table of networks."""
    yield "| run | network | parameters | top-1 (%) |"
    yield "|---|---|---|---|"
    for name in training(page):
        start, *_, end = read(RUNS / name / "record.jsonl")
        yield f"| `{name}` | {start['variant']} | {start['parameters']:,} | {end['top1']:.2f} |"


def take_in(study: Path) -> str:
    """The page of a study's comparison, its tables in results/, and what they say, in Markdown.

    Seeds count from 0 up to the first that is not finished. What was looked at is remembered in the study's folder.

    Raises:
        UserError: there are too few seeds, or nothing to compare.
    """
    seeds = next(seed for seed in count() if not all(map(finished, runs_of(study, [seed]))))
    if seeds < 2:
        raise UserError(f"{study} has {seeds} finished seeds of a, aa and b, and two are the least: finish it first")
    spreads = aa_study.measured(study, seeds)
    plan.write(study / "study.csv", spreads)
    out = study / "comparison"
    arms = [str(folder) for arm in "ab" for folder in runs_of(study, range(seeds), [arm])]
    compare.main([*arms, "--by", "model.gab", "--out", str(out)])
    shutil.copyfile(out / "comparison.html", PAGE.parent / "gallery" / "compare.html")
    name = load(study / "runs" / "a-s0").config["data.name"]
    for table, result in ((study / "study.csv", "aa_study"), (out / "comparison.csv", f"comparison_{name}")):
        with table.open(newline="") as file:
            write_table(RESULTS / f"{result}.csv", [{**row, **origin(study, seeds)} for row in csv.DictReader(file)])
    told = "\n".join(f"- {line}" for line in plan.told(spreads).splitlines())
    return f"{told}\n\n{(out / 'comparison.md').read_text().strip()}"


def runs_of(study: Path, seeds: Sequence[int], arms: Sequence[str] = ("a", "aa", "b")) -> list[Path]:
    """Folders of a study's runs."""
    return [study / "runs" / f"{arm}-s{seed}" for seed in seeds for arm in arms]


def origin(study: Path, seeds: int) -> dict[str, Any]:
    """Where the runs of a study come from, for its tables: as `scripts.curves` has it, with versions."""
    starts = [json.loads((folder / "provenance.json").read_text()) for folder in runs_of(study, range(seeds))]
    first, _, other = (settings(each[0]["command"]) for each in starts[:3])
    also = [word for setting in other if setting not in first for word in ("--also", setting)]
    command = ["python", "scripts/aa_study.py", "STUDY", "--seeds", str(seeds), *also, *first]
    every = [start for each in starts for start in each]
    versions = {"python": different(start["python"] for start in every)}
    versions |= {"torch": different(start["packages"]["torch"] for start in every)}
    return {**came_from(every), **versions, "command": shlex.join(command)}


def settings(command: str) -> list[str]:
    """What a command of train.py sets, but for what a study sets itself."""
    words = shlex.split(command)
    script = next(place for place, word in enumerate(words) if word.endswith("train.py"))
    return [word for word in words[script + 1 :] if word.partition("=")[0] not in aa_study.OURS]


if __name__ == "__main__":
    main()
