"""docs/gallery.md: its commands are possible, and its pictures are there, as text, and small."""

import csv
import json
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from conf.checks import check, check_evaluation, fill_in
from conf.schema import data_for, typed
from scripts import compare, erf, gallery
from tests.gab.comparison.made import made_run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / gallery.PAGE).read_text()
PICTURES = gallery.pictures(TEXT)
LARGEST = 1.6e6  # bytes, of all together


def composed(kind: str, words: list[str]):
    """The config of a command of train.py or eval.py, which fits the schema."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(kind, words)


def test_networks_are_trained_where_the_page_looks_for_them() -> None:
    names = list(gallery.training(TEXT))
    assert len(names) == len(set(names)) >= 5
    for name, words in gallery.training(TEXT).items():
        cfg = composed("train", words[1:])
        fill_in(cfg, "cpu")
        config = typed(cfg)
        check(config, processes=1)
        assert (Path(config.run.dir), config.run.name, config.data.name) == (gallery.RUNS, name, "digits")


def test_the_other_commands_look_at_these_networks() -> None:
    drawing = [words for words in gallery.commands(TEXT) if words[0] != "train.py"]
    assert {words[0] for words in drawing} == {"eval.py", "scripts/erf.py", "scripts/figures.py"}
    for words in drawing:
        assert (ROOT / words[0]).is_file()
        runs = {name for word in words for name in re.findall(rf"{gallery.RUNS}/(\w+)(?:/checkpoints/last.pt|$)", word)}
        runs -= {words[words.index("--out") + 1].split("/")[-1]} if "--out" in words else set()
        assert runs
        assert runs <= set(gallery.training(TEXT))
        if words[0] == "eval.py":
            config = composed("eval", [*words[1:], "data=digits"])
            config.data = data_for(config.data, None)
            check_evaluation(typed(config))
        if words[0] == "scripts/erf.py":
            erf.parse(words[1:])


def test_every_picture_is_what_a_command_draws() -> None:
    """Where its title says, in the folder of a command."""
    folders = [
        words[words.index("--out") + 1] if "--out" in words else str(Path(words[1].partition("=")[2]).parents[1])
        for words in gallery.commands(TEXT)
        if words[0] != "train.py"
    ]
    for drawn in PICTURES.values():
        assert any(drawn.is_relative_to(folder) for folder in folders), drawn
        assert drawn.suffix == ".svg"


def test_pictures_are_there_and_are_text() -> None:
    shown = re.findall(r"!\[([^\]]+)\]\((\S+)", TEXT)
    assert len(shown) == len(PICTURES) >= 12
    files = sorted((ROOT / "docs" / "gallery").iterdir())
    assert {file for file in files if file.suffix == ".svg"} == {ROOT / shown for shown in PICTURES}
    assert {file.suffix for file in files} <= {".svg", ".html"}
    assert sum(file.stat().st_size for file in files) < LARGEST
    for file in files:
        content = file.read_text()
        assert "\0" not in content
        assert not re.search(r"/(?:work|home|root|tmp)/|xlink:href=\"(?!#|data:)|(?:src|href)=\"http", content), file
        if file.suffix == ".svg":
            assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_page_says_how_good_every_network_is() -> None:
    table = TEXT.partition("<!-- networks -->")[2].partition("<!-- end of networks -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| [\d,]+ \| ([\d.]+) \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == list(gallery.training(TEXT))
    assert all(50 < float(top1) <= 100 for _, top1 in rows)  # of ten classes: none of them shows chance


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)", TEXT) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / "docs" / link.partition("#")[0]).exists()] == []


def test_the_comparison_is_by_commands_that_there_are() -> None:
    below = TEXT.partition(gallery.MARK)[2]
    lines = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^python .*", below, re.MULTILINE)]
    assert {words[0] for words in lines} == {"scripts/aa_study.py", "scripts/compare.py", "scripts/gallery.py"}
    [words] = [words for words in lines if words[0] == "scripts/compare.py"]
    compare.parser_of().parse_intermixed_args(words[1:])


def test_what_is_above_the_mark_is_run_and_nothing_else() -> None:
    above = "```sh\npython train.py run.name=a # why\n# no\nmake x\n```\npython no.py\n"
    page = f"{above}{gallery.MARK}\n```sh\npython b\n```\n"
    assert gallery.commands(page) == [["train.py", "run.name=a"]]
    assert gallery.training(page) == {"a": ["train.py", "run.name=a"]}


def test_a_part_of_the_page_is_replaced_and_nothing_else() -> None:
    part = "<!-- networks -->\nold\n<!-- end of networks -->\n"
    once = gallery.replaced(f"# A\n{part}B\n", "networks", r"new \1")
    assert once == "# A\n" + part.replace("old", "\nnew \\1\n") + "B\n"
    assert gallery.replaced(once, "networks", r"new \1") == once


def test_a_command_that_fails_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(gallery.UserError, match=r"python -c 'exit\(\"why\"\)': this command .* failed.\nwhy"):
        gallery.run(["-c", 'exit("why")'])


def test_a_study_is_taken_in_up_to_its_last_finished_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study(tmp_path / "study", {"a": [60.0, 62.0, 61.0], "aa": [60.2, 62.0, 61.2], "b": [61.0, 62.4]})
    (tmp_path / "docs" / "gallery").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = gallery.take_in(study)
    assert re.search(r"^- top1: mean 61, sd over 2 seeds .*\n(?:- .*\n)*\n.*model.gab=true against ", said)
    assert "<html" in Path("docs/gallery/compare.html").read_text()
    tables = [Path(f"results/{name}.csv").read_text().splitlines() for name in ("aa_study", "comparison_made")]
    [aa, *_], arms = map(list, map(csv.DictReader, tables))
    assert (aa["endpoint"], aa["seeds"]) == ("top1", "2")
    assert {(row["runs"], row["model.gab"]) for row in arms} == {("2", "False"), ("2", "True")}
    for row in (aa, *arms):
        assert row["command"] == "python scripts/aa_study.py STUDY --seeds 2 --also model.gab=true experiment=x"
        assert (row["commit"], row["python"], row["torch"], row["date"]) == ("abc", "3.11", "2.9", "2026-01-02")
        assert str(tmp_path) not in str(row)


def test_one_seed_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(gallery.UserError, match="has 1 finished seeds of a, aa and b, and two are the least"):
        gallery.take_in(made_study(tmp_path, {"a": [60.0, 61.0], "aa": [60.0], "b": [61.0, 60.0]}))


def made_study(folder: Path, scores: dict[str, list[float]]) -> Path:
    """A folder as of scripts/aa_study.py, with these scores of seeds 0, 1, ... of each arm."""
    for arm, values in scores.items():
        for seed, score in enumerate(values):
            run = made_run(folder / "runs" / f"{arm}-s{seed}", seed=seed, gab=arm == "b", score=score)
            own = {"aa": " run.micro_batch=8", "b": " model.gab=true"}.get(arm, "")
            words = f"experiment=x{own} seed={seed} 'run.dir='\"'\"'{folder}'\"'\"'' run.name={run.name}"
            start = {
                "time": "2026-01-02T03:04:05+00:00",
                "command": f"python {folder}/code/train.py {words}",
                "commit": "abc",
                "uncommitted": None,
                "hardware": {"cpu": "a processor", "usable_cores": 2, "gpus": []},
                "python": "3.11",
                "packages": {"torch": "2.9"},
            }
            (run / "provenance.json").write_text(json.dumps([start]))
    return folder
