"""Ranking metrics against slow references: all orders of ties, loops over ranks, scikit-learn, bootstraps."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import hypergeom, sem, t
from sklearn.metrics import ndcg_score, roc_auc_score

from flip_ctr.train.outputs import ranking_metrics as ranking_module
from flip_ctr.train.outputs.metrics import group_auc
from flip_ctr.train.outputs.ranking_metrics import RankedLists, catalogue_metrics, mean_interval, ranking_metrics

METRICS = ("ndcg", "mrr", "hit_rate")


def lists_of(rows: int, users: int, seed: int = 0, levels: int = 5):
    """Scores of a few levels, clicks that follow them, and the users of the rows, mixed; some users have no click."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, rows).astype(np.float32)
    clicks = (random.random(rows) < 0.1 + 0.5 * scores / levels).astype(np.int64)
    numbers = random.integers(0, users, rows)
    clicks[np.isin(numbers, [2, 3])] = 0
    return scores, clicks, numbers


def slow_in_order(clicks, k: int) -> list[float]:
    """The metrics of a list whose order is known."""
    gains = sum(1 / math.log2(1 + rank) for rank, click in enumerate(clicks, 1) if click and rank <= k)
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(sum(clicks), k) + 1))
    first = next((rank for rank, click in enumerate(clicks, 1) if click and rank <= k), None)
    return [gains / ideal, 1 / first if first else 0.0, float(first is not None)]


def slow(scores, clicks, k: int) -> list[float]:
    """The means of the metrics over all orders of a list that its scores allow."""
    rows = list(zip(scores.tolist(), clicks.tolist()))
    ranked = {order for order in permutations(range(len(rows))) if is_sorted([rows[row][0] for row in order])}
    return np.mean([slow_in_order([rows[row][1] for row in order], k) for order in ranked], axis=0).tolist()


def is_sorted(scores) -> bool:
    return all(first >= second for first, second in zip(scores, scores[1:]))


def test_ties_have_the_mean_over_all_their_orders():
    scores, clicks, users = lists_of(rows=90, users=16, levels=3)
    lists = RankedLists(scores, clicks, users)
    assert (lists.clicks == 0).any() and (lists.clicks > 1).any()
    kept = lists.sizes <= 7  # 5,040 orders
    assert kept.sum() > 10
    for k in (1, 2, 3, 6, 50):
        found = np.stack([getattr(lists, name)(k) for name in METRICS], axis=1)
        for user, values in zip(np.unique(users)[kept], found[kept]):
            mine = users == user
            if clicks[mine].any():
                assert values == pytest.approx(slow(scores[mine], clicks[mine], k), abs=1e-12), (user, k)
            else:
                assert np.isnan(values).all()


@pytest.mark.parametrize("k", [1, 5, 10, 100])
def test_long_lists_against_loops_and_scikit_learn(k):
    ties, clicks, users = lists_of(rows=3000, users=40)
    scores = ties + np.random.default_rng(1).random(len(ties))  # without ties
    ranked, tied = RankedLists(scores, clicks, users), RankedLists(ties, clicks, users)
    for place, user in enumerate(np.unique(users)):
        mine = users == user
        if not clicks[mine].any():
            continue
        expected = slow_in_order(clicks[mine][np.argsort(-scores[mine])].tolist(), k)
        assert [getattr(ranked, name)(k)[place] for name in METRICS] == pytest.approx(expected, abs=1e-12)
        assert tied.ndcg(k)[place] == pytest.approx(ndcg_score([clicks[mine]], [ties[mine]], k=k), abs=1e-12)
        assert tied.auc()[place] == pytest.approx(roc_auc_score(clicks[mine], ties[mine]), abs=1e-12)


@pytest.mark.parametrize("first", [0, 1], ids=["clicks last", "clicks first"])
def test_equal_scores_are_a_random_order_however_the_rows_lie(first):
    """A list of 30 rows with 4 clicks, sorted by label, of which the first 10 count."""
    size, clicked, k = 30, 4, 10
    clicks = np.sort(np.repeat([0, 1], [size - clicked, clicked]))[:: -1 if first else 1]
    lists = RankedLists(np.full(size, 0.3), clicks, np.zeros(size, np.int64))
    ways = math.comb(size, clicked)
    first_at = [math.comb(size - rank, clicked - 1) / ways for rank in range(1, k + 1)]
    discounts = [1 / math.log2(1 + rank) for rank in range(1, size + 1)]
    assert lists.hit_rate(k)[0] == pytest.approx(1 - math.comb(size - k, clicked) / math.comb(size, clicked))
    assert lists.mrr(k)[0] == pytest.approx(sum(chance / rank for rank, chance in enumerate(first_at, 1)))
    assert lists.ndcg(k)[0] == pytest.approx(clicked / size * sum(discounts[:k]) / sum(discounts[:clicked]))
    assert lists.auc()[0] == 0.5


def test_users_that_count_and_those_that_do_not_are_told():
    scores, clicks, users = lists_of(rows=400, users=30)
    users[:9] = -1  # rows of nobody
    users[9:12], clicks[9:12] = 99, 1  # a user of three rows
    k = 4
    results = ranking_metrics(scores, clicks, users, k)
    numbers = [user for user in np.unique(users) if user >= 0]
    long = [user for user in numbers if (users == user).sum() > k]
    counted = [user for user in long if clicks[users == user].any()]
    assert results["ranked_users"] == len(counted) < len(long) < len(numbers)
    assert results["users_with_at_most_4_rows"] == len(numbers) - len(long)
    assert results["users_without_click"] == len(long) - len(counted) > 0
    assert results["rows_without_user"] == 9
    mine = [users == user for user in counted]
    of_users = [ndcg_score([clicks[rows]], [scores[rows]], k=k) for rows in mine]
    assert results["ndcg@4"] == pytest.approx(np.mean(of_users))
    low, high = t.interval(0.95, len(counted) - 1, np.mean(of_users), sem(of_users))
    assert (results["ndcg@4_low"], results["ndcg@4_high"]) == pytest.approx((low, high)) and 0 < low < high < 1
    by_chance = [ndcg_score([clicks[rows]], [np.zeros(rows.sum())], k=k) for rows in mine]
    assert results["ndcg@4_random"] == pytest.approx(np.mean(by_chance)) and np.mean(by_chance) < low
    gauc = group_auc(scores[users >= 0], clicks[users >= 0], users[users >= 0])[0]
    assert results["gauc_low"] < gauc < results["gauc_high"]
    for name in ("mrr", "hit_rate"):
        assert results[f"{name}@4_random"] < results[f"{name}@4"]
        assert results[f"{name}@4_low"] < results[f"{name}@4"] < results[f"{name}@4_high"] <= 1


def test_intervals_hold_what_they_say():
    """About 95 % of them hold the mean of all users; with weights they are those of a bootstrap of users."""
    random = np.random.default_rng(0)
    found = [mean_interval(random.beta(2, 1, 40)) for _ in range(2000)]
    assert np.mean([low < 2 / 3 < high for low, high in found]) == pytest.approx(0.95, abs=0.015)
    weights = random.integers(1, 60, 300).astype(np.float64)
    values = np.clip(0.6 + 0.002 * weights + random.normal(size=300) / weights, 0, 1)
    draws = random.integers(0, 300, (4000, 300))
    of_draws = (weights * values)[draws].sum(axis=1) / weights[draws].sum(axis=1)
    assert np.subtract(*mean_interval(values, weights)) == pytest.approx(
        np.subtract(*np.quantile(of_draws, [0.025, 0.975])), rel=0.05
    )
    assert mean_interval(np.array([1.0, 0.98, 1.0, 1.0]))[1] == 1
    assert all(map(math.isnan, mean_interval(np.ones(1))))


# --- lists from a catalogue


@pytest.fixture
def catalogue(monkeypatch):
    """Scores of 60 users for 30 items, with ties, and what was clicked and seen; a few users are scored at once."""
    monkeypatch.setattr(ranking_module, "SCORES_AT_ONCE", 200)
    random = np.random.default_rng(3)
    scores = random.normal(size=(60, 30)).round(1)
    clicked = random.random((60, 30)) < 0.02 + 0.1 * (scores > 0.5)
    seen = random.random((60, 30)) < 0.3
    clicked[0], seen[1, 4:] = False, True  # nothing to find, and nothing to rank
    return scores, clicked, seen


def test_a_catalogue_is_ranked_without_what_was_seen(catalogue):
    scores, clicked, seen = catalogue
    asked = []
    results = catalogue_metrics(
        lambda users: asked.extend(users) or scores[users], csr_array(clicked), csr_array(seen), k=5
    )
    lists = [[values[~hidden] for values in (row, clicks)] for row, clicks, hidden in zip(scores, clicked, seen)]
    counted = [user for user, (_, clicks) in enumerate(lists) if len(clicks) > 5 and clicks.any()]
    assert asked == counted and 20 < len(counted) == results["ranked_users"]
    gains = [ndcg_score([lists[user][1]], [lists[user][0]], k=5) for user in counted]
    assert results["ndcg@5"] == pytest.approx(np.mean(gains))
    aucs = [roc_auc_score(lists[user][1], lists[user][0]) for user in counted]
    assert results["gauc"] == pytest.approx(np.mean(aucs)) and results["gauc_low"] < np.mean(aucs)
    assert results["users_with_too_few_items"] == 1
    assert results["users_without_click"] == 60 - 1 - len(counted) > 0
    assert results["clicks_on_seen_items"] == (clicked & seen).sum() > 0
    flat = catalogue_metrics(lambda users: np.zeros((len(users), 30)), csr_array(clicked), csr_array(seen), k=5)
    for name in METRICS:
        assert flat[f"{name}@5"] == pytest.approx(results[f"{name}@5_random"]) and flat["gauc"] == 0.5


def test_each_click_stands_among_sampled_items(catalogue):
    """The expected hit rate, over the draws, of a click that `better` of `others` items outrank is hypergeometric."""
    scores, clicked, seen = catalogue
    scores = scores + np.random.default_rng(4).random(scores.shape) / 100  # no ties
    k, drawn = 2, 8
    of_seeds = [
        catalogue_metrics(lambda users: scores[users], csr_array(clicked), csr_array(seen), k, drawn, seed)
        for seed in range(200)
    ]
    expected = []
    for user in range(60):
        others = scores[user][~seen[user] & ~clicked[user]]
        mine = scores[user][~seen[user] & clicked[user]]
        if len(mine):
            better = [(others > score).sum() for score in mine]
            expected.append(np.mean([hypergeom.cdf(k - 1, len(others), above, drawn) for above in better]))
    assert np.mean([one["hit_rate@2"] for one in of_seeds]) == pytest.approx(np.mean(expected), abs=0.005)
    assert len({one["hit_rate@2"] for one in of_seeds}) > 20 and of_seeds[0]["ranked_users"] == len(expected)
    assert of_seeds[0]["hit_rate@2_random"] == pytest.approx(k / (1 + drawn))
    fewer = catalogue_metrics(lambda users: scores[users], csr_array(clicked), csr_array(seen), k, 20)
    others = (~seen & ~clicked).sum(axis=1)
    assert fewer["users_with_too_few_items"] == (others < 20).sum() > of_seeds[0]["users_with_too_few_items"] == 1


@pytest.mark.parametrize(
    ("k", "num_sampled", "message"),
    [
        (30, None, "--top_k 30: of 60 users none has a click on an unseen item, and more than 30 unseen items"),
        (5, 28, "--top_k 5: .* and 28 unseen items beside clicks"),
    ],
)
def test_a_catalogue_that_is_too_small(catalogue, k, num_sampled, message):
    scores, clicked, seen = catalogue
    with pytest.raises(ValueError, match=message):
        catalogue_metrics(lambda users: scores[users], csr_array(clicked), csr_array(seen), k, num_sampled)


@pytest.mark.parametrize(
    ("scores", "clicks", "users", "message"),
    [
        ([0.1, 0.2, 0.3], [0, 1, 0], [0, 0, 1], "--top_k 2 needs users with more than 2 rows.* with a click are 2$"),
        ([0.1, 0.2, 0.3], [0, 0, 0], [0, 0, 0], "no user has a click"),
        ([0.1, 0.2, 0.3], [0, 1, 0], [-1, -1, -1], "no row has a user"),
        ([0.1, math.nan, 0.3], [0, 1, 0], [0, 0, 0], "the score of row 1 is NaN"),
    ],
)
def test_what_cannot_be_ranked_is_said(scores, clicks, users, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(np.array(scores), np.array(clicks), np.array(users), 2)
