"""What a running comparison looks like: lines in a log, bars in a terminal, several workers."""

import io

from rich.console import Console

from deltakit.cli.live import Live


def log() -> tuple[Live, io.StringIO]:
    stream = io.StringIO()
    return Live(Console(file=stream, force_terminal=False, width=100)), stream


def test_workers_tell_of_their_cells_in_lines_of_their_own() -> None:
    live, stream = log()
    with live:
        live.begin(300, reused=2)
        one, two = live.lane(0), live.lane(1)
        one.start("lora", 100)
        two.start("full", 100)
        one.note("training")
        one.advance(60)
        two.advance(10)
        one.finish("80.0 % in 3 s")
        two.finish("70.0 % in 4 s")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "2 finished cells of an earlier run are taken as they are"
    assert lines[1:] == ["lora ...", "full ...", "lora: 80.0 % in 3 s", "full: 70.0 % in 4 s"]
    assert live.done == 200, "what a cell did not use of its units is done with it"


def test_what_is_left_of_a_cell_is_not_done() -> None:
    live, _ = log()
    lane = live.lane(0)
    live.begin(100, reused=0)
    lane.start("lora", 100)
    lane.advance(65)
    lane.finish("trained", left=30)
    assert live.done == 70
    lane.start("lora", 30)
    lane.advance(70)
    assert live.done == 100, "a cell is never more than done"
    lane.finish("80.0 %")
    assert live.done == 100
    lane.start("full", 50)
    lane.advance(20)
    lane.finish("its process died", left=50)
    assert live.done == 100


def test_a_terminal_shows_a_bar_for_each_worker() -> None:
    live = Live(Console(file=io.StringIO(), force_terminal=True, width=100))
    with live:
        live.begin(100, reused=0)
        lanes = [live.lane(number) for number in range(3)]
        for lane in lanes:
            lane.start("lora", 10)
            lane.note("training")
        assert [task.description for task in live.bars.tasks] == ["all cells"] + [
            "lora: training"
        ] * 3
        for lane in lanes:
            lane.finish("80.0 %")
        assert [task.completed for task in live.bars.tasks] == [30]
