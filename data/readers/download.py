# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Where raw files come from: a folder, a zip, or the official archive, downloaded once and verified."""

import fnmatch
import hashlib
import http.client
import logging
import os
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
