from pathlib import Path

from gab.distributed.launch import launch
from gab.distributed.processes import Processes
from gab.training.agreement import Agreement


def test_one_process_agrees_with_itself_at_once() -> None:
    agreement = Agreement(Processes())
    assert agreement(15, 0) == (15, 0)
    assert agreement.settle() is None


def work(processes: Processes, folder: Path) -> None:
    agreement = Agreement(processes)
    wishes = {(1, 2): (10, 0), (2, 4): (0, 1), (0, 4): (12, 0)}  # of (rank, call)
    answers = [agreement(*wishes.get((processes.rank, call), (0, 0))) for call in range(6)]
    answers.append(agreement.settle())
    (folder / str(processes.rank)).write_text(repr(answers))


def test_what_one_wishes_all_know_one_call_later(forking: None, tmp_path: Path) -> None:
    launch(work, (tmp_path,), count=3, device="cpu")
    expected = [(0, 0), (0, 0), (0, 0), (10, 0), (0, 0), (12, 1), (0, 0)]
    assert {path.read_text() for path in tmp_path.iterdir()} == {repr(expected)}
