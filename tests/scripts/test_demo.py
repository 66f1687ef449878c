"""What the demo says at its end."""

import re
from pathlib import Path

from scripts.demo import RESULTS

ROOT = Path(__file__).parents[2]


def test_the_closing_words_name_scripts_that_there_are() -> None:
    said = RESULTS.format(folder="runs/demo", runs="runs", python="python")
    scripts = re.findall(r"python (\S+\.py) (\S+)", said)
    assert scripts == [
        ("eval.py", "checkpoint=runs/demo/checkpoints/last.pt"),
        ("train.py", "experiment=digits"),
        ("scripts/compare.py", "runs/demo"),
        ("scripts/wandb_resync.py", "runs/demo"),
    ]
    assert all((ROOT / script).is_file() for script, _ in scripts)
