"""Rows with a field of each kind, as people ask for scores of."""

import tiny

# values that no training row has, too many of them, repeated ones, nulls
ROWS = [
    *tiny.kind_rows(6),
    {
        "user_id": 10**12,
        "history": [101, 101, 5, 102, 103],
        "age": 500,
        "movie_id": 7,
        "title": "New; a film",
        "genres": ["New genre", "Drama", "Comedy, dark", "Crime"],
        "tags": ["city", "x", "y"],
        "price": -1e7,
    },
    dict.fromkeys(["user_id", "history", "age", "movie_id", "title", "genres", "tags", "price"]),
]
ROWS = [{name: value for name, value in row.items() if name != "label"} for row in ROWS]
