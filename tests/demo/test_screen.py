"""What the demo shows before its view: a bar from the first row on, or a line every few seconds."""

import io

from rich.console import Console

from headrace.demo.screen import Screen


def shown(is_terminal: bool, calls) -> str:
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=is_terminal, width=80, _environ={})) as screen:
        for words, done, total in calls:
            screen.progress(words, done, total)
    return out.getvalue()


def test_a_bar_is_drawn_from_the_first_call_on():
    text = shown(True, [("backfill", 0, 1_000)])
    assert "backfill: 0 of 1,000 rows" in text
    assert "━" in text


def test_without_a_terminal_there_is_a_line_at_once_and_none_too_many():
    lines = shown(False, [("backfill", done, 1_000) for done in range(1_000)]).splitlines()
    assert lines == ["backfill: 0 of 1,000 rows"]


def test_an_empty_stage_is_no_error():
    assert "of 0 rows" in shown(True, [("backfill", 0, 0)])
