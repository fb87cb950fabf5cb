"""`flip-ctr prepare`: raw MovieLens files to a dataset folder that accounts for every row."""

import json
import os
import re
import shutil
import signal
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from raw_movielens import USERS, rating_rows, user_1m, write_1m, write_100k
from transformers import AutoTokenizer

from flip_ctr.data.prepare import dataset_folder
from flip_ctr.data.prepare.dataset_folder import read_split, write_dataset_folder
from flip_ctr.data.readers import download
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.download import fetch_archive
from flip_ctr.train import cli, prepare
from flip_ctr.train.prepare import PrepareArguments

COLUMNS = ["user_id", "gender", "age", "occupation", "zip_code", "movie_id", "title", "genre", "timestamp", "label"]


def zipped(folder: Path, archive: Path, inside=None) -> Path:
    with zipfile.ZipFile(archive, "w") as handle:
        for path in sorted(folder.iterdir()):
            handle.write(path, Path(folder.name if inside is None else inside, path.name))
    return archive


def run(dataset: str, data_dir, output_dir, **options) -> dict:
    return prepare.run(PrepareArguments(dataset, str(output_dir), str(data_dir), **options))


def all_rows(dataset_dir) -> list[dict]:
    return [row for split in ("train", "validation", "test") for row in read_split(dataset_dir, split).to_pylist()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> SimpleNamespace:
    """Raw files of ML-1M as `raw`, what they become as `out`, and the `report`; tests only read or copy them."""
    folder = tmp_path_factory.mktemp("plain")
    raw, out = write_1m(folder / "raw"), folder / "out"
    return SimpleNamespace(raw=raw, out=out, report=run("ml-1m", raw, out))


def test_ml_1m_rows_are_typed_and_human_readable(tmp_path):
    run("ml-1m", write_1m(tmp_path / "raw"), tmp_path / "out", drop_ratings="")
    table = read_split(tmp_path / "out", "train")
    types = dict(zip(table.column_names, table.schema.types))
    assert table.column_names == COLUMNS
    assert types["user_id"] == types["movie_id"] == types["timestamp"] == pa.int64() and types["label"] == pa.int8()
    rows = {(row["user_id"], row["movie_id"]): row for row in all_rows(tmp_path / "out")}
    user = [1, "male", "18-24", "academic/educator", "00001"]
    movie = [1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"]]
    assert list(rows[1, 1].values()) == [*user, *movie, 880000032, 0]
    assert rows[1, 2]["title"] == "Cité des enfants perdus, La (1995)"
    assert rows[2, 3]["title"] is None and rows[2, 3]["genre"] is None and rows[2, 3]["gender"] == "female"


def test_ml_100k_keeps_its_own_ages_occupations_and_genre_order(tmp_path):
    run("ml-100k", write_100k(tmp_path / "raw"), tmp_path / "out", drop_ratings="")
    rows = {(row["user_id"], row["movie_id"]): row for row in all_rows(tmp_path / "out")}
    one = rows[1, 1]
    assert (one["age"], one["occupation"], one["zip_code"]) == (21, "writer", "00001")
    assert one["genre"] == ["Animation", "Children's", "Comedy"]
    assert rows[1, 2]["title"] == "Cité des enfants perdus, La (1995)" and rows[1, 3]["genre"] is None
    assert {field.name: field.type for field in DatasetSchema.load(tmp_path / "out").fields}["age"] == "int"


def test_load_dataset_reads_the_folder(tmp_path, plain):
    from datasets import load_dataset

    dataset = load_dataset(str(plain.out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in dataset.items()} == {
        n: one["rows"] for n, one in plain.report["splits"].items()
    }
    assert dataset["train"].column_names == COLUMNS
    assert list(dataset) == ["train", "validation", "test"]


def test_load_dataset_tells_folders_of_one_name_apart(tmp_path, plain):
    """The cache of `datasets` knows a folder that names its files by that name alone, and gave another's rows."""
    from datasets import load_dataset

    def load(folder):
        rows = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert {name: part.num_rows for name, part in rows.items()} == {
            name: read_split(folder, name).num_rows for name in rows
        }
        return rows["train"].to_list()

    for place in ("1", "2"):
        shutil.copytree(plain.out, tmp_path / place / "D")
    run("ml-1m", plain.raw, tmp_path / "2" / "D", split_seed=7, overwrite_output_dir=True)
    pq.write_table(pa.table({"movie_id": [1]}), tmp_path / "2" / "D" / "items.parquet")  # as with histories: no split
    first, second = load(tmp_path / "1" / "D"), load(tmp_path / "2" / "D")
    assert first != second
    run("ml-1m", plain.raw, tmp_path / "1" / "D", split_seed=7, overwrite_output_dir=True)
    assert load(tmp_path / "1" / "D") == second


def test_large_splits_are_many_shards_with_the_same_rows(tmp_path, plain, monkeypatch):
    from datasets import load_dataset

    raw, report = plain.raw, plain.report
    monkeypatch.setattr(dataset_folder, "ROWS_PER_GROUP", 16)
    monkeypatch.setattr(dataset_folder, "ROWS_PER_SHARD", 64)
    run("ml-1m", raw, tmp_path / "shards")
    rows = report["splits"]["train"]["rows"]
    shards = sorted((tmp_path / "shards" / "data").glob("train-*.parquet"))
    count = -(-rows // 64)
    assert count > 2 and [path.name for path in shards] == [f"train-{n:05}-of-{count:05}.parquet" for n in range(count)]
    files = [pq.ParquetFile(path) for path in shards]
    assert [file.metadata.num_rows for file in files[:-1]] == [64] * (count - 1)
    assert {file.metadata.row_group(group).num_rows for file in files[:-1] for group in range(file.num_row_groups)} == {
        16
    }
    assert all(read_split(plain.out, name).equals(read_split(tmp_path / "shards", name)) for name in report["splits"])
    assert len(load_dataset(str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"))["train"]) == rows
    run("ml-1m", raw, tmp_path / "shards", overwrite_output_dir=True)


def test_schema_names_fields_and_protocol(tmp_path, plain):
    run("ml-1m", plain.raw, tmp_path / "paper", ids_in_prompt=True)
    schema, paper = DatasetSchema.load(plain.out), DatasetSchema.load(tmp_path / "paper")
    assert [field.name for field in schema.fields] == COLUMNS[:8]
    assert [field.name for field in schema.fields if not field.on_text_side] == ["user_id", "zip_code", "movie_id"]
    assert all(field.on_text_side and field.on_id_side for field in paper.fields)
    assert [field.name for field in schema.fields if field.key] == ["user_id", "movie_id", "title"]
    assert (schema.label, schema.user_column, schema.weight_column) == ("label", "user_id", None)
    assert schema.protocol["drop_ratings"] == [3] and schema.protocol["split_seed"] == 42
    assert "vocab_size" not in (plain.out / "schema.json").read_text()


def test_card_states_what_was_done(tmp_path):
    report = run("ml-100k", write_100k(tmp_path / "raw"), tmp_path / "out", split="time")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    front_matter = yaml.safe_load(card.split("---\n")[1])
    assert front_matter["tags"] == ["click-through-rate", "recommendation", "flip-ctr"]
    assert f"| train | {report['splits']['train']['rows']} |" in card
    for statement in ("ratings of 3 are dropped", "ordered by timestamp", "not redistribute", "harper2015movielens"):
        assert statement in " ".join(card.replace("*", "").split())
    assert str(tmp_path) not in card + (tmp_path / "out" / "prepare_report.json").read_text()


def test_card_tells_the_lengths_of_prompts_and_shows_a_picture(tmp_path, plm, pictures):
    raw = write_1m(tmp_path / "raw")
    report = run("ml-1m", raw, tmp_path / "words")
    in_tokens = run("ml-1m", raw, tmp_path / "tokens", tokenizer_name=str(plm))
    texts, tokenizer = [], AutoTokenizer.from_pretrained(plm)
    for row in read_split(tmp_path / "words", "test").to_pylist():
        named = row | {"genre": row["genre"] and ", ".join(row["genre"])}
        order = ("gender", "age", "occupation", "title", "genre")
        texts.append(" ; ".join(f"{name} is {named[name] or 'unknown'}" for name in order))
    words = [len(re.findall(r"\w+|[^\w\s]", text)) + 2 for text in texts]
    tokens = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    for one, lengths in ((report, words), (in_tokens, tokens)):
        test = one["prompt_lengths"]["splits"]["test"]
        assert (test["rows"], test["longest"]) == (len(texts), max(lengths))
        assert test["mean"] == pytest.approx(sum(lengths) / len(lengths), abs=0.01)
    card = (tmp_path / "tokens" / "README.md").read_text(encoding="utf-8")
    assert "![rows and clicks" in card and (tmp_path / "tokens" / "dataset.png").stat().st_size > 10_000
    assert f"Lengths in tokens of {plm.name}" in card and str(tmp_path) not in card


def test_card_counts_the_distinct_prompts_of_each_entity(tmp_path):
    users = [[user, "FM"[user % 2], 25, user % 3, f"0{user:04}"] for user in range(1, USERS + 1)]
    raw = write_1m(tmp_path / "raw", users=users)
    report = run("ml-1m", raw, tmp_path / "out")
    train = read_split(tmp_path / "out", "train").to_pylist()
    movies = {(row["movie_id"], row["title"]) for row in train}
    contents = {(row["title"], tuple(row["genre"] or ())) for row in train}
    assert report["entity_prompts"] == {
        "user": {"fields": ["gender", "age", "occupation"], "prompts": 6, "keys": USERS},
        "item": {"fields": ["title", "genre"], "prompts": len(contents), "keys": len(movies)},
    }
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| user | `gender`, `age`, `occupation` | 6 | {USERS} |" in card
    assert f"| item | `title`, `genre` | {len(contents)} | {len(movies)} |" in card
    paper = run("ml-1m", raw, tmp_path / "paper", preset="paper")["entity_prompts"]
    assert paper["user"]["prompts"] == USERS and "zip_code" in paper["user"]["fields"]


def test_counts_add_up(plain):
    ratings, report = rating_rows(), plain.report
    stars = [row[2] for row in ratings]
    splits = report["splits"].values()
    assert report == json.loads((plain.out / "prepare_report.json").read_text())
    assert report["rows_read"] == len(ratings) and report["dropped"] == {"rating 3": stars.count(3)}
    assert report["rows_kept"] == report["rows_read"] - stars.count(3) == sum(one["rows"] for one in splits)
    assert sum(one["clicks"] for one in splits) == stars.count(4) + stars.count(5)
    assert all(one["click_rate"] == pytest.approx(one["clicks"] / one["rows"], abs=1e-6) for one in splits)


def test_label_rule_is_an_option(tmp_path):
    raw = write_1m(tmp_path / "raw")
    stars = [row[2] for row in rating_rows()]
    nothing_dropped = run("ml-1m", raw, tmp_path / "a", drop_ratings="", click_threshold=5)
    assert nothing_dropped["dropped"] == {} and nothing_dropped["rows_kept"] == len(stars)
    assert sum(one["clicks"] for one in nothing_dropped["splits"].values()) == stars.count(5)
    dropped = run("ml-1m", raw, tmp_path / "b", drop_ratings="2, 3")["dropped"]
    assert dropped == {"rating 2": stars.count(2), "rating 3": stars.count(3)}
    with pytest.raises(
        ValueError,
        match="at least 4 is a click; ratings of 4, 5 are dropped. has .* 0 of them clicks.*--click_threshold, "
        "--drop_ratings",
    ):
        run("ml-1m", raw, tmp_path / "c", drop_ratings="4,5")


def test_cold_items_are_counted_as_unseen(tmp_path):
    report = run("ml-1m", write_1m(tmp_path / "raw"), tmp_path / "out", split="cold_items", split_seed=1)
    for name in ("validation", "test"):
        shares = {field: one["unseen_share"] for field, one in report["splits"][name]["fields"].items()}
        assert shares["movie_id"] == 1 and shares["user_id"] == 0


def test_malformed_lines_are_counted_with_number_and_reason(tmp_path):
    ratings = rating_rows()
    bad = {
        3: ["1::2::5", "values: 3 for 4 columns"],
        5: ["1::x::5::0", "movie id is not a whole number"],
        7: ["1::2::6::0", "rating is not a whole number from 1 to 5"],
        9: ["1::2::::0", "rating is not a whole number from 1 to 5"],
        11: ["999::2::5::0", "user is not in users.dat"],
        13: ["1::999::5::0", "movie is not in movies.dat"],
        15: ["", "blank line"],
        17: ["1::2::5::-1", "timestamp is not a whole number"],
    }
    for number, (line, _) in bad.items():
        ratings[number - 1] = [line]
    report = run("ml-1m", write_1m(tmp_path / "raw", ratings), tmp_path / "out", max_malformed_share=0.02)
    entry = report["raw_files"]["ratings.dat"]
    assert [[one["line"], one["reason"]] for one in entry["first_malformed"]] == [[n, bad[n][1]] for n in sorted(bad)]
    assert report["malformed"] == entry["malformed"] == sum(entry["malformed_by_reason"].values()) == len(bad)
    assert report["rows_read"] == len(ratings)
    assert report["rows_kept"] == report["rows_read"] - report["malformed"] - report["dropped"]["rating 3"]
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [list(one.values()) for one in rejected] == [["ratings.dat", n, bad[n][1], bad[n][0]] for n in sorted(bad)]
    summary = prepare.summary(report)
    assert "ratings.dat, line 3: values: 3 for 4" in summary and "5 more malformed lines" in summary


def test_every_rejected_line_is_written_not_only_the_first_hundred(tmp_path):
    ratings = rating_rows() + [["999::2::5::0"]] * 150
    report = run("ml-1m", write_1m(tmp_path / "raw", ratings), tmp_path / "out", max_malformed_share=0.5)
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet")
    assert len(rejected) == report["malformed"] == 150
    assert rejected["line"].to_pylist() == list(range(len(ratings) - 149, len(ratings) + 1))
    assert len(report["raw_files"]["ratings.dat"]["first_malformed"]) == 100


def test_without_rejected_lines_the_file_is_there_and_empty(tmp_path, plain):
    raw, out = plain.raw, shutil.copytree(plain.out, tmp_path / "out")
    rejected = pq.read_table(out / "rejected.parquet")
    assert rejected.column_names == ["file", "line", "reason", "text"] and len(rejected) == 0
    run("ml-1m", raw, out, overwrite_output_dir=True)  # the file is no obstacle


def test_too_many_malformed_lines_are_an_error_and_leave_nothing(tmp_path):
    ratings = rating_rows()
    ratings[41] = ["torn line"]
    raw = write_1m(tmp_path / "raw", ratings)
    with pytest.raises(
        ValueError, match="ratings.dat: 1 of 600 lines .* 0.001667; --max_malformed.* line 42: values: 1 for 4 columns"
    ):
        run("ml-1m", raw, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert run("ml-1m", raw, tmp_path / "out", max_malformed_share=0.01)["malformed"] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1::M::25::3::02139", "user_id comes a second time"),
        ("21::X::25::3::02139", "gender is not one of M, F"),
        ("21::M::26::3::02139", "age is not one of 1, 18"),
        ("21::M::25::21::02139", "occupation is not one of 0, 1"),
        ("21::M::25::3::021\x9039", "zip code holds a control character"),
    ],
)
def test_side_files_are_checked_too(tmp_path, line, reason):
    users = [[user, "M", 25, 3, "02139"] for user in range(1, USERS + 1)] + [[line]]
    with pytest.raises(ValueError, match=f"users.dat.* line 21: {reason}"):
        run("ml-1m", write_1m(tmp_path / "raw", users=users), tmp_path / "out")


def test_a_file_written_anew_in_utf_8_is_refused(tmp_path):
    raw = write_1m(tmp_path / "raw")
    movies = (raw / "movies.dat").read_text(encoding="latin-1")
    (raw / "movies.dat").write_text(movies, encoding="utf-8")
    with pytest.raises(ValueError, match="movies.dat.* line 2: title is in UTF-8"):
        run("ml-1m", raw, tmp_path / "out")


def test_blank_lines_at_the_end_and_windows_line_ends_are_fine(tmp_path):
    raw = write_1m(tmp_path / "raw")
    (raw / "ratings.dat").write_bytes((raw / "ratings.dat").read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    report = run("ml-1m", raw, tmp_path / "out")
    assert report["malformed"] == 0 and report["rows_read"] == len(rating_rows())


def test_empty_values_are_null(tmp_path):
    users = [user_1m(1), *([user, "", "", "", ""] for user in range(2, USERS + 1))]
    report = run("ml-1m", write_1m(tmp_path / "raw", users=users), tmp_path / "out")
    train = report["splits"]["train"]
    known = sum(row["user_id"] == 1 for row in read_split(tmp_path / "out", "train").to_pylist())
    assert {train["fields"][name]["nulls"] for name in ("gender", "age", "occupation", "zip_code")} == {
        train["rows"] - known
    }


def test_a_column_without_a_value_is_refused(tmp_path):
    users = [[*user_1m(user)[:4], ""] for user in range(1, USERS + 1)]
    with pytest.raises(ValueError, match=r"column\(s\) zip_code: all .* training rows are null"):
        run("ml-1m", write_1m(tmp_path / "raw", users=users), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_time_split_of_equal_timestamps_is_refused(tmp_path):
    raw = write_1m(tmp_path / "raw", [[*row[:3], 0] for row in rating_rows()])
    with pytest.raises(ValueError, match="same timestamp, 0"):
        run("ml-1m", raw, tmp_path / "out", split="time")


def test_the_command_prints_a_summary(tmp_path, capsys):
    flags = {"--dataset": "ml-1m", "--data_dir": write_1m(tmp_path / "raw"), "--output_dir": tmp_path / "out"}
    assert cli.main(["prepare", *(str(part) for flag in flags.items() for part in flag)]) == 0
    printed = capsys.readouterr().out
    assert "dropped: rating 3" in printed and f"written to {tmp_path / 'out'}" in printed


def test_folder_its_parent_and_zips_give_the_same_rows(tmp_path):
    raw = write_100k(tmp_path / "ml-100k")
    sources = [raw, tmp_path, zipped(raw, tmp_path / "ml-100k.zip"), zipped(raw, tmp_path / "flat.zip", inside="")]
    for number, source in enumerate(sources):
        run("ml-100k", source, tmp_path / f"out-{number}")
        assert all_rows(tmp_path / f"out-{number}") == all_rows(tmp_path / "out-0")


def test_missing_raw_files_are_named(tmp_path):
    raw = write_1m(tmp_path / "raw")
    (raw / "users.dat").unlink()
    with pytest.raises(FileNotFoundError, match="raw has no users.dat; ml-1m needs ratings.dat, users.dat, movies.dat"):
        run("ml-1m", raw, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such folder or zip"):
        run("ml-1m", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        run("ml-1m", raw / "movies.dat", tmp_path / "out")


@pytest.fixture
def official(tmp_path):
    """URL of a folder with a small ml-1m.zip."""
    (tmp_path / "www").mkdir()
    zipped(write_1m(tmp_path / "ml-1m"), tmp_path / "www" / "ml-1m.zip")
    return (tmp_path / "www").as_uri()


def test_download_is_verified_and_cached(tmp_path, official, monkeypatch):
    md5 = download.file_md5(tmp_path / "www" / "ml-1m.zip")
    monkeypatch.setitem(download.ARCHIVE_MD5, "ml-1m", md5)
    monkeypatch.setenv("FLIP_CTR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "fetch_archive", partial(fetch_archive, base_url=official))
    prepare.run(PrepareArguments("ml-1m", str(tmp_path / "out")))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ml-1m.zip"]
    (tmp_path / "www" / "ml-1m.zip").unlink()
    assert fetch_archive("ml-1m", base_url=official) == tmp_path / "cache" / "ml-1m.zip"  # nothing is downloaded again


def test_a_wrong_archive_is_refused_and_not_kept(tmp_path, official):
    with pytest.raises(ValueError, match="the official archive has c4d9eecf.*--data_dir"):
        fetch_archive("ml-1m", base_url=official, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_network_the_way_out_is_named(tmp_path):
    missing = (tmp_path / "nothing").as_uri()
    with pytest.raises(ConnectionError, match="ml-100k.zip.*download ml-100k.zip yourself and pass it with --data_dir"):
        fetch_archive("ml-100k", base_url=missing, cache_dir=tmp_path / "cache")


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    raw, out = write_1m(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()  # an empty folder is no obstacle
    first = run("ml-1m", raw, out)
    with pytest.raises(FileExistsError, match="not empty.*--overwrite_output_dir"):
        run("ml-1m", raw, out)
    second = run("ml-1m", raw, out, split_seed=1, overwrite_output_dir=True)
    assert first["splits"] != second["splits"]
    assert DatasetSchema.load(out).protocol["split_seed"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_overwriting_never_deletes_what_is_not_a_dataset_folder(tmp_path, plain):
    raw, out = plain.raw, tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a dataset folder"):
        run("ml-1m", raw, out, overwrite_output_dir=True)
    (out / "thesis.txt").unlink()
    shutil.copytree(plain.out, out, dirs_exist_ok=True)
    (out / "data" / "notes.txt").write_text("my notes")
    with pytest.raises(FileExistsError, match="also holds data/notes.txt"):
        run("ml-1m", raw, out, overwrite_output_dir=True)
    with pytest.raises(FileExistsError, match="is a file"):
        run("ml-1m", raw, raw / "users.dat", overwrite_output_dir=True)


def test_a_failed_write_leaves_the_old_folder_and_nothing_else(tmp_path, plain, monkeypatch):
    raw, out = plain.raw, shutil.copytree(plain.out, tmp_path / "out")

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full_disk)  # of the shards
    for target in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="no space"):
            run("ml-1m", raw, target, split_seed=1, overwrite_output_dir=True)
    assert DatasetSchema.load(out).protocol["split_seed"] == 42
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("in_a_query", [False, True])
def test_a_run_that_is_told_to_stop_leaves_nothing(tmp_path, monkeypatch, number, in_a_query):
    raw, before = write_1m(tmp_path / "raw"), signal.getsignal(number)

    def stopped(*args, **kwargs):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except SystemExit:
            if in_a_query:  # DuckDB says it in its own way
                raise RuntimeError("Query interrupted") from None
            raise

    monkeypatch.setattr(prepare, "split_statistics", stopped)
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", "--dataset", "ml-1m", "--data_dir", str(raw), "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 128 + number and signal.getsignal(number) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_reading_errors_name_what_is_there(tmp_path, plain):
    assert read_split(plain.out, "test", columns=["label", "user_id"]).column_names == ["label", "user_id"]
    with pytest.raises(FileNotFoundError, match="no split 'dev'; it has test, train, validation"):
        read_split(plain.out, "dev")
    with pytest.raises(ValueError, match="no column rating; it has user_id, gender"):
        read_split(plain.out, "test", columns=["rating"])
    with pytest.raises(FileNotFoundError, match="there is no dataset folder"):
        DatasetSchema.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a dataset folder: it has no schema.json"):
        DatasetSchema.load(plain.raw)


def test_a_schema_of_another_format_is_refused(tmp_path):
    path = DatasetSchema("mine", [{"name": "age"}]).save(tmp_path)
    good = json.loads(path.read_text())
    for change, message in (
        ({"format_version": 2}, "`format_version` is 2; this version of flip-ctr reads 1"),
        ({"fields": [{"name": "age", "type": "number"}]}, "field 'age': `type` must be one of"),
        ({"colour": "red"}, "colour"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            DatasetSchema.load(tmp_path)


def test_own_data_can_be_written_as_a_dataset_folder(tmp_path):
    table = pa.table({"movie_id": [1, 2], "label": pa.array([0, 1], pa.int8())})
    schema = DatasetSchema("mine", [{"name": "movie_id", "type": "int"}])
    splits = dict.fromkeys(("train", "validation", "test"), table)
    out = write_dataset_folder(tmp_path / "a" / "mine", splits, schema, report={}, card="# mine\n")
    assert read_split(out, "validation").equals(table) and DatasetSchema.load(out) == schema


WRONG_OPTIONS = [
    ({"drop_ratings": "3;4"}, "--drop_ratings takes ratings from 1 to 5.*'3;4'"),
    ({"drop_ratings": "0"}, "--drop_ratings takes ratings from 1 to 5 for ml-1m.*'0'"),
    ({"drop_ratings": "1 2"}, "--drop_ratings takes ratings from 1 to 5.*'1 2'"),
    ({"click_threshold": 6}, "--click_threshold must be from 2 to 5 for ml-1m.*got 6"),
    ({"click_threshold": 1}, "--click_threshold must be from 2 to 5 for ml-1m.*got 1"),
    ({"max_malformed_share": 5}, "--max_malformed_share must be at least 0 and at most 1; got 5"),
    ({"split": "leave_one_out"}, "--split must be one of random, time"),
    ({"dataset": "ml-20m"}, "--dataset must be one of ml-100k, ml-1m"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareArguments(**{"dataset": "ml-1m", "output_dir": "out"} | options)
