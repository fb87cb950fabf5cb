"""What is written to files for people."""

import pyarrow as pa
import pyarrow.csv
import pytest

from flip_ctr.data.readers.row_files import RowWriter

TEXTS = ["=1+1", "+cmd", "-a", "@x", "\tx", "\rx", "-3.5", "+4", "-1e5", ".5", "a=b", "", None, "'=x", "-3,5"]
ESCAPED = ["'=1+1", "'+cmd", "'-a", "'@x", "'\tx", "'\rx", "-3.5", "+4", "-1e5", ".5", "a=b", "", None, "'=x", "'-3,5"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_formulas_become_text_where_asked(tmp_path, kind):
    table = pa.table({"=a": pa.array(TEXTS, pa.string()).cast(kind), "b": [-1.5] * len(TEXTS)})
    for escape, expected in ((False, TEXTS), (True, ESCAPED)):
        path = tmp_path / f"{escape}.csv"
        with RowWriter(str(path), table.schema, escape_formulas=escape) as writer:
            writer.write(table, {"click_probability": pa.array([0.5] * len(TEXTS))})
        strings = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in ("=a", "'=a")},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        read = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=strings
        )
        assert read.column_names == ["'=a" if escape else "=a", "b", "click_probability"]
        assert read.column(0).to_pylist() == expected and set(read["b"].to_pylist()) == {-1.5}
