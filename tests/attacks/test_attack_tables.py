"""A part of the broken tables of `make attack`: another seed for each format, so that all tests together see some of
each."""

import attack_tables
import pytest
from broken_tables import FORMATS


def failures_of(way: str, kind: str, count: int, model=None) -> list[str]:
    """What went wrong beside what is known."""
    _, failures = attack_tables.run(kind, range(1000, 1000 + count), way, model=model)
    return [details[0] for failure, details in failures.items() if failure not in attack_tables.KNOWN]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_line_of_a_broken_table_is_accounted_for(kind):
    assert failures_of("read", kind, 12) == []


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_broken_table_is_a_dataset_of_what_is_left_of_it(kind):
    assert failures_of("prepare", kind, 1) == []


def test_a_mutation_that_loses_a_line_would_be_found(tmp_path):
    """The check itself: a reader that drops a line, changes a value, or ends in an error of its own is noticed."""
    table = attack_tables.clean_table(attack_tables.random.Random(0), 5)
    path, schema = attack_tables.write(table, tmp_path)
    found = attack_tables.read(schema, tmp_path)
    attack_tables.check_text(table, found, table.separator)
    first, *_, last = found.rows
    for change in (
        lambda rows: {line: row for line, row in rows.items() if line != last},
        lambda rows: {line: row for line, row in rows.items() if line != first},
        lambda rows: rows | {last: rows[last] | {"key": "another"}},
        lambda rows: dict.fromkeys(rows, rows[first]),
        lambda rows: rows | {last + 1: rows[last]},
    ):
        changed = attack_tables.Read(change(dict(found.rows)), found.rejected, found.lines)
        with pytest.raises(AssertionError):
            attack_tables.check_text(table, changed, table.separator)
    for error in (KeyError("t.csv"), UnicodeError("t.csv"), ValueError("t.csv\nmore"), ValueError("no file")):
        with pytest.raises(AssertionError):
            attack_tables.check_error(error, "t.csv")
