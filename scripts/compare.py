"""Whether an idea helps: `python scripts/compare.py runs/A* runs/B* --by variant`, or how many seeds would tell.

Runs that share all settings but what is studied, and their seeds, are compared: an arm for each of its values, against
the arm of the run that is named first. The folder of --out gets comparison.html, which opens offline, and its table as
.md, .csv and .tex; comparison.json remembers what was looked at. How to read them: docs/compare.md.

    compare.py runs/* --by variant                   networks, by their names
    compare.py runs/* --by model.gab                 one setting; a verdict for each data set and size
    compare.py runs/* --endpoint loss --last 3       log-loss, mean of the last three evaluations
    compare.py --plan --effect 0.1 --aa STUDY.csv    seeds that find a difference of 0.1, before any is trained
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

from conf.errors import sentences
from gab.comparison import arms, looks, page, plan, tables
from gab.comparison.arms import Arm, Group
from gab.comparison.runs import Endpoint, NoRun, Run, Unfinished, default_endpoint, load
from gab.comparison.verdict import Comparison, Rules, decide
from gab.comparison.words import doubts, proof, sentence
from gab.errors import UserError

DELTA, DELTA_LOSS = 0.1, 0.005  # points, nats
SHOWN = 3  # names of what is no run


def main(arguments: list[str] | None = None) -> None:
    """Compare runs, or plan a comparison."""
    parser = parser_of()
    given = parser.parse_intermixed_args(arguments)
    with sentences():
        if given.plan:
            print(planned(given))
        elif not given.runs:
            parser.error("give folders of runs, or --plan")
        else:
            compare(given.out, given.runs, given)


def parser_of() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="runs/NAME", help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write (default: %(default)s)")
    parser.add_argument("--by", metavar="KEY", help="`variant`, or settings, with commas; default: all that differ")
    parser.add_argument("--baseline", metavar="ARM", help="label of an arm, or its value; default: the first run's")
    parser.add_argument("--endpoint", metavar="FIELD", help="of the record; default: test or validation top-1")
    parser.add_argument("--last", type=int, default=1, metavar="K", help="mean of the last K evaluations")
    parser.add_argument("--delta", type=float, help=f"smallest that matters (default: {DELTA}; losses {DELTA_LOSS})")
    parser.add_argument("--paired", action="store_true", help="verdict by the paired t; choose before you look")
    parser.add_argument("--plan", action="store_true", help="say how many seeds are needed")
    parser.add_argument("--effect", type=float, metavar="D", help="with --plan: the difference to find")
    parser.add_argument("--comparisons", type=int, default=1, metavar="K", help="with --plan: verdicts in one call")
    parser.add_argument("--aa", type=Path, metavar="STUDY.csv", help="with --plan: spread, of scripts/aa_study.py")
    parser.add_argument("--sd", type=float, help="with --plan, instead of --aa: the spread over seeds")
    return parser


def planned(given: argparse.Namespace) -> str:
    """The seeds that are needed; raises UserError where spread or effect are not given."""
    if not given.effect or given.effect <= 0:
        raise UserError("--plan needs --effect, the difference to find, above 0")
    if given.comparisons < 1:
        raise UserError("--comparisons is the number of verdicts in one call: 1 or more")
    if (given.aa is None) == (given.sd is None):
        raise UserError("--plan needs the spread over seeds: --aa STUDY.csv of scripts/aa_study.py, or --sd NUMBER")
    if given.sd is not None:
        if given.sd <= 0:
            raise UserError("--sd is the standard deviation over seeds: a number above 0")
        return plan.plan(given.effect, given.sd, comparisons=given.comparisons)
    spread = plan.read(given.aa, Endpoint(given.endpoint or "top1").name)
    if not spread.sd:
        raise UserError(
            f"the seeds of {given.aa} do not differ in {spread.endpoint}: study more of them, or more images"
        )
    return f"{plan.told([spread])}\n\n{plan.plan(given.effect, spread.sd, spread.seeds, given.comparisons)}"


def compare(out: Path, folders: list[Path], given: argparse.Namespace) -> None:
    """Write and print the comparison; raises UserError where there is none."""
    if any((out / name).is_file() for name in ("record.jsonl", "config.yaml")):
        raise UserError(f"{out} is the folder of a run: give the comparison a folder of its own by --out")
    if given.last < 1 or (given.delta is not None and given.delta <= 0):
        raise UserError("--last takes 1 or more evaluations, and --delta a difference above 0")
    runs, notes = loaded(folders)
    endpoint = Endpoint(given.endpoint, given.last) if given.endpoint else default_endpoint(runs, given.last)
    keys = arms.studied(runs, given.by)
    groups = arms.match(runs, keys)
    for group in groups:
        arms.check_data(group)
    rules = Rules(given.delta or (DELTA_LOSS if endpoint.is_loss else DELTA), given.paired)
    comparisons, alone = paired_up(groups, given.baseline, endpoint, rules)
    if not comparisons:
        if given.by and (others := arms.closest(groups)):
            raise UserError(
                f"no two runs differ in {given.by} alone: the most similar also differ in {', '.join(others)}; give "
                "runs that share it, or name it in --by too"
            )
        raise UserError(" ".join(["there is nothing to compare: give runs of another arm too.", *alone, *notes]))
    out.mkdir(parents=True, exist_ok=True)
    notes += alone + [doubt for one in comparisons for doubt in doubts(one)] + looks.remember(out, comparisons)
    table = tables.as_markdown(groups, comparisons, endpoint)
    words = [text for one in comparisons for text in (sentence(one), proof(one)) if text]
    (out / "comparison.csv").write_text(tables.as_csv(groups, comparisons, endpoint))
    (out / "comparison.tex").write_text(tables.as_latex(groups, comparisons, endpoint))
    (out / "comparison.md").write_text("\n\n".join([*words, *notes, table]))
    (out / "comparison.html").write_text(page.render(groups, comparisons, endpoint, notes))
    print("\n".join([*words, *notes, "", table, f"{out / 'comparison.html'} shows it; also .md, .csv and .tex"]))


def loaded(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs that came to their end, and what is said of the others.

    Raises:
        UserError: none has, or one does not exist or cannot be read.
    """
    runs, notes, no_runs = [], [], []
    for folder in folders:
        try:
            runs.append(load(folder))
        except NoRun:
            no_runs.append(str(folder))
        except Unfinished as reason:
            notes.append(f"Left out: {reason}.")
    if no_runs:
        more = f" and {len(no_runs) - SHOWN} more" if len(no_runs) > SHOWN else ""
        notes.append(f"Left out as no runs, or not begun: {', '.join(no_runs[:SHOWN])}{more}.")
    if not runs:
        raise UserError(" ".join(["none of these runs has come to its end, so there is nothing to compare.", *notes]))
    return runs, notes


def paired_up(
    groups: list[Group], baseline: str | None, endpoint: Endpoint, rules: Rules
) -> tuple[list[Comparison], list[str]]:
    """Every arm against the baseline of its group, which becomes its first, and a sentence for each group without one.

    Networks of several sizes have arms of other names: the baseline is what has the same values of what is studied.

    Raises:
        UserError: no arm is called so.
    """
    everywhere = [arm for group in groups for arm in group.arms]
    called = [arm for arm in everywhere if is_called(arm, baseline)] if baseline else everywhere[:1]
    if not called:
        labels = dict.fromkeys(arm.label for arm in everywhere)
        raise UserError(f"there is no arm {baseline}: --baseline takes one of {'; '.join(labels)}")
    wanted = [arm.values for arm in called]
    found, alone = [], []
    for group in groups:
        like = [arm for arm in group.arms if arm.values in wanted]
        base = next((arm for arm in like if baseline and is_called(arm, baseline)), next(iter(like), None))
        others = [arm for arm in group.arms if arm is not base]
        if base is None or not others:
            names = ", ".join(arm.label for arm in group.arms)
            alone.append(f"Nothing is compared on {group.label}, which has runs of {names} alone.")
        if base is not None:
            group.arms = [base, *others]
            found += [Comparison(group, base, arm, endpoint, rules) for arm in others]
    return decide(found), alone


def is_called(arm: Arm, name: str) -> bool:
    """Whether `name` is an arm's label or what tells it from others."""
    return name in (arm.label, ", ".join(str(value).lower() for value in arm.values.values()))


if __name__ == "__main__":
    main()
