"""Letters survive: processes side by side, crashes, and any bytes."""

import resource
import signal
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError, ServiceError
from headrace.schemas import DeadLetter, FileDeadLetters, Letters, decode_letter, encode_letter
from headrace.schemas.dead_letters import DEAD_LETTERS, count_letters, encoded, read
from headrace.schemas.paced_log import PacedLog
from tests.forked import Forked, run
from tests.logs import capture_logs


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


@pytest.mark.slow
def test_many_processes_write_into_one_folder(tmp_path, repo):
    program = "import sys; from tests.schemas.test_dead_letters import *; write_many(sys.argv[1], int(sys.argv[2]))"
    for process in [Forked(["-c", program, tmp_path, start], cwd=repo) for start in (0, 100)]:
        assert process.wait() == 0
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


def write_one_too_many(folder):
    """One letter fits under the limit of a file's size, which stands for a full disk; the second does not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    letters = FileDeadLetters(folder)
    letters.write([letter(1)])
    try:
        letters.write([letter(2), letter(3)])
    except ServiceError as exc:
        sys.stdout.write(str(exc))


def test_a_disk_that_is_full_is_one_error_that_names_the_folder(tmp_path, repo):
    program = "import sys; from tests.schemas.test_dead_letters import *; write_one_too_many(sys.argv[1])"
    said = run(["-c", program, tmp_path], cwd=repo, check=True).stdout
    assert said.startswith(f"2 dead letters cannot be written to {tmp_path}: File too large; ")
    assert "HEADRACE_DEAD_LETTER_DIR" in said
    assert read(tmp_path)["offset"].to_list()[0] == 1


def test_a_folder_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "letters").write_text("")
    with pytest.raises(ServiceError, match="letters: File exists; make room there"):
        FileDeadLetters(tmp_path / "letters").write([letter(1)])


def test_no_letters_read_as_an_empty_frame(tmp_path):
    assert read(tmp_path).schema["payload"] == pl.Binary
    assert read(tmp_path).height == 0


def test_letters_are_counted_by_event_and_reason():
    def count(reason):
        return DEAD_LETTERS.labels(event="counted", reason=reason)._value.get()

    before = count("future"), count("missing")
    count_letters([letter(source="counted", reason=reason) for reason in ("future", "future", "missing")])
    assert (count("future") - before[0], count("missing") - before[1]) == (2, 1)


TEXTS = st.text(max_size=12) | st.sampled_from(["", "\n", '"', "\\", "\u2028", "\x00", "😀"])
COLUMNS = st.lists(st.tuples(st.integers(0, 2**63 - 1), TEXTS, TEXTS, st.binary(max_size=12)), max_size=6)


def columns(rows, source="topic", partition="topic/0", arrival_us=5):
    offsets, reasons, details, payloads = zip(*rows, strict=True) if rows else ((), (), (), ())
    texts = (pl.Series(list(column), dtype=pl.String) for column in (reasons, details))
    found = (np.array(offsets, np.int64), *texts, pl.Series(list(payloads), dtype=pl.Binary))
    return Letters.of(source, partition, arrival_us, *found)


@given(rows=COLUMNS, source=TEXTS, partition=TEXTS, cut=st.slices(6))
def test_letters_as_columns_are_a_sequence_of_letters(rows, source, partition, cut):
    letters = columns(rows, source, partition)
    wanted = [DeadLetter(source, partition, offset, *texts, payload, 5) for offset, *texts, payload in rows]
    assert list(letters) == wanted
    assert len(letters) == len(wanted)
    assert list(letters[cut]) == wanted[cut]
    assert [letters[index] for index in range(-len(wanted), len(wanted))] == [*wanted, *wanted]
    assert list(Letters.joined([letters, letters])) == [*wanted, *wanted]
    assert [decode_letter(line) for line in encoded(letters)] == wanted
    assert [decode_letter(line) for line in encoded(wanted)] == wanted


def test_letters_as_columns_and_as_objects_are_written_alike(tmp_path):
    rows = [(1, "missing", "door: null", b"\xff\n"), (2, "future", "\n", b"")]
    for place, letters in (("columns", columns(rows)), ("objects", list(columns(rows)))):
        sink = FileDeadLetters(tmp_path / place)
        sink.write(letters)
        sink.close()
    assert read(tmp_path / "columns").equals(read(tmp_path / "objects"))
    assert read(tmp_path / "columns").height == 2


def test_columns_are_counted_as_objects_are():
    letters = columns([(1, "missing", "", b""), (2, "future", "", b""), (3, "missing", "", b"")], source="as-columns")
    count_letters(letters)
    counts = [DEAD_LETTERS.labels(event="as-columns", reason=reason)._value.get() for reason in ("missing", "future")]
    assert counts == [2, 1]


def test_a_text_that_is_no_unicode_can_be_written():
    written = decode_letter(encode_letter(letter(detail="a\ud800b")))
    assert written.detail == "a?b"


def test_a_storm_is_a_line_and_its_counts_add_up():
    log = PacedLog("storm", pace_s=60)
    with capture_logs() as lines:
        for _ in range(1_000):
            log.add(3, "why", source="a", reason="x")
        log.add(1, "how", source="a", reason="y")
        assert [(line["reason"], line["count"], line["detail"]) for line in lines] == [("x", 3, "why"), ("y", 1, "how")]
        log.flush()
    assert [(line["source"], line["reason"], line["count"]) for line in lines[2:]] == [("a", "x", 2_997)]


def test_what_waits_is_logged_by_a_timer():
    log = PacedLog("storm", pace_s=0.02)
    with capture_logs() as lines:
        for _ in range(5):
            log.add(1, "", source="a", reason="x")
        timer = log._timer
        if timer is not None:
            timer.join()
    assert sum(line["count"] for line in lines) == 5
