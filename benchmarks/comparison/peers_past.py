# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a few numbers of a user's past say, and no network: baselines that every model must beat.

A row's numbers come from training rows alone. For a training row they come from those whose items are in the four
other fifths, as none of its own item may tell its label. The rows that are known of a new user (`prepare
--support_rows`) count for the user's other rows. In a split by time the user's rows are those of the row's history,
which are earlier (`prepare --history`):

* `rate`: the smoothed click rate of the user, as log odds, and the logarithm of the number of rows;
* `content`: what a ridge regression on the item's text (TF-IDF of words and fields) says of its click rate;
* `neighbours`: the click rate of the user's items that are nearest in text, each weighed by its similarity;
* `statistics`: the rates and counts that the dataset folder has (`prepare --statistics`), as log odds and logarithms.

A logistic regression, or gradient-boosted trees, on these numbers predicts the click.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import logit

from flip_ctr.benchmarks.comparison.peers import PeerArguments
from flip_ctr.benchmarks.comparison.predictions import Predictions, timed_passes
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.histories import HISTORY
from flip_ctr.data.prepare.statistics import BY_TIME, FOLDS
from flip_ctr.data.readers.click_rates import COUNT, RATE, SMOOTHING
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema
from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField
from flip_ctr.train.options import option
from flip_ctr.train.outputs.metrics import click_metrics

FEATURES = ("rate", "content", "neighbours", "statistics")
MODELS = ("logistic", "trees")
SHARPNESS = 10  # weight of a neighbour: exp(SHARPNESS * cosine)


@dataclass(kw_only=True)
class PastArguments(PeerArguments):
    features: list[str] = option(list(FEATURES[:3]), "which numbers of the past", choices=FEATURES)
    model: str = option("logistic", "what predicts from them", choices=MODELS)
    ridge_alpha: float = option(1.0, "of the regression on the item's text")


class Past:
    """The rows of a dataset folder as numbers of users and items, by their first keys, and the texts of the items.

    Raises:
        ValueError: the split is by time and has no histories, or the schema has no key of the user, or of the item.
    """

    def __init__(self, dataset_dir: str):
        schema = DatasetSchema.load(dataset_dir)
        split, has_history = schema.protocol.get("split"), any(field.is_history for field in schema.fields)
        if split in BY_TIME and not has_history:
            raise ValueError(
                f"{dataset_dir}: split '{split}' is by time, and what was earlier only histories tell; make them with "
                "`prepare --history`"
            )
        keys = {}
        for entity in ("user", "item"):
            named = [field for field in schema.fields if field.key and field.entity == entity]
            if not named:
                raise ValueError(f"{dataset_dir}: no field is a key of entity '{entity}'")
            keys[entity] = named[0]
        self.texts = [f for f in schema.fields if f.entity == "item" and f.on_text_side]
        tables = {name: read_split(dataset_dir, name) for name in SPLITS}
        names = [field.name for field in schema.fields if field.kind == "numeric"]
        rates = [name for name in names if name.endswith(RATE) and name.removesuffix(RATE) + COUNT in names]
        counts = [name.removesuffix(RATE) + COUNT for name in rates]
        self.statistics = {
            name: np.stack(
                [logit(np.clip(table[one].to_numpy(), 1e-6, 1 - 1e-6)) for one in rates]
                + [np.log1p(table[one].to_numpy()) for one in counts],
                axis=1,
            )
            for name, table in tables.items()
            if rates
        }
        users, items, documents = {}, {}, []
        self.users, self.items, self.labels = {}, {}, {}
        for name, table in tables.items():
            columns = read_columns(table, [*keys.values(), *self.texts])
            self.users[name] = _numbers(columns[keys["user"].name], users)
            self.items[name] = _numbers(columns[keys["item"].name], items)
            self.labels[name] = table[schema.label].to_numpy()
            _, first = np.unique(self.items[name], return_index=True)
            for row in first[self.items[name][first] >= len(documents)]:
                documents.append(self._document(columns, row))
        self.num_users, self.documents = len(users), documents
        # where training rows do not say what a user did before, histories do
        by_history = {"cold_users": SPLITS[1:]} | dict.fromkeys(BY_TIME, SPLITS)
        self.known = {
            name: self._entries(tables[name], keys["item"], items) for name in by_history.get(split, ()) if has_history
        }

    def _entries(self, table: pa.Table, item: FlipField, items: dict) -> np.ndarray:
        """Row, item and label of what histories hold, `(entries, 3)`, by row; none of an unknown item."""
        entries = table[HISTORY].combine_chunks()
        rows = np.repeat(np.arange(len(table)), entries.value_lengths().fill_null(0).to_numpy())
        keys = pa.table({item.name: entries.flatten().field(item.name)})
        found = read_columns(keys, [item])[item.name]
        numbers = np.array([items.get(value, -1) for value in found.values], np.int64)[found.codes]
        clicked = entries.flatten().field(CLICKED).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.stack([rows, numbers, clicked], axis=1)[numbers >= 0]

    def _document(self, columns: dict[str, Column], row: int) -> str:
        """An item's text: words of what is single, and each value of a list as one word."""
        words = []
        for field in self.texts:
            value = columns[field.name].values[columns[field.name].codes[row]]
            if isinstance(value, tuple):
                words += [f"{field.name}={one.replace(' ', '_')}" for one in value]
            elif value is not None:
                words.append(value)
        return " ".join(words)


def _numbers(column: Column, known: dict) -> np.ndarray:
    return np.array([known.setdefault(value, len(known)) for value in column.values], np.int64)[column.codes]


def _log_odds(clicks: np.ndarray, rows: np.ndarray, prior: float) -> np.ndarray:
    """Of the smoothed click rate."""
    return np.log((clicks + SMOOTHING * prior) / (rows - clicks + SMOOTHING * (1 - prior)))


class Numbers:
    """Numbers of rows from training rows.

    Args:
        past: all rows.
        vectors: `(items, words)`, of length 1.
        args: which numbers.
    """

    def __init__(self, past: Past, vectors, args: PastArguments):
        self.past, self.vectors, self.args = past, vectors, args
        self.similarity = (vectors @ vectors.T).toarray()
        generator = np.random.default_rng(args.seed)
        self.fold = generator.permutation(len(past.documents)) % FOLDS  # of each item

    def of(self, split: str, out: int | None = None) -> np.ndarray:
        """`(rows, numbers)`; with `out` those of the training rows of this fold, from all others."""
        from sklearn.linear_model import Ridge

        past = self.past
        items, users, labels = past.items["train"], past.users["train"], past.labels["train"]
        kept = np.ones(len(items), bool) if out is None else self.fold[items] != out
        rows = np.arange(len(past.items[split])) if out is None else np.flatnonzero(self.fold[items] == out)
        of_items, of_users = past.items[split][rows], past.users[split][rows]
        items, users, labels = items[kept], users[kept], labels[kept].astype(np.float64)

        def known(weighted: bool) -> tuple[np.ndarray, np.ndarray]:
            if split in past.known:
                return self._of_histories(split, rows, of_items, weighted)
            return self._of_users(users, items, labels, of_users, of_items, weighted)

        prior, numbers = labels.mean(), []
        if "rate" in self.args.features:
            clicks, number = known(weighted=False)
            numbers += [_log_odds(clicks, number, prior), np.log1p(number)]
        if "content" in self.args.features:
            number = np.bincount(items, minlength=len(past.documents))
            clicks = np.bincount(items, labels, len(past.documents))
            seen = np.flatnonzero(number)
            rate = (clicks[seen] + SMOOTHING * prior) / (number[seen] + SMOOTHING)
            ridge = Ridge(alpha=self.args.ridge_alpha)
            ridge.fit(self.vectors[seen], rate, sample_weight=np.sqrt(number[seen]))
            numbers.append(ridge.predict(self.vectors)[of_items])
        if "neighbours" in self.args.features:
            clicks, near = known(weighted=True)
            part = SMOOTHING / (near + SMOOTHING)  # together they count as less than SMOOTHING rows
            numbers.append(_log_odds(part * clicks, part * near, prior))
        if "statistics" in self.args.features:
            numbers += list(past.statistics[split][rows].T)
        return np.stack(numbers, axis=1)

    def _weights(self, of_items: np.ndarray, items: np.ndarray) -> np.ndarray:
        """What a row on `items` says of one on `of_items`, which are broadcast; an item tells nothing of itself."""
        return np.where(of_items == items, 0.0, np.exp(SHARPNESS * self.similarity[of_items, items]))

    def _of_users(self, users, items, labels, of_users, of_items, weighted: bool) -> tuple[np.ndarray, np.ndarray]:
        """Clicks and number of the rows of each row's user, each row counted once or by its weight, `(rows,)`."""
        if not weighted:
            clicks, number = (np.bincount(users, counted, self.past.num_users) for counted in (labels, None))
            return clicks[of_users], number[of_users]
        order = np.argsort(users, kind="stable")
        starts = np.searchsorted(users[order], np.arange(self.past.num_users + 1))
        clicks, number = np.empty(len(of_items)), np.empty(len(of_items))
        for user in np.unique(of_users):
            own, rows = order[starts[user] : starts[user + 1]], np.flatnonzero(of_users == user)
            weights = self._weights(of_items[rows, None], items[own])  # (rows, own)
            clicks[rows], number[rows] = weights @ labels[own], weights.sum(1)
        return clicks, number

    def _of_histories(
        self, split: str, rows: np.ndarray, of_items: np.ndarray, weighted: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same, of what the rows' histories hold."""
        of_rows, items, labels = self.past.known[split].T
        places = np.full(len(self.past.items[split]), -1)
        places[rows] = np.arange(len(rows))
        places = places[of_rows]
        places, items, labels = (values[places >= 0] for values in (places, items, labels))
        weights = self._weights(of_items[places], items) if weighted else np.ones(len(items))
        return np.bincount(places, weights * labels, len(rows)), np.bincount(places, weights, len(rows))


def run(args: PastArguments, folder: Path) -> dict:
    """Fits, saves predictions into the folder and returns the costs."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    past, started = Past(args.dataset_dir), time.perf_counter()
    if "statistics" in args.features and not past.statistics:
        raise ValueError(f"--features statistics: {args.dataset_dir} has none; make it with `prepare --statistics`")
    vectors = TfidfVectorizer(token_pattern=r"[^\s]+", min_df=2, sublinear_tf=True).fit_transform(past.documents)
    numbers = Numbers(past, vectors, args)
    train = [(numbers.of("train", fold), numbers.fold[past.items["train"]] == fold) for fold in range(FOLDS)]
    features = np.empty((len(past.items["train"]), train[0][0].shape[1]))
    for values, rows in train:
        features[rows] = values
    if args.model == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression())
    else:
        model = HistGradientBoostingClassifier(
            max_iter=1000, learning_rate=0.05, max_depth=4, early_stopping=True, random_state=args.seed
        )
    model.fit(features, past.labels["train"])
    seconds = time.perf_counter() - started
    speed: dict = {}
    for split in ("validation", "test"):
        score = lambda: model.decision_function(numbers.of(split)).astype(np.float32)  # noqa: B023, E731
        logits, speed = timed_passes(score, len(past.items[split]), split)
        Predictions.of({"logits": logits}, past.labels[split], past.users[split]).save(folder, split)
    measured = click_metrics(Predictions.load(folder, "validation").logits, past.labels["validation"])
    return speed | {
        "train_seconds": seconds,
        "train_rows": len(features),
        "train_steps": 1,
        "best_epoch": 1,
        "history": [{"seconds": seconds, "epoch": 1} | {name: measured[name] for name in ("auc", "logloss")}],
        "parameters": features.shape[1] + 1,
    }
