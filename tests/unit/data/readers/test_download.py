"""Files of other machines: copied once, again where they have changed, and errors that say what is missing."""

import gzip
import hashlib
import io
from importlib import import_module

import fsspec
import pytest
from raw_table import run, write_joined

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers import download
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.row_reader import RowReader
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


class Bucket(fsspec.AbstractFileSystem):
    """Files of another machine, listed as s3fs and huggingface_hub list them: no leading slash, and an ETag."""

    cachable = False
    files: dict[str, bytes] = {}

    def ls(self, path, detail=True, **options):
        inside = self._strip_protocol(path)
        found = {}
        for name, data in self.files.items():
            if name == inside:
                found[name] = {"type": "file", "size": len(data), "ETag": hashlib.md5(data).hexdigest()}
            elif name.startswith(f"{inside}/"):
                child = f"{inside}/{name.removeprefix(f'{inside}/').split('/')[0]}"
                found[child] = self.ls(child)[0] if child == name else {"type": "directory", "size": 0}
        if not found:
            raise FileNotFoundError(path)
        listed = [{"name": name} | info for name, info in found.items()]
        return listed if detail else sorted(found)

    def _open(self, path, mode="rb", **options):
        return io.BytesIO(self.files[self._strip_protocol(path)])


@pytest.mark.parametrize("scheme", ["s3", "hf"])
def test_rows_of_another_machine_are_those_of_local_files(tmp_path, monkeypatch, scheme):
    """Globs over packed events, and a side table, from raw files to the dataset folder and to rows that are scored."""
    bucket = type("Remote", (Bucket,), {"protocol": scheme, "files": {}})
    monkeypatch.setitem(import_module("fsspec.registry")._registry, scheme, bucket)
    monkeypatch.setenv("FLIP_CTR_CACHE", str(tmp_path / "cache"))
    changes = write_joined(tmp_path)
    here = run(tmp_path, **changes)
    lines = (tmp_path / "clicks.csv").read_bytes().splitlines(keepends=True)
    parts = {"datasets/me/clicks/2024/a.csv.gz": lines[1:200], "datasets/me/clicks/2025/b.csv.gz": lines[200:]}
    bucket.files |= {name: gzip.compress(b"".join([lines[0], *rows])) for name, rows in parts.items()}
    bucket.files["datasets/me/items.jsonl"] = (tmp_path / "items.jsonl").read_bytes()
    events, items = f"{scheme}://datasets/me/clicks/*/*.csv.gz", f"{scheme}://datasets/me/items.jsonl"
    changes["joins"][0] |= {"files": items, "name": "items"}
    there = run(tmp_path, "there", files=events, **changes)
    assert there["splits"] == here["splits"] and here["rows_read"] == there["rows_read"]
    assert [name.split("clicks/")[1] for name in there["events_files"]] == ["2024/a.csv.gz", "2025/b.csv.gz"]
    for split in ("train", "validation", "test"):
        assert read_split(tmp_path / "there", split) == read_split(tmp_path / "out", split)
    schema = DatasetSchema.load(tmp_path / "there")
    sides = {"items": [items], "makers": [str(tmp_path / "brands.parquet")]}
    rows = RowReader([events], schema.fields, schema.reading, sides)
    local = RowReader([str(tmp_path / "clicks.csv")], schema.fields, schema.reading, sides)
    assert [len(one.known) for one in rows] == [199, len(lines) - 200]
    assert [row for batch in rows for row in batch.known.to_pylist()] == [
        row for batch in local for row in batch.known.to_pylist()
    ]
