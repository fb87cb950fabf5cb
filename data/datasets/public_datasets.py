# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The public datasets that `flip-ctr prepare` knows, by name."""

from flip_ctr.data.datasets import bookcrossing, goodreads, movielens
from flip_ctr.data.datasets.raw_dataset import RawDataset

PUBLIC_DATASETS: dict[str, RawDataset] = movielens.DATASETS | bookcrossing.DATASETS | goodreads.DATASETS
