"""Raw files of MovieLens, made on the spot."""

from pathlib import Path

from tiny import ML_GENRES as GENRES

USERS, MOVIES = 20, 30


# title and genres of some movies; the others are plain
SPECIAL = {1: ("Toy Story (1995)", [3, 4, 5]), 2: ("Cité des enfants perdus, La (1995)", [8]), 3: ("", [])}


def rating_rows() -> list[list]:
    """Every user with every movie: user, movie, rating 1 to 5, timestamp."""
    pairs = [(user, movie) for user in range(1, USERS + 1) for movie in range(1, MOVIES + 1)]
    return [[u, m, (3 * u + 7 * m) % 5 + 1, 880000000 + (31 * u + m) % 997] for u, m in pairs]


def write_lines(path: Path, rows, separator: str) -> None:
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows), encoding="latin-1", newline="\n")


def user_1m(user: int) -> list:
    return [user, "FM"[user % 2], (1, 18, 25, 35, 45, 50, 56)[user % 7], user % 21, f"0{user:04}"]


def movies() -> list[tuple]:
    """Id, title and genre numbers of each movie."""
    return [(m, *SPECIAL.get(m, (f"Film {m} (1999)", [m % 18 + 1]))) for m in range(1, MOVIES + 1)]


def write_1m(folder: Path, ratings=None, users=None) -> Path:
    folder.mkdir(parents=True)
    items = [[movie, title, "|".join(GENRES[genre] for genre in genres)] for movie, title, genres in movies()]
    write_lines(folder / "movies.dat", items, "::")
    write_lines(folder / "users.dat", users or [user_1m(user) for user in range(1, USERS + 1)], "::")
    write_lines(folder / "ratings.dat", ratings or rating_rows(), "::")
    return folder


def write_100k(folder: Path) -> Path:
    folder.mkdir(parents=True)
    users = [[user, 20 + user, "FM"[user % 2], "writer", f"0{user:04}"] for user in range(1, USERS + 1)]
    items = [
        [movie, title, "01-Jan-1995", "", "http://us.imdb.com/", *(int(n in genres) for n in range(len(GENRES)))]
        for movie, title, genres in movies()
    ]
    write_lines(folder / "u.genre", [*([name, n] for n, name in enumerate(GENRES)), []], "|")  # ends with a blank line
    write_lines(folder / "u.item", items, "|")
    write_lines(folder / "u.user", users, "|")
    write_lines(folder / "u.data", rating_rows(), "\t")
    return folder
