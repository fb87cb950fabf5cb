"""Other libraries in `benchmarks/compare.py`: the shared loop, and where a library is installed, that its models learn
from our rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from flip_ctr import FlipField
from flip_ctr.benchmarks.comparison import peers_deepctr, peers_fuxictr, peers_past, peers_trees
from flip_ctr.benchmarks.comparison.peers import Network, NetworkArguments, PeerData, train_network
from flip_ctr.benchmarks.comparison.peers_histories import HistoryData
from flip_ctr.benchmarks.comparison.predictions import Predictions
from flip_ctr.data.datasets.synthetic import CatalogueSettings, generate_catalogue, write_catalogue
from flip_ctr.data.prepare.dataset_folder import read_split, shard_path
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema

NETWORK = {
    "id_embedding_size": 8,
    "id_hidden_dims": [16, 8],
    "per_device_train_batch_size": 128,
    "num_train_epochs": 4,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """A small catalogue, split at random."""
    return small_catalogue(tmp_path_factory)


@pytest.fixture(scope="module")
def catalogue_with_histories(tmp_path_factory):
    return small_catalogue(tmp_path_factory, history=6)


def small_catalogue(tmp_path_factory, **options):
    settings = CatalogueSettings(users=60, items=80, rows=3000)
    folder = tmp_path_factory.mktemp("catalogue") / "data"
    return write_catalogue(folder, generate_catalogue(settings), "random", settings, 1, **options)


class LogisticRegression(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum([one.size for one in data.columns])[:-1]]))
        self.table = torch.nn.Embedding(sum(one.size for one in data.columns), 1)
        torch.nn.init.zeros_(self.table.weight)

    def forward(self, ids):
        return self.table(ids + self.offsets).sum((1, 2))


def test_the_loop_keeps_the_best_weights_and_stops(catalogue, tmp_path, capsys):
    data = PeerData(str(catalogue))
    args = NetworkArguments(
        dataset_dir=str(catalogue), output_dir="", **NETWORK | {"num_train_epochs": 40, "learning_rate": 0.3}
    )
    torch.manual_seed(0)
    model = LogisticRegression(data)
    costs = train_network(args, tmp_path, data, Network(model, model, lambda: torch.zeros(())))
    criteria = [entry["auc"] - entry["logloss"] for entry in costs["history"]]
    assert costs["best_epoch"] == 1 + int(np.argmax(criteria)) == len(criteria) - args.early_stopping_patience < 37
    saved = Predictions.load(tmp_path, "validation")
    assert saved.criterion() == pytest.approx(max(criteria), abs=1e-6)
    test, table = Predictions.load(tmp_path, "test"), read_split(catalogue, "test")
    assert (test.labels == table["label"].to_numpy()).all() and test.metrics()["auc"] > 0.6
    same_user = table["user_id"].to_numpy()[:, None] == table["user_id"].to_numpy()
    assert (same_user == (test.users[:, None] == test.users)).all()


def test_peers_see_what_the_id_side_has(dataset_dir):
    data = PeerData(str(dataset_dir))
    assert [one.name for one in data.columns][:1] == ["user_id"] and {one.name for one in data.columns} >= {
        "movie_id",
        "title",
        "genre",
    }
    genre = next(one for one in data.columns if one.name == "genre")
    assert genre.field.is_multi_valued and genre.stop - genre.start == genre.field.max_values
    ids = data.ids("train")
    assert all(ids[:, one.start : one.stop].max() < one.size for one in data.columns)


def test_peers_read_the_histories_and_texts_that_our_models_read(catalogue_with_histories, plm):
    data = HistoryData(str(catalogue_with_histories), str(plm))
    slots = data.columns[-1].stop
    for split in SPLITS:
        table = read_split(catalogue_with_histories, split)
        ids = torch.from_numpy(data.ids(split))
        history = data.history(ids)
        key = data.item_columns[0]
        assert key.name == "item_id" and key.start == 0
        number_of = {}
        for row, entries in enumerate(table["history"].to_pylist()):
            outcomes = [1 + entry["clicked"] for entry in entries]
            assert history.outcomes[row].tolist() == outcomes + [0] * (6 - len(outcomes))
            for entry, item in zip(entries, history.items[row].tolist()):
                assert number_of.setdefault(entry["item_id"], item) == item
        assert len(set(number_of.values())) == len(number_of)
        own = next(one for one in data.columns if one.name == "item_id")
        for row, item in enumerate(table["item_id"].to_pylist()):
            assert history.target_ids[row, 0] == ids[row, own.start]
            number = number_of.get(item)
            if number is not None:  # the item of a row is that of an entry, ids and text
                assert torch.equal(data.item_ids[number], history.target_ids[row])
                assert torch.equal(data.texts[data.item_texts[number]], history.target_texts[row])
        assert ids.shape[1] == slots + 2 * 6 + 1
    assert len(data.texts) == len(data.texts.unique(dim=0)) > 10
    torch.testing.assert_close(data.texts.mean(1), torch.zeros(len(data.texts)), atol=1e-5, rtol=0)
    assert HistoryData(str(catalogue_with_histories)).texts is None


def test_a_peer_that_reads_histories_needs_some(catalogue):
    with pytest.raises(ValueError, match="the rows have no histories; make them with `prepare --history`"):
        HistoryData(str(catalogue))


@pytest.mark.parametrize("with_text", [False, True])
def test_din_learns_from_histories(catalogue_with_histories, plm, with_text, tmp_path):
    pytest.importorskip("fuxictr.pytorch.layers")
    options = NETWORK | {"model": "DIN", "model_name_or_path": str(plm) if with_text else None}
    args = peers_fuxictr.FuxiCTRArguments(dataset_dir=str(catalogue_with_histories), output_dir="", **options)
    costs = peers_fuxictr.run(args, tmp_path)
    assert Predictions.load(tmp_path, "test").metrics()["auc"] > 0.6 and costs["parameters"] > 0


@pytest.mark.parametrize("peer", ["network", "catboost"])
def test_rows_without_weight_teach_nothing(peer, tmp_path):
    """Every other row has the opposite label and the weight 0: unweighted, there is nothing to learn."""
    rows = [
        {"user_id": str(n % 7), "item_id": str(n % 2), "label": n % 2 ^ (n >= 400), "weight": float(n < 400)}
        for n in range(800)
    ]
    folder = tmp_path / "data"
    (folder / "data").mkdir(parents=True)
    fields = [FlipField("user_id", entity="user", key=True), FlipField("item_id", entity="item", key=True)]
    DatasetSchema("weighted", fields, user_column="user_id", weight_column="weight").save(folder)
    for split, part in (("train", rows), ("validation", rows[:400]), ("test", rows[:400])):
        pq.write_table(pa.Table.from_pylist(part), shard_path(folder, split))
    if peer == "catboost":
        pytest.importorskip("catboost")
        peers_trees.run(peers_trees.CatBoostArguments(dataset_dir=str(folder), output_dir="", iterations=40), tmp_path)
    else:
        data = PeerData(str(folder))
        model = LogisticRegression(data)
        args = NetworkArguments(dataset_dir=str(folder), output_dir="", **NETWORK | {"learning_rate": 0.1})
        train_network(args, tmp_path, data, Network(model, model, lambda: torch.zeros(())))
    test = Predictions.load(tmp_path, "test")
    assert ((test.logits > 0.3) == (test.labels == 1)).all() and ((test.logits < -0.3) == (test.labels == 0)).all()


DEEPCTR = {"init_std": 0.05}  # of clicks that only pairs of fields tell, its own 1e-4 learns nothing in so few steps
PEERS = {
    "fuxictr-dcnv2": ("fuxictr.pytorch.layers", peers_fuxictr.run, peers_fuxictr.FuxiCTRArguments, {"model": "DCNv2"}),
    "fuxictr-dcnv2-mixture": (
        "fuxictr.pytorch.layers",
        peers_fuxictr.run,
        peers_fuxictr.FuxiCTRArguments,
        {"use_low_rank_mixture": True},
    ),
    "fuxictr-finalmlp": (
        "fuxictr.pytorch.layers",
        peers_fuxictr.run,
        peers_fuxictr.FuxiCTRArguments,
        {"model": "FinalMLP", "num_heads": 2, "first_context": ["user_id"]},
    ),
    "deepctr-dcnmix": (
        "deepctr_torch",
        peers_deepctr.run,
        peers_deepctr.DeepCTRArguments,
        {"model": "DCNMix", **DEEPCTR},
    ),
    "deepctr-autoint": (
        "deepctr_torch",
        peers_deepctr.run,
        peers_deepctr.DeepCTRArguments,
        {"model": "AutoInt", **DEEPCTR},
    ),
    **{
        f"deepctr-{model.lower()}": (
            "deepctr_torch",
            peers_deepctr.run,
            peers_deepctr.DeepCTRArguments,
            {"model": model, **DEEPCTR},
        )
        for model in ("DeepFM", "WDL", "xDeepFM")
    },
    "catboost": ("catboost", peers_trees.run, peers_trees.CatBoostArguments, {"iterations": 40}),
}


@pytest.mark.parametrize("source", ["catalogue", "dataset_dir"])  # the second has lists of genres
@pytest.mark.parametrize("peer", PEERS)
def test_a_library_learns_from_our_rows(peer, source, request, tmp_path):
    library, run, arguments, options = PEERS[peer]
    peers_deepctr.without_version_check()
    pytest.importorskip(library)
    options = options if peer == "catboost" else NETWORK | options
    costs = run(arguments(dataset_dir=str(request.getfixturevalue(source)), output_dir="", **options), tmp_path)
    assert Predictions.load(tmp_path, "test").metrics()["auc"] > 0.6
    assert costs["parameters"] > 0 and costs["history"][-1]["seconds"] <= costs["train_seconds"]


# --- what the past alone says


def past_folder(folder, labels, split="cold_items"):
    """A dataset folder of 30 users and 60 items, the last ten of which are new; items have one of three kinds of text,
    and all rows of an item are in one split."""
    fields = [
        FlipField("user_id", "int", entity="user", key=True, sides=("id",)),
        FlipField("item_id", "int", entity="item", key=True, sides=("id",)),
        FlipField("title", entity="item"),
    ]
    (folder / "data").mkdir(parents=True)
    DatasetSchema("past", fields, user_column="user_id", protocol={"split": split}).save(folder)
    rows = [
        {"user_id": user, "item_id": item, "title": ["red shoe", "blue hat", "old book"][item % 3]}
        for item in range(60)
        for user in range(30)
    ]
    table = [row | {"label": int(labels(row["user_id"], row["item_id"]))} for row in rows]
    for name, part in (("train", table[:-300]), ("validation", table[-300:-150]), ("test", table[-150:])):
        pq.write_table(pa.Table.from_pylist(part), shard_path(folder, name))
    return str(folder)


def past_auc(folder, tmp_path, **options) -> float:
    costs = peers_past.run(peers_past.PastArguments(dataset_dir=folder, output_dir="", **options), tmp_path)
    assert costs["train_rows"] == 1500 and costs["history"][0]["auc"] > 0
    return Predictions.load(tmp_path, "test").metrics()["auc"]


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (["rate"], lambda user, item: (user * 7 + item * 11) % 30 < user),
        (["content"], lambda user, item: (item * 7 + user * 11) % 9 < 4 * (item % 3)),
        (["neighbours"], lambda user, item: (user + item) % 3 == 0),  # what a user likes is a kind of text
    ],
)
def test_each_number_of_the_past_finds_what_it_is_for(tmp_path, features, labels):
    others = ["content"] if features == ["rate"] else ["rate"]
    folder = past_folder(tmp_path / "data", labels)
    assert past_auc(folder, tmp_path, features=features) > 0.8
    assert past_auc(folder, tmp_path, features=others) < past_auc(folder, tmp_path, features=features)
    assert past_auc(folder, tmp_path, features=features, model="trees") > 0.75


def test_labels_of_its_own_items_change_no_number_of_a_row(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (30, 60))
    folder = past_folder(tmp_path / "data", lambda user, item: labels[user, item])
    past = peers_past.Past(folder)
    args = peers_past.PastArguments(dataset_dir=folder, output_dir="")
    numbers = peers_past.Numbers(past, TfidfVectorizer().fit_transform(past.documents), args)
    for fold in range(peers_past.FOLDS):
        before = numbers.of("train", fold)
        mine = numbers.fold[past.items["train"]] == fold
        past.labels["train"] = np.where(mine, 1 - past.labels["train"], past.labels["train"])
        assert (numbers.of("train", fold) == before).all()


def with_past(folder, splits, history):
    """The rows of `past_folder` with histories: `splits` says which rows `(user, item)` are in a split, `history` what
    `(item, label)` a row of one has."""
    field = FlipField("history", "int", kind="history", entity="user", history_of="item_id", nullable=False)
    schema = DatasetSchema.load(folder)
    DatasetSchema("past", [*schema.fields, field], user_column="user_id", protocol=schema.protocol).save(folder)
    table = pa.concat_tables([read_split(folder, name) for name in SPLITS]).to_pylist()
    kind = pa.list_(pa.struct({"item_id": pa.int64(), "clicked": pa.int8()}))
    for name, is_in in splits.items():
        rows = [row for row in table if is_in(row["user_id"], row["item_id"])]
        entries = [history(name, row["user_id"], row["item_id"]) for row in rows]
        past = [[{"item_id": item, "clicked": clicked} for item, clicked in one] for one in entries]
        part = pa.Table.from_pylist(rows).append_column("history", pa.array(past, kind))
        pq.write_table(part, shard_path(folder, name))


def test_what_is_known_of_a_new_user_counts(tmp_path):
    """Half of the users click on all, half on nothing: of a held-out user three rows say which."""
    folder = tmp_path / "data"
    past_folder(folder, lambda user, item: user % 2, split="cold_users")
    splits = {
        "train": lambda user, item: user < 20,
        "validation": lambda user, item: 20 <= user < 25 and item > 1,
        "test": lambda user, item: user >= 25 and item > 1,
    }
    with_past(folder, splits, lambda name, user, item: [] if name == "train" else [(i, user % 2) for i in (0, 1, 99)])
    past = peers_past.Past(str(folder))
    assert set(past.known) == {"validation", "test"}  # item 99 has no row
    assert past.known["test"][:3].tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 0]]  # users 25 and 26
    for features in (["rate"], ["neighbours"]):
        peers_past.run(peers_past.PastArguments(dataset_dir=str(folder), output_dir="", features=features), tmp_path)
        assert Predictions.load(tmp_path, "test").metrics()["auc"] == 1


def test_in_a_split_by_time_a_row_knows_what_was_earlier(tmp_path):
    """A user clicks as in the row before, whatever the user did later or on the whole."""
    folder, labels = tmp_path / "data", np.random.default_rng(0).integers(0, 2, (30, 20)).repeat(3, axis=1)
    past_folder(folder, lambda user, item: labels[user, item], split="time")
    splits = {
        "train": lambda user, item: item < 48,
        "validation": lambda user, item: 48 <= item < 54,
        "test": lambda user, item: item >= 54,
    }
    with_past(folder, splits, lambda name, user, item: [(item - 1, labels[user, item - 1])] if item else [])
    args = peers_past.PastArguments(dataset_dir=str(folder), output_dir="", features=["rate"])
    past = peers_past.Past(str(folder))
    numbers = peers_past.Numbers(past, TfidfVectorizer().fit_transform(past.documents), args)
    expected = np.where(past.items["train"] == 0, 0, 1)
    assert (numbers.of("train")[:, 1] == np.log1p(expected)).all()  # a row before, or none
    for fold in range(peers_past.FOLDS):  # what a row knows of its user is its own, whichever rows are asked for
        mine = numbers.fold[past.items["train"]] == fold
        assert (numbers.of("train", fold)[:, 1] == np.log1p(expected[mine])).all()
    peers_past.run(args, tmp_path)
    found = Predictions.load(tmp_path, "test")
    assert found.metrics()["auc"] > 0.8
    peers_past.run(peers_past.PastArguments(dataset_dir=str(folder), output_dir="", features=["neighbours"]), tmp_path)
    assert Predictions.load(tmp_path, "test").metrics()["auc"] > 0.7  # the row before has the text of another kind


def test_what_the_past_needs_is_named(tmp_path):
    folder = past_folder(tmp_path / "data", lambda user, item: user % 2, split="time")
    with pytest.raises(ValueError, match="split 'time' is by time"):
        past_auc(folder, tmp_path)
    folder = past_folder(tmp_path / "other", lambda user, item: user % 2)
    with pytest.raises(ValueError, match="has none; make it with `prepare --statistics`"):
        past_auc(folder, tmp_path, features=["statistics"])
