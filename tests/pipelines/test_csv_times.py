"""FileSource(csv_time_format=...): what a format says is what is read, or one error; never another moment."""

import bz2
import gzip
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from headrace.errors import SchemaError
from headrace.pipelines import FileSource, Intake
from headrace.schemas import Event
from tests.turnstiles import Shelf

PACKED = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
NOON = datetime(2026, 4, 3, 12, tzinfo=UTC)


class Passed(Event, topic="passed", key="door", time="at"):
    at: datetime
    door: int


def source(folder, texts, time_format, *, suffix="", **options):
    data = "at,door\n" + "".join(f'"{text}",{number}\n' for number, text in enumerate(texts))
    path = folder / f"log.csv{suffix}"
    path.write_bytes(PACKED[suffix](data.encode()))
    return FileSource(path, Passed, csv_time_format=time_format, **options)


def rows(opened):
    """Rows (at, door) with their offsets, and reasons of dead letters."""
    letters = Shelf()
    intake, found = Intake([Passed], dead_letters=letters), []
    while not opened.exhausted:
        for batch in map(intake.decode, opened.poll()):
            found += zip(batch.frame["at"], batch.frame["door"], batch.offsets.tolist(), strict=True)
    opened.close()
    return found, [letter.reason for letter in letters.letters]


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("rows_max", [1, 2, 100])
def test_rows_of_a_format_come_in_the_order_of_time_and_can_be_gone_on_with(tmp_path, suffix, rows_max):
    """Compressed or not, by any number of workers, from any row on."""
    texts = [f"{moment:%d/%m/%Y %H:%M}" for moment in (NOON + timedelta(hours=3 * k % 5) for k in range(5))]
    whole, bad = rows(source(tmp_path, texts, "%d/%m/%Y %H:%M", suffix=suffix, rows_max=rows_max).share(0, 1))
    assert [at for at, _, _ in whole] == [NOON + timedelta(hours=k) for k in range(5)]
    assert [offset for _, _, offset in whole] == list(range(5))
    assert not bad
    again = source(tmp_path, texts, "%d/%m/%Y %H:%M", suffix=suffix, rows_max=rows_max)
    again.seek({again.partitions()[0]: 2})
    assert rows(again)[0] == whole[2:]


@pytest.mark.parametrize(
    ("time_format", "text", "moment"),
    [
        ("%m/%d/%Y %H:%M", "04/03/2026 12:00", NOON),
        ("%d.%m.%y %I:%M %p", "03.04.26 12:00 PM", NOON),
        ("%d %b %Y %H:%M", "3 Apr 2026 12:00", NOON),
        ("%d/%m/%Y %H:%M %z", "03/04/2026 14:00 +0200", NOON),
        ("%d/%m/%Y %H:%M %z", "03/04/2026 14:00 +02:00", NOON),
        ("%d/%m/%Y %H:%M UTC", "03/04/2026 12:00 UTC", NOON),
        ("%s", "1775217600", NOON),
        ("%Y%m%d%H%M%S", "20260403120000", NOON),
        # fractions of a second as Python reads them: 0.12 s, and not 12 ns
        ("%d/%m/%Y %H:%M:%S.%f", "03/04/2026 12:00:00.12", NOON + timedelta(milliseconds=120)),
        ("%d/%m/%Y %H:%M:%S.%f", "03/04/2026 12:00:00.000120", NOON + timedelta(microseconds=120)),
        ("%d/%m/%Y %H:%M:%S,%f", "03/04/2026 12:00:00,120000", NOON + timedelta(milliseconds=120)),
        ("%Y%m%d%H%M%S%f", "20260403120000000120", NOON + timedelta(microseconds=120)),
        ("%d/%m/%Y %H:%M:%S%.f", "03/04/2026 12:00:00.12", NOON + timedelta(milliseconds=120)),
        # the format holds, also where a value looks like ISO 8601
        ("%Y-%d-%m", "2026-03-04", NOON - timedelta(hours=12)),
        ("%Y-%d-%m %H:%M:%S", "2026-03-04 12:00:00", NOON),
        ("%Y-%m-%d %H:%M", "2026-04-03 12:00", NOON),
        ("%d/%m/%Y", "2026-04-03T12:00:00Z", NOON),
    ],
)
def test_a_format_is_read_as_it_says(tmp_path, time_format, text, moment):
    [(at, _, _)], bad = rows(source(tmp_path, [text], time_format))
    assert (at, bad) == (moment, [])


@pytest.mark.parametrize(
    ("time_format", "texts", "message"),
    [
        ("%d/%m/%Y", ["03/04/2026", "x"], r"log.csv · column at: 'x' is neither ISO 8601 nor '%d/%m/%Y'"),
        ("%d/%m/%Y", ["03/04/2026", "04/31/2026"], r"'04/31/2026' is neither ISO 8601 nor"),
        ("%d/%m/%Y", ["29/02/2026"], r"'29/02/2026' is neither"),
        ("%d/%m/%Y", ["03/04/2026", "2026-04-03T00:00:00Z"], r"has a zone and '03/04/2026' has none; write all"),
        ("%d/%m/%Y %H:%M %z", ["2026-04-03", "03/04/2026 12:00 +0200"], r"has a zone and '2026-04-03' has none; write"),
        ("%d/%m/%Y %H:%M %:z", ["2026-04-03", "03/04/2026 12:00 +02:00"], r"has a zone and '2026-04-03' has none; w"),
        ("%Y-%d-%m", ["2026-03-04", "2026-04-25"], r"'2026-04-25' is neither"),
        ("%d/%m/%Y %H:%M:%S.%f", ["03/04/2026 12:00:00.1234567"], r"has digits below a microsecond; cut or round it"),
        ("%d/%m/%Y %H:%M:%S%.f", ["03/04/2026 12:00:00.123456789"], r"has digits below a microsecond"),
        (None, ["23/04/2026 12:00:00.123456789"], r"has digits below a microsecond"),
        ("%d/%m/%Y %H", ["03/04/2026 12"], r"is no format of times: .*both hour and minute[^\n]*$"),
        # found before any file is read
        ("", ["2026-04-03"], r"csv_time_format='' has no year; give all of a time, such as '%d.%m.%Y %H:%M'"),
        ("%H:%M", ["12:00"], r"csv_time_format='%H:%M' has no year"),
        ("%d/%m", ["03/04"], r"csv_time_format='%d/%m' has no year"),
        ("%%Y", ["%Y"], r"csv_time_format='%%Y' has no year"),
        ("%d/%m/%Y %H:%M %Z", ["03/04/2026 12:00 CET"], r"%Z, the name of a zone, does not say an offset; use %z"),
        (5, ["2026"], r"csv_time_format=5: give a text"),
    ],
)
def test_a_format_that_cannot_be_followed_is_one_error(tmp_path, time_format, texts, message):
    with pytest.raises(SchemaError, match=message):
        rows(source(tmp_path, texts, time_format))


def test_an_empty_time_is_a_bad_row_beside_good_ones(tmp_path):
    found, bad = rows(source(tmp_path, ["", "03/04/2026 12:00"], "%d/%m/%Y %H:%M"))
    assert ([at for at, _, _ in found], bad) == ([NOON], ["missing"])
