"""Histories from a table of events: a plain loop says the same."""

import datetime

import pyarrow as pa
import pytest
import tiny

from flip_ctr import FlipField
from flip_ctr.data.readers.events import EventLog, EventTimes

FIELDS = [
    *tiny.FIELDS,
    FlipField("history", "int", kind="history", history_of="movie_id", max_values=2, entity="user"),
]
EVENTS = [
    {
        "user_id": 1 + number % 3,
        "movie_id": 100 + number,
        "clicked": number % 2,
        "at": [5, 3, 3, 9, 1, 5, 7][number % 7],
    }
    for number in range(15)
]


def histories(rows: pa.Table, events: pa.Table, fields, time: str | None, label_delay: int = 0) -> list:
    return EventLog(events, fields, EventTimes(events, time, label_delay)).histories(rows).to_pylist()


ROWS = [{"user_id": user, "at": at} for user in (1, 2, 3, 77, None) for at in (0, 3, 4, 6, 100)]


def expected(row: dict, by_time: bool, delay: int = 0) -> list[dict]:
    own = [one for one in EVENTS if one["user_id"] == row["user_id"]]
    before = [one for one in own if not by_time or one["at"] + delay < row["at"]]
    before = sorted(before, key=lambda one: one["at"]) if by_time else before
    return [{"movie_id": one["movie_id"], "clicked": one["clicked"]} for one in before[-2:]]


@pytest.mark.parametrize("by_time", [True, False])
@pytest.mark.parametrize("clock", [int, float, lambda at: datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=at)])
def test_a_history_is_the_last_events_before_the_row(by_time, clock):
    events = pa.Table.from_pylist([one | {"at": clock(one["at"])} for one in EVENTS])
    rows = pa.Table.from_pylist([one | {"at": clock(one["at"])} for one in ROWS])
    assert histories(rows, events, FIELDS, "at" if by_time else None) == [expected(row, by_time) for row in ROWS]


@pytest.mark.parametrize(
    "clock", [int, float, lambda at: datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=at)]
)
def test_what_was_not_known_yet_is_in_no_history(clock):
    events, rows = (pa.Table.from_pylist([one | {"at": clock(one["at"])} for one in some]) for some in (EVENTS, ROWS))
    found = histories(rows, events, FIELDS, "at", 2)
    assert found == [expected(row, True, 2) for row in ROWS] != [expected(row, True) for row in ROWS]


def test_times_in_text_are_numbers_or_dates():
    for one, other, later in (("9", "10", "100"), ("2026-01-02", "2026-01-10", "2026-02-01")):
        events = pa.Table.from_pylist(
            [{"user_id": 1, "movie_id": n, "clicked": 1, "at": at} for n, at in enumerate((one, later))]
        )
        rows = pa.Table.from_pylist([{"user_id": 1, "at": other}])
        found = histories(rows, events, FIELDS, "at")
        assert [entry["movie_id"] for entry in found[0]] == [0]


@pytest.mark.parametrize("kinds", [(int, float), (str, int), (float, str), (str, str)])
def test_numbers_are_numbers_whatever_their_type(kinds):
    events, rows = (
        pa.Table.from_pylist([one | {"at": kind(one["at"])} for one in table])
        for kind, table in zip(kinds, (EVENTS, ROWS))
    )
    found = histories(rows, events, FIELDS, "at")
    assert found == [expected(row, True) for row in ROWS]


def test_no_events_are_no_history():
    events = pa.Table.from_pylist(EVENTS).slice(0, 0)
    assert histories(pa.Table.from_pylist(ROWS), events, FIELDS, "at") == [[]] * 25


@pytest.mark.parametrize(
    "rows, events, fields, time, message",
    [
        (ROWS, EVENTS, tiny.FIELDS, None, "the model reads no histories"),
        (ROWS, EVENTS, [one for one in FIELDS if one.name != "user_id"], None, "no field that is the key of a user"),
        (
            ROWS,
            [{"user_id": 1, "movie_id": 1}],
            FIELDS,
            None,
            "events: no column 'clicked'; there are user_id, movie_id",
        ),
        ([{"user_id": 1}], EVENTS, FIELDS, "at", "rows: no column 'at'"),
        (
            [{"user_id": 1, "at": "2026-01-01"}],
            EVENTS,
            FIELDS,
            "at",
            r"'at' is int64 in the events, and timestamp\[us\] in the rows",
        ),
        (
            [{"user_id": 1, "at": "soon"}],
            EVENTS,
            FIELDS,
            "at",
            "'at' of the rows holds text that is neither a number nor",
        ),
        ([{"user_id": 1, "at": float("nan")}], [one | {"at": 0.5} for one in EVENTS], FIELDS, "at", "has 1 nulls"),
        ([{"user_id": 1, "at": 1}, {"user_id": 1}], EVENTS, FIELDS, "at", "'at' of the rows has 1 nulls"),
    ],
)
def test_errors_name_table_and_column(rows, events, fields, time, message):
    with pytest.raises(ValueError, match=message):
        histories(pa.Table.from_pylist(rows), pa.Table.from_pylist(events), fields, time)
