"""Letters survive: processes side by side, crashes, and any bytes."""

import multiprocessing

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.schemas import DeadLetter, FileDeadLetters, decode_letter, encode_letter
from headrace.schemas.dead_letters import DEAD_LETTERS, count_letters, read


def letter(number=1, **changes):
    made = {
        "source": "topic",
        "partition": "topic/0",
        "offset": number,
        "reason": "undecodable",
        "detail": "why",
        "payload": b"\xff\n\0",
        "arrival_us": number,
    }
    return DeadLetter(**(made | changes))


def write_many(folder, start):
    letters = FileDeadLetters(folder)
    for number in range(start, start + 50):
        letters.write([letter(number), letter(number + 1_000)])
    letters.close()


@given(payload=st.binary(), detail=st.text(), offset=st.integers(0, 2**63 - 1))
def test_a_letter_is_one_line_and_comes_back(payload, detail, offset):
    sent = letter(payload=payload, detail=detail, offset=offset)
    line = encode_letter(sent)
    assert b"\n" not in line
    assert decode_letter(line) == sent


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"source":"x"}', encode_letter(letter()).replace(b"/wo", b"/~o")]
)
def test_a_line_that_is_no_letter_is_refused(line):
    with pytest.raises(DecodeError, match="dead letter"):
        decode_letter(line)


def test_many_processes_write_into_one_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write_many, args=(tmp_path, start)) for start in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = read(tmp_path)
    assert found["offset"].to_list() == sorted(
        [*range(50), *range(100, 150), *range(1_000, 1_050), *range(1_100, 1_150)]
    )
    assert set(found["payload"]) == {b"\xff\n\0"}
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_written_is_there_before_close_and_a_cut_last_line_is_left_out(tmp_path):
    letters = FileDeadLetters(tmp_path / "deep" / "er")
    letters.write([])
    assert not letters.folder.exists()
    letters.write([letter(2), letter(1)])
    assert read(letters.folder)["offset"].to_list() == [1, 2]
    (file,) = letters.folder.iterdir()
    with file.open("ab") as opened:
        opened.write(encode_letter(letter(3))[:20])
    assert read(letters.folder).height == 2
    letters.close()
    letters.close()
    letters.write([letter(9)])
    letters.close()
    assert len(list(letters.folder.iterdir())) == 2


def test_no_letters_read_as_an_empty_frame(tmp_path):
    assert read(tmp_path).schema["payload"] == pl.Binary
    assert read(tmp_path).height == 0


def test_letters_are_counted_by_event_and_reason():
    def count(reason):
        return DEAD_LETTERS.labels(event="counted", reason=reason)._value.get()

    before = count("future"), count("missing")
    count_letters([letter(source="counted", reason=reason) for reason in ("future", "future", "missing")])
    assert (count("future") - before[0], count("missing") - before[1]) == (2, 1)
