"""Progress of a long command: a bar in a terminal, lines elsewhere, also while nobody knows how many rows there are."""

import io
import time

from rich.console import Console

from headrace.cli.progress import TOPICS, RowsBar


def console(is_terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=is_terminal, width=160, _environ={}), out


def test_a_bar_is_there_before_the_first_row():
    place, out = console(is_terminal=True)
    with RowsBar(place):
        pass
    assert "reading" in out.getvalue()
    assert "━" in out.getvalue()


def test_reading_then_replay_of_several_parts():
    place, out = console(is_terminal=True)
    with RowsBar(place) as bar:
        bar.show(TOPICS, 70, None)
        bar.show(0, 5, None)
        bar.show(0, 10, 40)
        bar.show(1, 20, 60)
        bar.show(0, 40, 40)
        bar.show(1, 60, 60)
    assert "replay" in out.getvalue()
    assert "100 rows" in out.getvalue()


def test_without_a_terminal_a_line_comes_while_nothing_is_reported():
    place, out = console(is_terminal=False)
    with RowsBar(place, line_s=0.01) as bar:
        bar.show(0, 1_234, None)
        wait_for(out, "reading: 1,234 rows after")
        bar.show(0, 2_000, 8_000)
        wait_for(out, "replay: 2,000 of 8,000 rows after")
        bar.say("aside")
    assert "aside" in out.getvalue()
    assert "━" not in out.getvalue()


def wait_for(out: io.StringIO, text: str) -> None:
    deadline_s = time.monotonic() + 20
    while text not in out.getvalue():
        assert time.monotonic() < deadline_s, out.getvalue()
        time.sleep(0.005)
