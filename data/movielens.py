# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""MovieLens-100K and MovieLens-1M: raw files to one typed table of ratings with their user's and movie's fields.

The files are read line by line as distributed (latin-1). A line that cannot be used is never dropped silently: a
`LineLog` counts it and keeps its number and reason.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from flip_ctr.configuration_flip import FlipField
from flip_ctr.data.download import file_md5

MAX_LISTED_LINES = 100  # of a file; all rejected lines are counted, the first are listed

GENDERS = {"M": "male", "F": "female"}
# codes of ml-1m, from its README
AGES = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56+",
}
OCCUPATIONS = {
    "0": "other",
    "1": "academic/educator",
    "2": "artist",
    "3": "clerical/admin",
    "4": "college/grad student",
    "5": "customer service",
    "6": "doctor/health care",
    "7": "executive/managerial",
    "8": "farmer",
    "9": "homemaker",
    "10": "K-12 student",
    "11": "lawyer",
    "12": "programmer",
    "13": "retired",
    "14": "sales/marketing",
    "15": "scientist",
    "16": "self-employed",
    "17": "technician/engineer",
    "18": "tradesman/craftsman",
    "19": "unemployed",
    "20": "writer",
}
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class MalformedLine(ValueError):
    """A line that cannot be used: the reason, by which lines are counted, and the text that shows it."""

    def __init__(self, reason: str, text: str):
        super().__init__(reason, text)
        self.reason, self.text = reason, text


@dataclass
class LineLog:
    """Lines read and rejected, by file, and the share of rejected lines above which a file is refused."""

    max_share: float = 0.001
    files: dict[str, dict] = field(default_factory=dict)

    def start(self, path) -> None:
        self.files[path.name] = {
            "md5": file_md5(path),
            "lines": 0,
            "malformed": 0,
            "malformed_by_reason": Counter(),
            "first_malformed": [],
        }

    def reject(self, path, number: int, error: MalformedLine) -> None:
        entry = self.files[path.name]
        entry["malformed"] += 1
        entry["malformed_by_reason"][error.reason] += 1
        if len(entry["first_malformed"]) < MAX_LISTED_LINES:
            text = error.text if len(error.text) <= 80 else error.text[:77] + "..."
            entry["first_malformed"].append({"line": number, "reason": error.reason, "text": text})

    def finish(self, path) -> None:
        """`ValueError` where the file is empty or has too many rejected lines."""
        entry = self.files[path.name]
        if not entry["lines"]:
            raise ValueError(f"{path} is empty.")
        share = entry["malformed"] / entry["lines"]
        if share > self.max_share:
            first = entry["first_malformed"][:5]
            shown = "; ".join(f"line {one['line']}: {one['reason']}: {one['text']!r}" for one in first)
            raise ValueError(
                f"{path}: {entry['malformed']:,} of {entry['lines']:,} lines are malformed, a share of {share:.4g}; "
                f"--max_malformed_share allows {self.max_share:g}. First: {shown}."
            )


def read_rows(path, separator: str, width: int, parse: Callable, log: LineLog) -> Iterator:
    """What `parse` makes of each line's `width` values; a line that it or the width refuses goes to the log.

    Lines end at line feeds only. Blank lines at the end are ignored, a blank line before that is malformed.
    """
    log.start(path)
    entry, blank = log.files[path.name], []
    with io.BufferedReader(path.open("rb")) as lines:
        for number, line in enumerate(lines, 1):
            text = line.decode("latin-1").rstrip("\r\n")
            if not text:
                blank.append(number)
                continue
            for empty in blank:
                log.reject(path, empty, MalformedLine("blank line", ""))
            blank.clear()
            entry["lines"] = number
            values = text.split(separator)
            try:
                if len(values) != width:
                    raise MalformedLine(f"{len(values)} fields, not {width} separated by {separator!r}", text)
                row = parse(values)
            except MalformedLine as error:
                log.reject(path, number, error)
            else:
                yield row
    log.finish(path)


def whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18:  # 18 digits always fit 64 bits
        raise MalformedLine(f"{name} is not a whole number", text)
    return int(text)


def text_or_none(name: str, text: str) -> str | None:
    """The text itself, spaces included; None where it is empty. Text that was not written as latin-1 is malformed."""
    if CONTROL_CHARACTER.search(text):
        raise MalformedLine(f"{name} holds a control character", text)
    if not text.isascii():
        try:
            text.encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            pass  # as it should be: accents in latin-1 are not UTF-8
        else:
            raise MalformedLine(f"{name} is in UTF-8, the distributed file is in latin-1", text)
    return text if text.strip() else None


def code(name: str, text: str, meanings: dict) -> str | None:
    if text and text not in meanings:
        raise MalformedLine(f"{name} is not one of {', '.join(meanings)}", text)
    return meanings.get(text)


def parse_user_100k(values: list[str]) -> tuple:
    user, age, gender, occupation, zip_code = values
    years = whole_number("age", age) if age else None
    return (
        whole_number("user id", user),
        code("gender", gender, GENDERS),
        years,
        text_or_none("occupation", occupation),
        text_or_none("zip code", zip_code),
    )


def parse_user_1m(values: list[str]) -> tuple:
    user, gender, age, occupation, zip_code = values
    return (
        whole_number("user id", user),
        code("gender", gender, GENDERS),
        code("age", age, AGES),
        code("occupation", occupation, OCCUPATIONS),
        text_or_none("zip code", zip_code),
    )


def parse_movie_100k(values: list[str], genres: list[str]) -> tuple:
    movie, title, flags = values[0], values[1], values[5:]  # between them: two release dates and a URL
    if not set(flags) <= {"0", "1"}:
        raise MalformedLine("a genre flag is not 0 or 1", "|".join(flags))
    genre = ", ".join(name for name, flag in zip(genres, flags, strict=True) if flag == "1")
    return whole_number("movie id", movie), text_or_none("title", title), genre or None


def parse_movie_1m(values: list[str]) -> tuple:
    movie, title, genres = values
    genre = text_or_none("genre", genres.replace("|", ", "))
    return whole_number("movie id", movie), text_or_none("title", title), genre


def read_genres(path, log: LineLog) -> list[str]:
    """Names of ml-100k's genre flags, in the order of the flags."""
    genres = []

    def parse(values):
        if values[1] != str(len(genres)):
            raise MalformedLine(f"genre number is not {len(genres)}, the next one", values[1])
        genres.append(values[0])

    for _ in read_rows(path, "|", 2, parse, log):
        pass
    return genres


def read_entities(path, separator: str, width: int, parse: Callable, columns: dict, log: LineLog):
    """The table of a side file, and the row of each id in it; the first column is the id, which must not come twice."""
    rows = {}

    def parse_new(values):
        row = parse(values)
        if row[0] in rows:
            raise MalformedLine(f"{next(iter(columns))} comes a second time", values[0])
        rows[row[0]] = len(rows)
        return row

    values = list(read_rows(path, separator, width, parse_new, log))
    arrays = [pa.array(column, type=kind) for column, kind in zip(zip(*values), columns.values())]
    return pa.table(arrays, names=list(columns)) if values else pa.schema(columns).empty_table(), rows


def read_ratings(path, separator: str, users: dict, movies: dict, side_files: tuple, log: LineLog) -> np.ndarray:
    """`(N, 4)` int64: row of the user, row of the movie, rating (1 to 5), timestamp (seconds since 1970)."""
    ratings = {str(rating): rating for rating in range(1, 6)}

    def parse(values):
        user, movie, rating, timestamp = values
        if rating not in ratings:
            raise MalformedLine("rating is not a whole number from 1 to 5", rating)
        user_row = users.get(whole_number("user id", user))
        movie_row = movies.get(whole_number("movie id", movie))
        if user_row is None:
            raise MalformedLine(f"user is not in {side_files[0]}", user)
        if movie_row is None:
            raise MalformedLine(f"movie is not in {side_files[1]}", movie)
        return user_row, movie_row, ratings[rating], whole_number("timestamp", timestamp)

    rows = chain.from_iterable(read_rows(path, separator, 4, parse, log))
    return np.fromiter(rows, dtype=np.int64).reshape(-1, 4)


RAW_FILES = {
    "ml-100k": ("u.data", "u.user", "u.item", "u.genre"),
    "ml-1m": ("ratings.dat", "users.dat", "movies.dat"),
}
TITLES = {"ml-100k": "MovieLens-100K", "ml-1m": "MovieLens-1M"}
MOVIE_COLUMNS = {"movie_id": pa.int64(), "title": pa.string(), "genre": pa.string()}


def user_columns(age: pa.DataType) -> dict:
    texts = {"occupation": pa.string(), "zip_code": pa.string()}
    return {"user_id": pa.int64(), "gender": pa.string(), "age": age} | texts


def read_movielens(dataset: str, folder, log: LineLog) -> pa.Table:
    """All usable ratings of `ml-100k` or `ml-1m`, in file order.

    Args:
        folder: a `pathlib.Path` or `zipfile.Path` that holds `RAW_FILES[dataset]`.
        log: counts the lines read and rejected.

    Returns:
        Table of user_id, gender, age, occupation, zip_code, movie_id, title, genre, timestamp (seconds since 1970,
        int64) and rating (1 to 5, int64).

    Raises:
        ValueError: a file is empty, or has a larger share of malformed lines than the log allows.
    """
    files = RAW_FILES[dataset]
    ratings_path, users_path, movies_path = (folder / name for name in files[:3])
    if dataset == "ml-100k":
        genres = read_genres(folder / files[3], log)
        separator = "\t"
        users, user_rows = read_entities(users_path, "|", 5, parse_user_100k, user_columns(pa.int64()), log)
        movies, movie_rows = read_entities(
            movies_path, "|", 5 + len(genres), lambda values: parse_movie_100k(values, genres), MOVIE_COLUMNS, log
        )
    else:
        separator = "::"
        users, user_rows = read_entities(users_path, "::", 5, parse_user_1m, user_columns(pa.string()), log)
        movies, movie_rows = read_entities(movies_path, "::", 3, parse_movie_1m, MOVIE_COLUMNS, log)
    ratings = read_ratings(ratings_path, separator, user_rows, movie_rows, files[1:3], log)
    table = users.take(pa.array(ratings[:, 0]))
    for name, column in zip(MOVIE_COLUMNS, movies.take(pa.array(ratings[:, 1])).columns):
        table = table.append_column(name, column)
    return table.append_column("timestamp", pa.array(ratings[:, 3])).append_column("rating", pa.array(ratings[:, 2]))


def movielens_fields(dataset: str, ids_in_prompt: bool = False) -> list[FlipField]:
    """The eight fields of the paper, in its order; the ids are on the ID side only unless `ids_in_prompt`."""
    id_sides = ("id", "text") if ids_in_prompt else ("id",)
    age_type = "int" if dataset == "ml-100k" else "string"
    return [
        FlipField("user_id", "int", entity="user", key=True, sides=id_sides),
        FlipField("gender", entity="user"),
        FlipField("age", age_type, entity="user"),
        FlipField("occupation", entity="user"),
        FlipField("zip_code", entity="user"),
        FlipField("movie_id", "int", entity="item", key=True, sides=id_sides),
        FlipField("title", entity="item", key=True, max_tokens=48),
        FlipField("genre", entity="item", max_tokens=48),
    ]


LICENCE_NOTE = """\
The ratings are GroupLens Research's, University of Minnesota, under the terms of the
[data set's README]({readme}):
acknowledge the data set in publications, do not state or imply an endorsement, and **do not redistribute the data, or
use them commercially, without permission** of GroupLens. This folder is therefore for your own use; do not push it to a
public hub. Others get the same rows by running `flip-ctr prepare` on their own copy.

The rows hold demographics (gender, age, occupation, zip code) of pseudonymous users."""

CITATION = """\
@article{harper2015movielens,
  title   = {The MovieLens Datasets: History and Context},
  author  = {Harper, F. Maxwell and Konstan, Joseph A.},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume  = {5},
  number  = {4},
  pages   = {19:1--19:19},
  year    = {2015},
  doi     = {10.1145/2827872}
}"""


def card_facts(dataset: str) -> dict[str, str]:
    """What a dataset card says of MovieLens itself: title, licence and citation."""
    readme = f"https://files.grouplens.org/datasets/movielens/{dataset}-README.txt"
    return {
        "title": f"{TITLES[dataset]} for click-through rate prediction",
        "licence_link": readme,
        "licence": LICENCE_NOTE.format(readme=readme),
        "citation": CITATION,
    }
