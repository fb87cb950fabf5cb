"""Rules over columns: what they say, what they refuse, and what they take a column for."""

from datetime import datetime

import ibis
import pyarrow as pa
import pytest

from flip_ctr.data.prepare.rules import Rule
from flip_ctr.data.readers.table_values import read_time

TABLE = pa.table(
    {
        "rating": [1, 5, None],
        "Book-Rating": [1.5, 2.0, None],
        "title": ["a", 'b `x` and "y"', None],
        "ok": [True, False, None],
        "at": pa.array([datetime(2024, 1, 1), datetime(2024, 3, 1, 12), None]),
        "tags": [["a"], [], None],
    }
)


def values(rule: str) -> list:
    return Rule(rule).of_rows(ibis.memtable(TABLE)).to_pyarrow().to_pylist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("rating >= 4", [False, True, None]),
        ("1 < rating <= 5", [False, True, None]),
        ("rating in [1, 2]", [True, False, None]),
        ("rating not in [1, 2]", [False, True, None]),
        ("-rating < -2", [False, True, None]),
        ("rating * 2 - 1 == 9", [False, True, None]),
        ("rating / (rating - 1) > 1", [None, True, None]),  # nothing is divided by zero
        ("`Book-Rating` < 2", [True, False, None]),
        ("rating>`Book-Rating`", [False, True, None]),
        ("title == 'b `x` and \"y\"'", [False, True, None]),
        ('title == "\'; drop table rows; --"', [False, False, None]),
        ("ok", [True, False, None]),
        ("not ok and rating == 5", [False, True, None]),
        ("ok == false", [False, True, None]),
        ("rating is null", [False, False, True]),
        ("rating is not None", [True, True, False]),
        ("rating == 1 or rating is null", [True, False, True]),
        ("at >= '2024-03-01'", [False, True, None]),
        ("'2024-03-01 13:00+01:00' == at", [False, True, None]),
        ("at in ['2024-01-01']", [True, False, None]),
    ],
)
def test_a_rule_says_for_each_row_whether_it_holds(rule, expected):
    assert values(rule) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "rule is empty"),
        ("rating >= ", "cannot be read"),
        ("rating = 4", "equality is written `==`"),
        ("rating >= 4; 1", "cannot be read near '; 1'"),
        ("clicked? == 'yes'", "a name that is no single word in backticks"),
        ("`` > 1", "cannot be read"),
        ("(" * 500 + "rating" + ")" * 500, "cannot be read"),
        ("__import__('os').system('ls')", "is not part of what a rule may say"),
        ("rating.x == 1", "'rating.x' is not part of"),
        ("rating[0] == 1", "is not part of"),
        ("[x for x in rating]", "is not part of"),
        ("f'{rating}' == title", "is not part of"),
        ("(lambda: 1) == rating", "is not part of"),
        ("rating ** 2 == 4", "is not part of"),
        ("4j == rating", "'4j' is neither a number nor text"),
        ("stars >= 4", "no column stars; there are rating, Book-Rating"),
        ("rating", "is a number and not true or false of a row; compare a column"),
        ("true", "is the same for every row"),
        ("rating >= 'x'", "'rating' is a number and cannot be compared with 'x', which is text"),
        ("`Book-Rating` == title", "'`Book-Rating`' is a number and cannot be compared with title, which is text"),
        ("title > 3", "'title' is text and cannot"),
        ("ok == 1", "'ok' is true or false and cannot"),
        ("tags == 'a'", "'tags' is a list and cannot"),
        ("at > 5", "'at' is a time and cannot be compared with 5"),
        ("at > 'yesterday'", "is not a time such as '2024-03-01'"),
        ("at > '1700000000'", "is not a time"),
        ("rating == null", "'null' is never equal to anything; write `is null`"),
        ("rating is 4", "'4' cannot follow `is`"),
        ("rating in 4", "'4' is not a list of values"),
        ("rating in []", "is not a list of values"),
        ("5 in [rating]", "'5' is no column"),
        ("'a' == 'b'", "are both constants"),
        ("rating / 0 > 1", "'0' is nothing to divide by"),
        ("-title > 1", "'title' is not a number"),
        ("rating and ok", "'rating' is not true or false; compare it"),
        ("rating == [1]", "is a list and stands behind `in` only"),
    ],
)
def test_what_a_rule_cannot_mean_is_one_clear_error(rule, message):
    with pytest.raises(ValueError, match="^rule ") as error:
        values(rule)
    assert message in str(error.value) and "column_in_backticks" not in str(error.value)


def test_columns_and_what_they_are_taken_for():
    rule = Rule(
        "(rating >= 4 or `Book-Rating` - x == 0) and not ok and country in ['nl'] and paid and other is null and flag "
        "== true"
    )
    assert rule.columns == ["rating", "Book-Rating", "x", "ok", "country", "paid", "other", "flag"]
    assert rule.kinds() == {
        "rating": {"number"},
        "Book-Rating": {"number"},
        "x": {"number"},
        "ok": {"bool"},
        "country": {"text"},
        "paid": {"bool"},
        "other": set(),
        "flag": {"bool"},
    }
    assert Rule("a == 1 and a == 'x'").kinds() == {"a": {"number", "text"}}


def test_text_in_a_rule_is_compared_in_its_canonical_form():
    decomposed = "cafe\u0301"
    table = ibis.memtable(pa.table({"name": ["caf\u00e9"]}))
    assert Rule(f"name == '{decomposed}'").of_rows(table).to_pyarrow().to_pylist() == [True]


def test_times_are_utc():
    assert read_time("2024-03-01T12:00:00Z") == read_time("2024-03-01 13:00+01:00") == datetime(2024, 3, 1, 12)
    assert read_time("2024-03-01") == datetime(2024, 3, 1)
    for text in ("1700000000", "20240301", "soon", "2024-13-01"):
        with pytest.raises(ValueError):
            read_time(text)
