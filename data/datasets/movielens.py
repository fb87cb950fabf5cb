# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""MovieLens-100K and MovieLens-1M: raw files to typed tables of users, movies and ratings.

The files are read line by line as distributed (latin-1).
"""

from collections.abc import Callable
from functools import partial

import pyarrow as pa

from flip_ctr.data.datasets.raw_dataset import RawDataset
from flip_ctr.data.prepare.labelled_rows import Join
from flip_ctr.data.readers.csv_files import CsvFormat, LinesFormat, text_table
from flip_ctr.data.readers.raw_files import (
    CONTROL_CHARACTER,
    MAX_DIGITS,
    MalformedLine,
    RawTable,
    check_width,
    line_table,
    whole_number,
    whole_numbers,
)
from flip_ctr.modeling_flip.fields_flip import FlipField

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


def split_at(separator: str, width: int) -> Callable[[str], list[str]]:
    """Takes a line of `width` values apart."""
    return lambda text: check_width(text.split(separator), width, separator, text)


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


RAW_FILES = {
    "ml-100k": ("u.data", "u.user", "u.item", "u.genre"),
    "ml-1m": ("ratings.dat", "users.dat", "movies.dat"),
}
TITLES = {"ml-100k": "MovieLens-100K", "ml-1m": "MovieLens-1M"}
RATINGS = range(1, 6)
MOVIE_COLUMNS = {"movie_id": pa.int64(), "title": pa.string(), "genre": pa.list_(pa.string())}
RATING_COLUMNS = {"user_id": pa.int64(), "movie_id": pa.int64(), "rating": pa.int64(), "timestamp": pa.int64()}


def parse_user_100k(values: list[str], changed) -> tuple:
    user, age, gender, occupation, zip_code = values
    years = whole_number("age", age) if age else None
    return (
        whole_number("user id", user),
        code("gender", gender, GENDERS),
        years,
        text_or_none("occupation", occupation),
        text_or_none("zip code", zip_code),
    )


def parse_user_1m(values: list[str], changed) -> tuple:
    user, gender, age, occupation, zip_code = values
    return (
        whole_number("user id", user),
        code("gender", gender, GENDERS),
        code("age", age, AGES),
        code("occupation", occupation, OCCUPATIONS),
        text_or_none("zip code", zip_code),
    )


def parse_movie_100k(values: list[str], changed, genres: list[str]) -> tuple:
    movie, title, flags = values[0], values[1], values[5:]  # between them: two release dates and a URL
    if not set(flags) <= {"0", "1"}:
        raise MalformedLine("a genre flag is not 0 or 1", "|".join(flags))
    genre = [name for name, flag in zip(genres, flags, strict=True) if flag == "1"]
    return whole_number("movie id", movie), text_or_none("title", title), genre or None


def parse_movie_1m(values: list[str], changed) -> tuple:
    movie, title, genres = values
    genre = text_or_none("genre", genres)
    return whole_number("movie id", movie), text_or_none("title", title), genre and genre.split("|")


def parse_rating(values: list[str], changed) -> tuple:
    user, movie, rating, timestamp = values
    if not rating.isdecimal() or len(rating) > MAX_DIGITS or int(rating) not in RATINGS:
        raise MalformedLine("rating is not a whole number from 1 to 5", rating)
    return (
        whole_number("user id", user),
        whole_number("movie id", movie),
        int(rating),
        whole_number("timestamp", timestamp),
    )


LINES = LinesFormat("latin-1")


def rating_table(path, separator: str) -> RawTable:
    columns = list(RATING_COLUMNS)
    table_format = CsvFormat(separator, quote=None, encoding="latin-1", column_names=tuple(columns))
    plain = partial(whole_numbers, ranges={columns.index("rating"): RATINGS})
    return line_table("ratings", path, RATING_COLUMNS, table_format, columns, parse_rating, plain)


def genre_table(path, genres: list[str]) -> RawTable:
    """Names of ml-100k's genre flags, in the order of the flags, which it also puts into `genres`."""

    def parse(values, changed):
        if values[1] != str(len(genres)):
            raise MalformedLine(f"genre number is not {len(genres)}, the next one", values[1])
        genres.append(values[0])
        return (values[0],)

    return text_table("genres", path, {"genre_name": pa.string()}, split_at("|", 2), parse, LINES)


def user_columns(age: pa.DataType) -> dict:
    texts = {"occupation": pa.string(), "zip_code": pa.string()}
    return {"user_id": pa.int64(), "gender": pa.string(), "age": age} | texts


def movielens_tables(dataset: str, folder) -> list[RawTable]:
    """The tables of `ml-100k` or `ml-1m`: users, movies and ratings (1 to 5, with a timestamp in seconds since 1970).

    Args:
        folder: a `pathlib.Path` or `zipfile.Path` that holds `RAW_FILES[dataset]`.
    """
    files = RAW_FILES[dataset]
    ratings, users, movies = (folder / name for name in files[:3])
    if dataset == "ml-1m":
        return [
            text_table("users", users, user_columns(pa.string()), split_at("::", 5), parse_user_1m, LINES),
            text_table("movies", movies, MOVIE_COLUMNS, split_at("::", 3), parse_movie_1m, LINES),
            rating_table(ratings, "::"),
        ]
    genres: list[str] = []  # known once their file was read, which is the first

    def split_movie(text):
        return split_at("|", 5 + len(genres))(text)

    return [
        genre_table(folder / files[3], genres),
        text_table("users", users, user_columns(pa.int64()), split_at("|", 5), parse_user_100k, LINES),
        text_table("movies", movies, MOVIE_COLUMNS, split_movie, partial(parse_movie_100k, genres=genres), LINES),
        rating_table(ratings, "\t"),
    ]


def movielens_fields(dataset: str, ids_in_prompt: bool = False) -> list[FlipField]:
    """The eight fields of the paper, in its order; the ids and the zip code are on the ID side only unless
    `ids_in_prompt`.

    With the zip code a prompt names its user: the 943 users of ml-100k have 936 prompts of a user's fields, and 526
    without it; the 6,040 of ml-1m 5,796, and 241.
    """
    id_sides = ("id", "text") if ids_in_prompt else ("id",)
    age_type = "int" if dataset == "ml-100k" else "string"
    return [
        FlipField("user_id", "int", entity="user", key=True, sides=id_sides),
        FlipField("gender", entity="user"),
        FlipField("age", age_type, entity="user"),
        FlipField("occupation", entity="user"),
        FlipField("zip_code", entity="user", sides=id_sides),
        FlipField("movie_id", "int", entity="item", key=True, sides=id_sides),
        FlipField("title", entity="item", key=True, max_tokens=48),
        FlipField("genre", kind="multi-valued", entity="item", max_tokens=48),
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


DATASETS = {
    name: RawDataset(
        name=name,
        files=files,
        tables=partial(movielens_tables, name),
        joins=(
            Join("users", {"user_id": "user_id"}, missing_reason=f"user is not in {files[1]}"),
            Join("movies", {"movie_id": "movie_id"}, missing_reason=f"movie is not in {files[2]}"),
        ),
        fields=partial(movielens_fields, name),
        card_facts=card_facts(name),
        ratings=RATINGS,
        drop_ratings=(3,),
        click_threshold=4,
        item="movie_id",
        time="timestamp",
    )
    for name, files in RAW_FILES.items()
}
