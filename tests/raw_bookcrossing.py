"""Raw files of BookCrossing, made on the spot."""

from pathlib import Path

from flip_ctr.data.datasets import bookcrossing

USERS, BOOKS = 20, 30


RATINGS_FILE, BOOKS_FILE, USERS_FILE = bookcrossing.RAW_FILES


HEADERS = {
    RATINGS_FILE: '"User-ID";"ISBN";"Book-Rating"',
    BOOKS_FILE: '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";'
    '"Image-URL-S";"Image-URL-M";"Image-URL-L"',
    USERS_FILE: '"User-ID";"Location";"Age"',
}


IMAGES = '"http://images/S.jpg";"http://images/M.jpg";"http://images/L.jpg"'


def isbn(book: int) -> str:
    return f"0{book:08}X"


def user_line(user: int, location: str = "nyc, new york, usa", age: str | None = None) -> str:
    return f'"{user}";"{location}";{age if age is not None else 20 + user}'


def book_line(book: int, title: str | None = None, author="Amy Tan", year="1991", publisher="Putnam Pub Group") -> str:
    return f'"{isbn(book)}";"{title or f"Novel {book}"}";"{author}";"{year}";"{publisher}";{IMAGES}'


def rating_lines() -> list[str]:
    """Every user with every book, rated 0 to 10."""
    pairs = [(user, book) for user in range(1, USERS + 1) for book in range(1, BOOKS + 1)]
    return [f'"{user}";"{isbn(book)}";"{(3 * user + 7 * book) % 11}"' for user, book in pairs]


def write_raw(folder: Path, ratings=None, books=(), users=(), end: str = "\r\n", headers=HEADERS) -> Path:
    """The three raw files; the lines of `users` and `books` take the place of the first plain ones."""
    folder.mkdir(parents=True)
    files = {
        RATINGS_FILE: ratings or rating_lines(),
        BOOKS_FILE: [*books, *map(book_line, range(len(books) + 1, BOOKS + 1))],
        USERS_FILE: [*users, *map(user_line, range(len(users) + 1, USERS + 1))],
    }
    for name, lines in files.items():
        text = "".join(line + end for line in [headers[name], *lines])
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder
