# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The least of what `flip-ctr prepare` does with MovieLens-1M, in pandas; `prepare_speed.py` times it.

    python benchmarks/prepare_in_pandas.py ml-1m output_dir

It joins, labels, splits and writes. It neither checks nor counts anything, knows no line that is damaged, splits by a
random generator, mixes no rows, and writes no schema, card or picture. The ratings are read by pandas' C parser, which
a `::` between values lets it do only as if every second column were empty.
"""

import sys

import numpy as np
import pandas as pd


def main(data_dir: str, output_dir: str) -> None:
    def read(name, columns):
        width = range(0, 2 * len(columns), 2)
        table = pd.read_csv(
            f"{data_dir}/{name}.dat", sep=":", header=None, usecols=width, encoding="latin-1", quoting=3
        )
        return table.set_axis(columns, axis=1)

    ratings = read("ratings", ["user_id", "movie_id", "rating", "timestamp"])
    users = read("users", ["user_id", "gender", "age", "occupation", "zip_code"])
    with open(f"{data_dir}/movies.dat", encoding="latin-1") as file:  # titles hold single colons
        movies = pd.DataFrame([line.rstrip("\n").split("::") for line in file], columns=["movie_id", "title", "genre"])
    rows = ratings.merge(users, on="user_id").merge(movies.astype({"movie_id": "int64"}), on="movie_id")
    rows = rows[rows.rating != 3]
    rows["label"] = (rows.pop("rating") >= 4).astype("int8")
    part = np.random.default_rng(0).choice(3, len(rows), p=[0.8, 0.1, 0.1])
    for code, name in enumerate(("train", "validation", "test")):
        rows[part == code].to_parquet(f"{output_dir}/{name}.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:])
