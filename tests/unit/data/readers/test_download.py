"""Files of other machines: copied once, again where they have changed, and errors that say what is missing."""

import fsspec
import pytest

from flip_ctr.data.readers import download
from flip_ctr.data.readers.table_files import find_files


@pytest.fixture
def remote(monkeypatch, tmp_path):
    monkeypatch.setenv("FLIP_CTR_CACHE", str(tmp_path))
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


def test_files_of_an_address_are_copied_and_copied_anew_where_they_have_changed(remote, tmp_path, monkeypatch):
    remote.pipe({"/bucket/a/t.csv": b"a\n1\n", "/bucket/b/t.csv": b"a\n2\n", "/bucket/b/u.txt": b""})
    first, second = find_files(["memory://bucket/*/*.csv"], tmp_path, "--data_files")
    assert first == tmp_path / "files" / "memory" / "bucket" / "a" / "t.csv" and second.read_bytes() == b"a\n2\n"
    remote.pipe({"/bucket/b/t.csv": b"a\n3\n"})
    fetched = []
    monkeypatch.setattr(type(remote), "get_file", lambda self, name, to: fetched.append(name) or open(to, "wb").close())
    find_files(["memory://bucket/*/*.csv"], tmp_path, "--data_files")
    assert fetched == ["/bucket/b/t.csv"]
    assert sorted(path.name for path in second.parent.iterdir()) == [".t.csv.version", "t.csv"]


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("memory://bucket/c/*.csv", FileNotFoundError, "--data_files: no file fits 'memory://bucket/c/\\*.csv'"),
        ("memory://bucket/a", FileNotFoundError, "no file fits 'memory://bucket/a'"),
        ("nothing://user:secret@host/x", ValueError, "'nothing://host/x' cannot be read: Protocol not known: nothing"),
    ],
)
def test_what_is_wrong_with_an_address(remote, tmp_path, address, error, message):
    remote.pipe({"/bucket/a/t.csv": b"a\n1\n"})
    with pytest.raises(error, match=message):
        find_files([address], tmp_path, "--data_files")


def test_a_file_system_that_is_not_installed_is_named(tmp_path, monkeypatch):
    def url_to_fs(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", url_to_fs)
    with pytest.raises(ImportError, match=r"--data_files: 's3://bucket/x' needs s3fs \(pip install s3fs\)"):
        download.fetch_files("s3://bucket/x", "--data_files")
