# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Metrics of lists, one a user, that are ranked by score: NDCG@k, MRR@k and hit rate@k, with intervals over the users.

A row is relevant if it was clicked. Rows of one score have no order of their own, so every metric is its expected value
over all orders of such ties: the order of the rows never counts, and of equal scores the value is that of a random
order (McSherry and Najork, ECIR 2008).
"""

import copy
from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import t

LEVEL = 0.95  # of the intervals
AT_K = ("ndcg", "mrr", "hit_rate")
SCORES_AT_ONCE = 2**22  # of users times items, which are sorted together


class RankedLists:
    """Lists of rows, each ranked by score from the highest to the lowest.

    Args:
        scores: `(N,)`, of which only the order within a list matters.
        clicks: `(N,)`, 0 or 1.
        lists: `(N,)` the number of each row's list, in any order.

    Attributes:
        sizes, clicks: `(L,)` rows and clicks of each list, the lists by rising number. The metrics are `(L,)` in the
            same order, and NaN for a list without a click.

    Raises:
        ValueError: a score is NaN, or there are no rows.
    """

    def __init__(self, scores: np.ndarray, clicks: np.ndarray, lists: np.ndarray):
        if not len(scores):
            raise ValueError("there are no rows to rank")
        if np.isnan(scores).any():
            raise ValueError(f"the score of row {int(np.isnan(scores).argmax())} is NaN, which has no rank")
        order = np.lexsort((-scores, lists))
        lists, scores, clicks = lists[order], scores[order], clicks[order].astype(np.int64)
        new_list = np.concatenate([[True], lists[1:] != lists[:-1]])
        new_score = new_list | np.concatenate([[True], scores[1:] != scores[:-1]])
        starts, ties = np.flatnonzero(new_list), np.flatnonzero(new_score)
        self.sizes, self.clicks = np.diff(starts, append=len(order)), np.add.reduceat(clicks, starts)
        # of each tie that has clicks (a tie may be of one row): its list, how many rows are better, its rows and clicks
        clicked, of_list = np.add.reduceat(clicks, ties), (np.cumsum(new_list) - 1)[ties]
        some = clicked > 0
        self._list, self._clicked = of_list[some], clicked[some]
        self._better = (ties - starts[of_list])[some]
        self._tied = np.diff(ties, append=len(order))[some]

    def auc(self) -> np.ndarray:
        """The share of pairs of a click and another row that are in the right order, ties counted half; NaN too where
        all rows are clicks."""
        clicks, others = self.clicks, self.sizes - self.clicks
        # Mann-Whitney: from the sum of the clicks' ranks, counted from the lowest score, of ties the mean rank
        ranks = self.sizes[self._list] - self._better - (self._tied - 1) / 2
        return _ratio(self._sum(self._clicked * ranks) - clicks * (clicks + 1) / 2, clicks * others)

    def ndcg(self, k: int) -> np.ndarray:
        """NDCG@k (Järvelin and Kekäläinen, ACM TOIS 2002) of binary relevance: the sum of 1 / log2(1 + rank) over the
        clicks among the first k, divided by the largest sum that the list's number of clicks allows."""
        discounts = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        first, last = np.minimum(self._better, k), np.minimum(self._better + self._tied, k)
        gains = self._clicked / self._tied * (discounts[last] - discounts[first])
        return _ratio(self._sum(gains), discounts[np.minimum(self.clicks, k)])

    def mrr(self, k: int) -> np.ndarray:
        """Reciprocal rank of the first click (Voorhees, TREC-8, 1999), 0 where it is not among the first k; the mean
        over lists is MRR@k."""
        return sum(chance / rank for rank, chance in self._first_click(k))

    def hit_rate(self, k: int) -> np.ndarray:
        """1 where there is a click among the first k, else 0 (or with ties the probability of one)."""
        return sum(chance for _, chance in self._first_click(k))

    def _first_click(self, k: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields a rank from 1 to k, and `(L,)` the probability that the list's first click has it."""
        lists, first = np.unique(self._list, return_index=True)
        better, tied, clicked = (values[first] for values in (self._better, self._tied, self._clicked))
        none_yet = np.ones(len(lists))
        for rank in range(1, min(k, int(self.sizes.max())) + 1):
            left = tied - (rank - 1 - better)  # rows of the tie that may have this rank
            reached = (left <= tied) & (left > 0)
            # with as many rows left as clicks the next is one: afterwards `none_yet` is 0
            chance = none_yet * np.where(reached, clicked / np.maximum(left, clicked), 0.0)
            none_yet = none_yet - chance
            of_all = np.full(len(self.sizes), np.nan)
            of_all[lists] = chance
            yield rank, of_all

    def shuffled(self) -> "RankedLists":
        """The same lists with equal scores, whose metrics are those of a random order."""
        lists = copy.copy(self)
        lists._list = np.flatnonzero(self.clicks)
        lists._better = np.zeros(len(lists._list), np.int64)
        lists._tied, lists._clicked = self.sizes[lists._list], self.clicks[lists._list]
        return lists

    def _sum(self, of_ties: np.ndarray) -> np.ndarray:
        return np.bincount(self._list, of_ties, len(self.sizes))


def _ratio(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(values, of, out=np.full(len(values), np.nan), where=of > 0)


def mean_interval(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """The 95 % interval of a mean of values between 0 and 1, from its standard error and Student's t; NaN of fewer than
    two values. With weights, those of a ratio of sums (Cochran, Sampling Techniques, 1977, section 6.4).

    Args:
        values: `(L,)`, one of each user: the users are the sample, not the rows.
        weights: `(L,)`.
    """
    size, weights = len(values), np.ones(len(values)) if weights is None else weights
    if size < 2:
        return float("nan"), float("nan")
    mean = np.average(values, weights=weights)
    error = np.sqrt(size / (size - 1) * ((weights * (values - mean)) ** 2).sum()) / weights.sum()
    half = t.ppf((1 + LEVEL) / 2, size - 1) * error
    return float(max(mean - half, 0)), float(min(mean + half, 1))


def check_lists(clicks: np.ndarray, users: np.ndarray | None, k: int) -> None:
    """`ValueError` where [`ranking_metrics`] has no list to count, known before the rows have scores."""
    known = np.zeros(len(clicks), bool) if users is None else users >= 0
    if not known.any():
        raise ValueError(f"--top_k {k} ranks the rows of each user, and no row has a user")
    rows = np.bincount(users[known])
    longest = int((rows * (np.bincount(users[known], clicks[known]) > 0)).max())
    if longest <= k:
        raise ValueError(
            f"--top_k {k} needs users with more than {k} rows, at least one of them a click; "
            + (f"the most rows of a user with a click are {longest}" if longest else "no user has a click")
        )


def ranking_metrics(scores: np.ndarray, clicks: np.ndarray, users: np.ndarray, k: int) -> dict[str, float]:
    """NDCG@k, MRR@k and hit rate@k of each user's rows, means over users, each user counting alike, with 95 %
    intervals; what a random order of the same lists gets (`…_random`); and the interval of GAUC.

    A user counts whose list is longer than k (a shorter one is all among the first k) and has a click; how many do not
    is among the results. GAUC is of all users with rows of both classes, as in `click_metrics`. Sample weights are not
    used, here as in the other metrics.

    Args:
        scores, clicks, users: `(N,)`; users are numbers, below 0 for none.
        k: the first ranks that count, at least 1.

    Raises:
        ValueError: no user counts, or a score is NaN.
    """
    check_lists(clicks, users, k)
    known = users >= 0
    lists = RankedLists(scores[known], clicks[known], users[known])
    long, clicked, of_lists = lists.sizes > k, lists.clicks > 0, _of_lists(lists, k)
    both = ~np.isnan(of_lists["auc"])
    low, high = mean_interval(of_lists["auc"][both], lists.sizes[both])
    return _means({name: values[long & clicked] for name, values in of_lists.items()}, k) | {
        "gauc_low": low,
        "gauc_high": high,
        "ranked_users": int((long & clicked).sum()),
        f"users_with_at_most_{k}_rows": int((~long).sum()),
        "users_without_click": int((long & ~clicked).sum()),
        "rows_without_user": int((~known).sum()),
    }


def catalogue_metrics(
    score: Callable[[np.ndarray], np.ndarray],
    clicked: csr_array,
    seen: csr_array,
    k: int,
    num_sampled: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """As [`ranking_metrics`], of lists that hold all items which the user has not seen before; those that the user
    clicked are relevant. GAUC is of the users that count, each counting alike. Users with at most k such items, or with
    fewer to sample from than `num_sampled`, do not count.

    With `num_sampled` a list is one click and so many items, drawn at random from those that the user has neither seen
    nor clicked: a list for each click, the same items for all clicks of a user, whose metrics are the means over the
    lists. These metrics are biased, and may order models otherwise than the whole catalogue does (Krichene and Rendle,
    KDD 2020).

    Args:
        score: of users' numbers `(B,)` their scores of all items `(B, I)`. Only users that count are scored.
        clicked: `(U, I)` not zero where the user clicked the item, in the rows to measure.
        seen: `(U, I)` not zero where the user met the item earlier. A click on such an item does not count:
            `clicks_on_seen_items` says how many do not.
        k: the first ranks that count, at least 1.
        seed: of the draws.

    Raises:
        ValueError: no user counts, or a score is NaN.
    """
    clicked, seen = ((one != 0).astype(np.int64) for one in (clicked, seen))
    again = clicked.multiply(seen)
    clicked = clicked - again
    clicks, unseen = clicked.sum(axis=1), clicked.shape[1] - seen.sum(axis=1)
    enough = unseen > k if num_sampled is None else unseen - clicks >= max(k, num_sampled)
    counted = np.flatnonzero(enough & (clicks > 0))
    if not len(counted):
        needed = f"more than {k} unseen items" if num_sampled is None else f"{num_sampled} unseen items beside clicks"
        raise ValueError(f"--top_k {k}: of {len(clicks):,} users none has a click on an unseen item, and {needed}")
    random, parts = np.random.default_rng(seed), []
    for users in np.array_split(counted, -(-len(counted) * clicked.shape[1] // SCORES_AT_ONCE)):
        scores, relevant, candidates = score(users), clicked[users].toarray() > 0, seen[users].toarray() == 0
        if num_sampled is None:
            lists = RankedLists(scores[candidates], relevant[candidates], np.nonzero(candidates)[0])
            parts.append(_of_lists(lists, k))
        else:
            parts.append(_of_samples(scores, relevant, candidates & ~relevant, k, num_sampled, random))
    of_lists = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    aucs = of_lists["auc"][~np.isnan(of_lists["auc"])]
    low, high = mean_interval(aucs)
    return _means(of_lists, k) | {
        "gauc": float(aucs.mean()) if len(aucs) else float("nan"),
        "gauc_low": low,
        "gauc_high": high,
        "ranked_users": len(counted),
        "users_with_too_few_items": int((~enough).sum()),
        "users_without_click": int((enough & (clicks == 0)).sum()),
        "clicks_on_seen_items": int(again.sum()),
    }


def _of_samples(
    scores: np.ndarray, clicks: np.ndarray, others: np.ndarray, k: int, num_sampled: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """As [`_of_lists`], of users `(B,)`: means over the lists of their clicks."""
    users, items = np.nonzero(clicks)
    keys = np.where(others, random.random(others.shape), np.inf)  # the smallest are a sample without replacement
    drawn = np.argpartition(keys, num_sampled - 1, axis=1)[:, :num_sampled]
    rows = np.concatenate([items[:, None], drawn[users]], axis=1)  # (clicks, 1 + num_sampled)
    relevant = np.broadcast_to(np.arange(1 + num_sampled) == 0, rows.shape)
    numbers = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    lists = RankedLists(*(one.ravel() for one in (scores[users[:, None], rows], relevant, numbers)))
    return {name: np.bincount(users, values) / np.bincount(users) for name, values in _of_lists(lists, k).items()}


def _of_lists(lists: RankedLists, k: int) -> dict[str, np.ndarray]:
    """Metrics `(L,)` by name, those at k also of a random order (`…_random`)."""
    at_k = {
        name + order: getattr(one, name)(k)
        for name in AT_K
        for order, one in (("", lists), ("_random", lists.shuffled()))
    }
    return at_k | {"auc": lists.auc()}


def _means(of_lists: dict[str, np.ndarray], k: int) -> dict[str, float]:
    """The results at k of what [`_of_lists`] gives of the lists that count."""
    results = {}
    for name in AT_K:
        results[f"{name}@{k}"] = float(of_lists[name].mean())
        results[f"{name}@{k}_low"], results[f"{name}@{k}_high"] = mean_interval(of_lists[name])
        results[f"{name}@{k}_random"] = float(of_lists[f"{name}_random"].mean())
    return results
