"""The console: what a terminal shows, and the plain lines elsewhere."""

import io
import re
import threading
from collections.abc import Iterator

import pytest
import rich.console

from sparknet.reporting import LiveConsole, PlainConsole, open_console
from sparknet.reporting.area import draw_area, sparkline
from sparknet.reporting.progress import Progress
from sparknet.reporting.result import result_rows
from sparknet.reporting.table import caffe_scores

STARTED = {
    "event": "run_started",
    "elapsed_seconds": 10.0,
    "name": "digits",
    "run_dir": "runs/digits-1",
    "net": "digits_cnn",
    "parameters": 33490,
    "workers": 2,
    "rounds": 40,
    "first_round": 1,
    "local_steps": 10,
    "strategy": "average",
    "training_rows": 1438,
    "validation_rows": 359,
}
RESULT = {
    "accuracy": 0.9861,
    "top5": 0.9972,
    "loss": 0.0512,
    "rounds": 40,
    "workers": 2,
    "samples": 25600,
    "seconds": 30.0,
    "images_per_second": 3200.4,
    "sync_seconds": 1.5,
    "failures": 1,
}


def event(kind: str, elapsed: float, /, **fields: object) -> dict[str, object]:
    return {"time": 1.7e9 + elapsed, "elapsed_seconds": elapsed, "event": kind, **fields}


def committed(number: int, seconds: float) -> dict[str, object]:
    return event(
        "round",
        seconds,
        round=number,
        slots=[0, 1],
        steps=20,
        samples=640,
        loss=2.0 / number,
        images_per_second=3200.0,
        step_seconds=0.18,
        wait_seconds=0.01,
        exchange_seconds=0.01,
        sync_share=0.1,
        learning_rate=0.05,
    )


def joined(slot: int, seconds: float, **fields: object) -> dict[str, object]:
    return event(
        "worker_joined", seconds, **{"slot": slot, "attempt": 0, "host": "h", "round": 1, "heal": False} | fields
    )


def lost(slot: int, seconds: float, reason: str = "silent for 2.0 s") -> dict[str, object]:
    return event("worker_lost", seconds, slot=slot, attempt=0, host="h", round=5, reason=reason)


def whole_run() -> Iterator[dict[str, object]]:
    yield event("note", 0.0, message="starting Spark")
    yield STARTED
    yield joined(0, 11.0)
    yield joined(1, 11.1)
    yield event("quorum", 11.2, round=1, epoch=1, slots=[0, 1], healed=[])
    for number in range(1, 41):
        yield committed(number, 11.2 + 0.2 * number)
        if number % 20 == 0:
            yield event(
                "evaluation",
                11.25 + 0.2 * number,
                round=number,
                accuracy=0.9861,
                top5=0.9972,
                loss=0.0512,
                rows=359,
                seconds=0.05,
            )
    yield event("run_finished", 19.4, **RESULT)


def plain_lines(*records: dict[str, object]) -> list[str]:
    stream = io.StringIO()
    console = open_console(stream)
    for record in records:
        console.on_event(record)
    console.close()
    return stream.getvalue().splitlines()


def live_screen(*records: dict[str, object], width: int = 110) -> str:
    screen = rich.console.Console(file=io.StringIO(), record=True, width=width, force_terminal=True)
    console = LiveConsole(screen, animate=False, clock=lambda: 0.0)
    for record in records:
        console.on_event(record)
    console.close()
    return screen.export_text()


def area_of(*records: dict[str, object], later_seconds: float = 0.0) -> str:
    progress = Progress()
    for record in records:
        progress.apply(record)
    screen = rich.console.Console(file=io.StringIO(), record=True, width=110)
    screen.print(draw_area(progress, progress.elapsed_seconds + later_seconds))
    return screen.export_text()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_lines_and_a_terminal_the_live_view(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    assert isinstance(open_console(io.StringIO()), PlainConsole)
    assert isinstance(open_console(Terminal()), LiveConsole)
    assert isinstance(open_console(Terminal(), plain=True), PlainConsole)
    assert isinstance(open_console(io.StringIO(), plain=False), LiveConsole)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_console(Terminal()), PlainConsole)


def test_a_terminal_without_utf8_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    terminal.encoding = "iso-8859-1"  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(open_console(terminal), PlainConsole)


def test_plain_lines_tell_the_run():
    lines = plain_lines(*whole_run())
    assert lines[:5] == [
        "     0.0 s  starting Spark",
        "    10.0 s  digits: digits_cnn, 33,490 parameters, 1,438 training rows, 359 held out",
        "    10.0 s  2 workers, 40 rounds of 10 steps, strategy average; everything goes to runs/digits-1",
        "    11.0 s  worker 0 on h joined",
        "    11.1 s  worker 1 on h joined",
    ]
    assert "    15.2 s  round 20/40: accuracy 98.61 %, top-5 99.72 %, loss 0.0512 on 359 held-out rows" in lines
    assert lines[-1] == "    19.4 s  finished: accuracy 98.61 % after 40 rounds in 30.0 s"


def test_a_nets_own_outputs_stand_where_the_accuracy_would():
    measured = {"loss": 1.5, "outputs": {"loss1/top-5": 0.25, "iou": 0.5}}
    records = [
        *(record for record in whole_run() if record["event"] in ("run_started", "worker_joined")),
        event("evaluation", 15.0, round=20, rows=359, seconds=0.1, **measured),
    ]
    lines = plain_lines(*records, event("run_finished", 19.0, rounds=40, seconds=30.0, **measured))
    assert lines[-2].endswith("round 20/40: loss 1.5000, loss1/top-5 0.2500, iou 0.5000 on 359 held-out rows")
    assert lines[-1].endswith("finished: loss 1.5000 after 40 rounds in 30.0 s")
    assert "loss 1.5000" in area_of(*records)
    assert result_rows({**measured, "rounds": 40}, "")[:3] == [
        ("loss", "1.5000"),
        ("loss1/top-5", "0.2500"),
        ("iou", "0.5000"),
    ]


def test_scores_are_printed_as_caffe_prints_them():
    measured = {"loss": 0.9, "loss1": 0.5, "accuracy": 0.75}
    assert caffe_scores(measured, {"loss": 1.0, "loss1": 0.3}) == [
        "Loss: 1.05",
        "accuracy = 0.75",
        "loss = 0.9 (* 1 = 0.9 loss)",
        "loss1 = 0.5 (* 0.3 = 0.15 loss)",
    ]


def test_an_output_of_several_numbers_has_a_line_for_each():
    each = {f"each.{place}": place / 10 for place in range(11)}
    lines = caffe_scores({"loss": 0.5, **each}, {"loss": 1.0}, {"loss": 1, "each": 11})
    assert lines[1:4] == ["each = 0", "each = 0.1", "each = 0.2"]
    assert lines[11:] == ["each = 1", "loss = 0.5 (* 1 = 0.5 loss)"]


def test_a_thousand_measures_do_not_flood_the_screen():
    outputs = {f"each.{place}": 0.5 for place in range(1000)}
    lines = plain_lines(*[{**record, "outputs": outputs} for record in whole_run()])
    assert any("each.8 0.5000, " in line and " more on " in line for line in lines)
    assert all(line.count("each") < 13 for line in lines if " more on " in line)


def test_plain_round_lines_come_every_tenth_of_the_run():
    lines = plain_lines(*whole_run())
    told = [int(found[1]) for line in lines if (found := re.search(r"round +(\d+)/40: loss", line))]
    # the first because 10 s have passed without any; the evaluations at 20 and 40 count as lines
    assert told == [1, 5, 9, 13, 17, 24, 28, 32, 36, 40]
    assert (
        "    12.2 s  round  5/40: loss 0.4000, 3,200 images/s, 2/2 workers, 10 % of the time synchronising" in lines
    )


def test_slow_rounds_get_a_line_every_ten_seconds():
    slow = [committed(number, 10.0 + 4.0 * number) for number in range(1, 7)]
    told = [line for line in plain_lines({**STARTED, "rounds": 10_000}, *slow) if ": loss" in line]
    assert [line.split(" s ")[0].strip() for line in told] == ["14.0", "26.0"]


def test_plain_lines_never_hold_control_characters():
    nasty = "died\n  \x1b[2Jof\ta\x07 signal\r"
    lines = plain_lines(STARTED, lost(1, 12.0, nasty), event("run_failed", 13.0, error=nasty))
    assert lines[-2].endswith("worker 1 on h lost in round 5: died [2Jof a signal; 0 of 2 go on")
    assert lines[-1].endswith("failed after round 0: died [2Jof a signal")
    assert all(line.isprintable() for line in lines)


def test_plain_lines_survive_an_ascii_stream():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainConsole(stream).on_event(event("note", 1.0, message="host größe"))
    assert raw.getvalue() == b"     1.0 s  host gr??e\n"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lost(1, 12.0), "worker 1 on h lost in round 5: silent for 2.0 s; 1 of 2 go on"),
        (
            event("snapshot", 12.0, round=4, iteration=40, weights="s/a_iter_40.caffemodel", state="s/a"),
            "wrote snapshot s/a_iter_40.caffemodel",
        ),
        (
            joined(1, 12.0, attempt=1, heal=True),
            "worker 1 on h joined, copies the state of a live worker",
        ),
        (
            event("worker_returned", 12.0, slot=1, attempt=0, host="h", round=6),
            "worker 1 on h was heard again in round 6",
        ),
        (
            event("round_aborted", 12.0, round=5, epoch=1, reason="a peer left"),
            "round 5 is tried again: a peer left",
        ),
        (event("rollback", 12.0, from_round=9, to_round=8, reason="all died"), "back from round 9 to 8: all died"),
        (event("run_stopped", 12.0, reason="Ctrl-C"), "stopped after round 0: Ctrl-C"),
        (event("note", 12.0, level="warning", message="checkpoint failed"), "checkpoint failed"),
    ],
)
def test_notable_events_read_the_same_in_both_views(record, message):
    story = (STARTED, joined(0, 11.0), joined(1, 11.0), record)
    assert plain_lines(*story)[-1] == f"    12.0 s  {message}"
    assert f"{message}\n" in re.sub(" +\n", "\n", live_screen(*story))


def test_a_damaged_checkpoint_is_named_on_resume():
    record = event(
        "run_resumed", 5.0, round=20, path="checkpoints/round-000020", skipped=["checkpoints/round-000030"]
    )
    assert plain_lines(record) == [
        "     5.0 s  checkpoint checkpoints/round-000030 is damaged, skipped",
        "     5.0 s  resumed after round 20 from checkpoints/round-000020",
    ]


@pytest.mark.parametrize(
    "record",
    [
        event("colour_changed", 3.0, colour="red"),
        event("checkpoint", 3.0, round=20, path="p", bytes=9, seconds=0.1),
        {},
        {"event": 7, "elapsed_seconds": "soon"},
    ],
)
def test_unknown_and_unremarkable_records_say_nothing(record):
    assert plain_lines(record) == []


@pytest.mark.parametrize(
    "kind", ["run_started", "round", "evaluation", "worker_lost", "quorum", "rollback", "run_finished"]
)
def test_records_without_their_fields_do_not_end_the_run(kind):
    plain_lines({"event": kind}, STARTED, {"event": kind})
    assert live_screen({"event": kind}, STARTED, {"event": kind})


def test_the_area_shows_the_numbers_of_now():
    area = area_of(*list(whole_run())[:-4])
    assert "round 38 of 40" in area
    assert re.search(r"accuracy 98\.61 % +loss 0\.0526 █▄▂▂▂▁", area)
    assert re.search(r"3,200 images/s +10 % sync +●● 2/2 workers", area)


def test_the_area_counts_time_left_at_the_pace_so_far():
    rounds = [committed(number, 10.0 + 5.0 * number) for number in (1, 2, 3)]
    assert "0:25, 3:05 left" in area_of(STARTED, *rounds)
    assert "0:30, 3:00 left" in area_of(STARTED, *rounds, later_seconds=5.0)


def test_the_area_shows_a_lost_worker_and_its_return():
    members = (STARTED, joined(0, 11.0), joined(1, 11.0), committed(1, 12.0), lost(1, 13.0))
    assert "●○ 1/2 workers" in area_of(*members)
    assert "●● 2/2 workers" in area_of(*members, joined(1, 15.0, attempt=1, heal=True))
    assert "○● 1/2 workers" in area_of(*members, event("quorum", 15.0, round=2, epoch=3, slots=[1], healed=[1]))


def test_many_workers_are_counted_not_drawn():
    area = area_of({**STARTED, "workers": 64}, *(joined(slot, 11.0) for slot in range(63)))
    assert "63/64 workers" in area
    assert "●" not in area


def test_a_rollback_takes_the_rounds_and_their_losses_back():
    progress = Progress()
    for record in (STARTED, *(committed(number, 10.0 + number) for number in range(1, 9))):
        progress.apply(record)
    progress.apply(event("rollback", 19.0, from_round=8, to_round=5, reason="all died"))
    assert progress.done == 5
    assert progress.losses == [2.0 / number for number in range(1, 6)]


def test_a_resumed_run_starts_its_bar_where_it_stood():
    resumed = event("run_resumed", 11.0, round=20, path="p", skipped=[])
    area = area_of({**STARTED, "first_round": 21}, resumed, committed(21, 12.0), committed(22, 13.0))
    assert "round 22 of 40" in area
    assert "0:18 left" in area


def test_before_the_start_there_is_a_sign_of_life():
    assert "0:04" in area_of(event("note", 4.2, message="starting Spark"))


def test_the_live_view_ends_with_the_last_state_and_the_summary():
    stream = io.StringIO()
    console = LiveConsole(rich.console.Console(file=stream, width=110, force_terminal=True))
    for record in whole_run():
        console.on_event(record)
    console.print_result(RESULT)
    console.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert shown.index("round 20/40") < shown.index("finished: accuracy") < shown.rindex("round 40 of 40")
    assert re.search(r"synchronising +1\.5 s, 5\.0 % of the time", shown)
    assert re.search(r"model +runs/digits-1/model", shown)
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1  # cursor given back


def test_plain_summary():
    stream = io.StringIO()
    console = open_console(stream)
    console.on_event(STARTED)
    before = len(stream.getvalue().splitlines())
    console.print_result(RESULT)
    assert stream.getvalue().splitlines()[before:] == [
        "accuracy       98.61 %",
        "top-5          99.72 %",
        "loss           0.0512",
        "rounds         40 with 2 workers",
        "samples        25,600",
        "time           30.0 s",
        "speed          3,200 images/s",
        "synchronising  1.5 s, 5.0 % of the time",
        "failures       1",
        "model          runs/digits-1/model",
    ]


def test_the_summary_of_an_earlier_run_says_where_it_lies():
    stream = io.StringIO()
    open_console(stream).print_result(RESULT, run_dir="runs/old/")
    assert stream.getvalue().splitlines()[-1] == "model          runs/old/model"


def test_events_from_many_threads_while_the_screen_refreshes():
    """The lock order holds: no deadlock between tellers and the refresh thread, and no line is lost."""
    stream = io.StringIO()
    console = LiveConsole(rich.console.Console(file=stream, width=110, force_terminal=True))
    console.on_event(STARTED)

    def tell_notes(teller: int) -> None:
        for number in range(50):
            console.on_event(event("note", 11.0, message=f"note {teller}-{number};"))

    threads = [threading.Thread(target=tell_notes, args=(teller,), daemon=True) for teller in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    console.close()
    assert all(f"note {teller}-{number};" in stream.getvalue() for teller in range(4) for number in range(50))


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([0.0, 0.0], "▁▁"),
        ([8.0, 4.0, 0.0], "█▅▁"),
        ([float("nan"), 1.0], "█"),
        ([-1.0, 1.0], "▁█"),
        ([2.0] * 8 + [1.0] * 8, "██▅▅"),
    ],
)
def test_sparkline(values, drawn):
    assert sparkline(values, cells=4) == drawn


def test_one_is_not_many():
    started = {**STARTED, "workers": 1, "rounds": 1, "local_steps": 1}
    assert (
        "    10.0 s  1 worker, 1 round of 1 step, strategy average; everything goes to runs/digits-1"
        in plain_lines(started)
    )
    assert ("rounds", "1 with 1 worker") in result_rows({**RESULT, "rounds": 1, "workers": 1}, "")
