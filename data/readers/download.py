# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Where raw files come from: a folder, a zip, the official archive, downloaded once and verified, or an address such as
`hf://datasets/...`."""

import contextlib
import fnmatch
import hashlib
import http.client
import logging
import os
import re
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens"
# md5 of each archive, as GroupLens publishes it beside the archive
ARCHIVE_MD5 = {"ml-100k": "0e33842e24a9c977be4e0107933c0723", "ml-1m": "c4d9eecfca2ab87c1945afe126590906"}
TIMEOUT = 60  # seconds without a byte
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.+)", re.DOTALL)
NEEDED = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}  # packages of file systems
# what tells a file's version
VERSIONS = ("ETag", "etag", "oid", "blob_id", "Last-Modified", "LastModified", "last_modified", "mtime", "created")


def cache_folder() -> Path:
    """`$FLIP_CTR_CACHE`, else `~/.cache/flip-ctr`."""
    return Path(os.environ.get("FLIP_CTR_CACHE") or Path.home() / ".cache" / "flip-ctr").expanduser()


def file_md5(path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def fetch_archive(dataset: str, base_url: str = MOVIELENS_URL, cache_dir: str | Path | None = None) -> Path:
    """Path of the dataset's official zip, downloaded into the cache unless a verified copy is there already.

    Raises:
        ConnectionError: the archive cannot be downloaded.
        ValueError: what was downloaded is not the official archive.
    """
    url, expected = f"{base_url}/{dataset}.zip", ARCHIVE_MD5[dataset]
    way_out = f"download {dataset}.zip yourself and pass it with --data_dir"
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    archive = folder / f"{dataset}.zip"
    if archive.is_file():
        if file_md5(archive) == expected:
            return archive
        logger.warning("%s is not the official archive (its md5 differs); downloading it again.", archive)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", url)
    # a temporary name until it is verified: the cache never holds half an archive
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{dataset}-") as temporary:
        partial = Path(temporary) / archive.name
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, partial.open("wb") as handle:
                while block := response.read(1 << 20):
                    handle.write(block)
        except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError and time-outs are OSErrors
            raise ConnectionError(f"cannot download {url}: {error}. Without a network, {way_out}.") from error
        found = file_md5(partial)
        if found != expected:
            raise ValueError(
                f"{url}: the {partial.stat().st_size:,} bytes received have md5 {found}, the official archive has "
                f"{expected}. Try again, or {way_out}."
            )
        os.replace(partial, archive)
    return archive


def is_address(pattern: str) -> bool:
    """Whether it names a file of another machine: `hf://...`, `s3://...`, `https://...`, or what else fsspec knows."""
    return ADDRESS.fullmatch(pattern) is not None


def fetch_files(address: str, owner: str) -> list[Path]:
    """Copies of the files of an address, which may be a pattern, in the cache: its folders are those of the address.
    A file is fetched again unless what the other side says of its version is what it said before.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package that is needed for such addresses is not installed.
        ConnectionError: a file cannot be fetched.
        ValueError: there are no such addresses.
    """
    import fsspec

    scheme = ADDRESS.fullmatch(address)[1]
    shown = re.sub(r"//[^/@]*@", "//", address).split("?")[0]  # without a password
    try:
        system, pattern = fsspec.url_to_fs(address)
        names = sorted(system.glob(pattern)) if any(sign in pattern for sign in "*[") else [pattern]
        files = [(name, system.info(name)) for name in names]
        files = [(name, info) for name, info in files if info["type"] == "file"]
        if not files:
            raise FileNotFoundError
        return [_copy(system, name, info, scheme) for name, info in files]
    except FileNotFoundError as error:
        if isinstance(error.__cause__, FileNotFoundError | None):
            raise FileNotFoundError(f"{owner}: no file fits {shown!r}.") from None
        raise ConnectionError(f"{owner}: cannot fetch {shown!r}: {error.__cause__}.") from error
    except ImportError as error:
        needed = NEEDED.get(scheme, "another package")
        raise ImportError(f"{owner}: {shown!r} needs {needed} (pip install {needed}): {error}") from error
    except ValueError as error:
        raise ValueError(f"{owner}: {shown!r} cannot be read: {error}") from error
    except Exception as error:  # whatever the file system of the address raises
        raise ConnectionError(f"{owner}: cannot fetch {shown!r}: {error or type(error).__name__}.") from error


def _copy(system, name: str, info: dict, scheme: str) -> Path:
    """The file's copy in the cache, under a temporary name until it is whole."""
    place, _, query = name.partition("?")
    parts = [part for part in re.sub(r"^[^/]*://", "", place).split("/") if part.strip(".")]
    digest = [hashlib.md5(query.encode()).hexdigest()[:8]] if query else []
    copy = cache_folder().joinpath("files", scheme, *parts[:-1], *digest, parts[-1].split("@")[-1])
    version = next((f"{key}: {info[key]}, size: {info.get('size')}" for key in VERSIONS if info.get(key)), None)
    note = copy.with_name(f".{copy.name}.version")
    with contextlib.suppress(FileNotFoundError):
        if version is not None and note.read_text(encoding="utf-8") == version and copy.is_file():
            return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", copy.name)
    note.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=f".{copy.name}-") as temporary:
        partial = Path(temporary) / copy.name
        system.get_file(name, str(partial))
        os.replace(partial, copy)
    if version is not None:
        note.write_text(version, encoding="utf-8")
    return copy


def open_raw_folder(dataset: str, data_dir: str | Path, files: Sequence[str]) -> Path | zipfile.Path:
    """The folder that holds the raw files: `data_dir`, its sub-folder named as the dataset, or the same inside a zip.

    Args:
        files: names, or patterns (`books*`) of which one file each must be there.

    Raises:
        FileNotFoundError: `data_dir` is not there, or a file is missing; the message names the file and the folder.
        ValueError: `data_dir` is a file, but not a zip.
    """
    data_dir = Path(data_dir).expanduser()
    if not data_dir.exists():
        raise FileNotFoundError(f"--data_dir {data_dir}: no such folder or zip.")
    if data_dir.is_dir():
        outer = data_dir
    elif zipfile.is_zipfile(data_dir):
        outer = zipfile.Path(data_dir)
    else:
        raise ValueError(f"--data_dir {data_dir} is neither a folder nor a zip archive.")
    inner = outer / dataset
    folder = inner if inner.is_dir() and len(_missing(outer, files)) == len(files) else outer
    missing = _missing(folder, files)
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}; {dataset} needs {', '.join(files)} together in --data_dir, in its "
            f"sub-folder {dataset}, or in a zip of either."
        )
    return folder


def _missing(folder: Path | zipfile.Path, files: Sequence[str]) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return [name for name in files if not fnmatch.filter(names, name)]
