# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FlipClassifier beside CatBoost, both with their defaults, on frames of a few thousand rows.

    python benchmarks/sklearn_estimator.py --dataset_dirs ML100K BOOKCROSSING --model_name_or_path PLM

Of each dataset folder, and of a generated table with nulls, numbers and lists, a seeded sample of the training and
validation rows is one frame, and all test rows another. Both estimators are given the same frames without a word about
the columns, but that CatBoost is told which columns are no numbers, and gets lists as text. A seed draws the rows and
seeds the models. Seconds are of fitting and of scoring the test rows.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from flip_ctr import FlipClassifier
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.train.options import Options, option
from flip_ctr.train.parser import parse_arguments

GENERATED = "generated"
GENERATED_TEST_ROWS, TAGS = 20_000, 30


@dataclass
class EstimatorArguments(Options):
    dataset_dirs: list[str] | None = option(None, "dataset folders written by `flip-ctr prepare`", path=True)
    model_name_or_path: str | None = option(None, "the PLM of a second run on each folder with text", model=True)
    rows: int = option(10_000, "rows that are trained on", at_least=100)
    seeds: list[int] = option([0, 1, 2], "a run for each", at_least=0)


def generated(n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """`n` rows of users and items with numbers, lists and nulls, and clicks that depend on all of them."""
    random = np.random.default_rng(0)
    users, items = 2_000, 500
    user, item = random.integers(0, users, n), random.integers(0, items, n)
    quality, taste = random.normal(0, 0.8, items), random.normal(0, 0.8, (users, 5))
    price, age = random.lognormal(3, 1, items), random.integers(18, 80, users).astype(float)
    tags = [sorted(random.choice(TAGS, random.integers(1, 5), replace=False)) for _ in range(items)]
    of_tags = random.normal(0, 0.6, (TAGS, 5))
    likes = np.array([of_tags[one].sum(0) for one in tags])
    hour = random.integers(0, 24, n).astype(float)
    log_odds = quality[item] + (taste[user] * likes[item]).sum(1) - 0.4 * np.log(price[item]) + 0.02 * age[user]
    log_odds += 0.5 * np.sin(hour / 24 * 2 * np.pi)
    frame = pd.DataFrame({"user_id": user, "item_id": item, "age": age[user], "price": price[item], "hour": hour})
    frame["tags"] = [[f"tag{one}" for one in tags[one]] for one in item]
    for name in ("age", "price", "hour", "tags"):
        frame.loc[random.random(n) < 0.1, name] = None
    return frame, (random.random(n) < expit(log_odds)).astype(int)


def tables(folders: list[str], rows: int, seed: int):
    """Name, whether it has text, and frames and labels of training and of test, of each table."""
    random = np.random.default_rng(seed)
    for folder in folders:
        schema = DatasetSchema.load(folder)
        columns = [field.name for field in schema.fields]
        parts = [read_split(folder, split, [*columns, schema.label]).to_pandas() for split in ("train", "validation")]
        frame, test = pd.concat(parts, ignore_index=True), read_split(folder, "test").to_pandas()
        frame = frame.iloc[random.permutation(len(frame))[:rows]]
        yield Path(folder).name, True, (frame[columns], frame[schema.label]), (test[columns], test[schema.label])
    frame, clicks = generated(rows + GENERATED_TEST_ROWS)
    picked, test = np.split(random.permutation(len(frame)), [rows])
    yield GENERATED, False, (frame.iloc[picked], clicks[picked]), (frame.iloc[test], clicks[test])


def catboost(train, test, seed: int) -> np.ndarray:
    from catboost import CatBoostClassifier

    def plain(frame: pd.DataFrame) -> pd.DataFrame:
        def text(value) -> str:
            return " ".join(map(str, value)) if isinstance(value, list | np.ndarray) else str(value)

        return frame.assign(**{name: frame[name].map(text) for name in categorical})

    ids = [name for name in train[0] if name.endswith("_id")]
    categorical = [name for name in train[0] if name in ids or not pd.api.types.is_numeric_dtype(train[0][name])]
    model = CatBoostClassifier(cat_features=categorical, random_seed=seed, verbose=False, allow_writing_files=False)
    return model.fit(plain(train[0]), train[1]).predict_proba(plain(test[0]))[:, 1]


def flip(train, test, seed: int, plm: str | None = None) -> tuple[np.ndarray, str]:
    model = FlipClassifier(plm, random_state=seed).fit(*train)
    return model.predict_proba(test[0])[:, 1], model.strategy_


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(EstimatorArguments, argv, "sklearn_estimator")
    found: dict[tuple[str, str], list] = {}
    for seed in args.seeds:
        for name, has_text, train, test in tables(args.dataset_dirs or [], args.rows, seed):
            runs = {
                "CatBoost": lambda: (catboost(train, test, seed), ""),
                "FlipClassifier": lambda: flip(train, test, seed),
            }
            if has_text and args.model_name_or_path is not None:
                runs["FlipClassifier with the PLM"] = lambda: flip(train, test, seed, args.model_name_or_path)
            for kind, run in runs.items():
                started = time.perf_counter(), time.process_time()
                scores, strategy = run()
                seconds = time.perf_counter() - started[0], time.process_time() - started[1]
                auc, loss = roc_auc_score(test[1], scores), log_loss(test[1], scores)
                times = f"{seconds[0]:.1f} s, CPU {seconds[1]:.1f} s"
                print(f"{name}, seed {seed}, {kind}: {auc:.4f} {loss:.4f} {times} {strategy}", flush=True)
                found.setdefault((name, kind), []).append((auc, loss, *seconds, strategy))
    rows = []
    for (name, kind), runs in found.items():
        aucs, losses, seconds, of_cpu, strategies = zip(*runs)
        chosen = ", ".join(dict.fromkeys(filter(None, strategies)))
        shown = f"{np.mean(aucs):.4f} ± {np.std(aucs):.4f}", f"{np.mean(losses):.4f}", f"{np.mean(seconds):.0f}"
        rows.append([f"{name}, {kind}", *shown, f"{np.mean(of_cpu):.0f}", chosen])
    print(markdown_table(["table, estimator", "test AUC", "LogLoss", "seconds", "CPU seconds", "strategy"], rows))


if __name__ == "__main__":
    main()
