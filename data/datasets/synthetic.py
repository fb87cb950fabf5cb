# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A generated catalogue with clicks from a known model, and a small BERT that knows its words: the offline demo's data.

An item has a *theme* that no column names. Its title is made of the theme's words, and its genre hints at the theme
weakly, or is missing. A click depends on what people of this gender, age and occupation think of the theme (which the
text tells, also of an item never seen before), and on the item's quality and the user's own taste (which only ids
tell).
"""

from dataclasses import dataclass
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import torch
import yaml
from scipy.special import expit
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    get_linear_schedule_with_warmup,
)

from flip_ctr.data.prepare.dataset_folder import write_dataset_folder
from flip_ctr.data.prepare.histories import (
    HISTORY,
    History,
    history_lengths,
    history_rule,
    items_of,
    read_history,
    with_histories,
)
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.data.prepare.split_statistics import check_splits, split_statistics
from flip_ctr.data.prepare.splits import RATIOS, SPLIT_RULES, parts, split_table, with_split
from flip_ctr.data.prepare.support_rows import with_support
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.modeling_flip.fields_flip import FlipField

DATASET = "demo"

THEMES = {
    "space": "comet orbit nebula galaxy rocket asteroid starship gravity "
    "eclipse saturn astronaut meteor alien lunar stellar cosmic",
    "crime": "detective murder alibi heist witness verdict gangster suspect "
    "burglar convict forger informant ransom jury blackmail fugitive",
    "romance": "kiss wedding sweetheart bride valentine serenade embrace darling "
    "courtship honeymoon proposal bouquet tenderness devotion lovers blushing",
    "western": "saddle outlaw prairie cowboy canyon frontier saloon stagecoach "
    "lasso ranch mustang bandit gulch rodeo sheriff holster",
    "horror": "vampire crypt ghoul curse coffin werewolf phantom demon "
    "graveyard haunted zombie mummy seance banshee tomb witchcraft",
    "war": "battalion trench soldier siege regiment barracks infantry general "
    "ambush bunker artillery cavalry commander sniper armistice grenade",
    "music": "ballad orchestra drummer melody guitar chorus trumpet quartet "
    "violin rhythm concerto jazz pianist tenor encore accordion",
    "sea": "harbor sailor lighthouse whale anchor schooner mermaid tide "
    "captain pirate reef galleon lagoon compass shipwreck mariner",
}
TITLES = (
    "The {a} and the {b}",
    "{a} of the {b}",
    "The Last {a} of {b}",
    "Return of the {b} {a}",
    "{a}, {b} and Me",
    "My {a} {b}",
    "This {a} in Summer: {b}",
    "The Silent {a} {b}",
    "One More {a} {b}",
    "Beyond the {a} {b}",
    "The Year of {a} and {b}",
    "{a} {b} Forever",
)
# a genre is shared by several themes, so that it tells little of any
GENRES = ("Drama", "Comedy", "Adventure", "Documentary", "Thriller")
GENDERS = ("female", "male")
AGES = (18, 25, 35, 50)  # youngest of the group, as MovieLens-1M codes ages
OCCUPATIONS = ("student", "engineer", "teacher", "artist", "lawyer", "farmer")


@dataclass(frozen=True)
class CatalogueSettings:
    """Size of the generated catalogue, and the strength of what makes a click, in log odds.

    Args:
        users, items, rows: how many; a (user, item) pair occurs once.
        group_taste: what gender, age and occupation think of a theme: known from the text.
        user_taste: what this user thinks of a theme beyond that: known from the user id and the item's theme.
        pair_taste: how this user and this item go together whatever the theme: known from both ids.
        quality: how good the item is: known from the item id.
        generosity: how readily this user clicks: known from the user id.
        genre_share: share of items with a genre.
    """

    users: int = 300
    items: int = 500
    rows: int = 12_000
    group_taste: float = 1.8
    user_taste: float = 0.6
    pair_taste: float = 0.6
    quality: float = 1.0
    generosity: float = 0.8
    genre_share: float = 0.7


def theme_words() -> list[list[str]]:
    return [words.split() for words in THEMES.values()]


def make_title(theme: int, generator: np.random.Generator) -> str:
    """A title of two of the theme's words, some that say nothing, and a year."""
    first, second = generator.choice(theme_words()[theme], 2, replace=False)
    pattern = TITLES[generator.integers(len(TITLES))]
    return f"{pattern.format(a=first.capitalize(), b=second.capitalize())} ({generator.integers(1960, 2010)})"


def generate_catalogue(settings: CatalogueSettings = CatalogueSettings(), seed: int = 42) -> pa.Table:
    """The clicks as one table, a pure function of settings and seed.

    Returns:
        `user_id, gender, age, occupation, item_id, title, genre, label`, and `theme`, which no model may see.

    Raises:
        ValueError: more rows than pairs of users and items.
    """
    users, items, rows = settings.users, settings.items, settings.rows
    if rows > users * items:
        raise ValueError(
            f"{rows:,} rows need as many pairs; {users:,} users and {items:,} items have {users * items:,}."
        )
    generator = np.random.default_rng(seed)
    themes, theme_count = generator.integers(len(THEMES), size=items), len(THEMES)

    # items: a title of its own each, and a genre that prefers some themes
    titles: dict[str, None] = {}
    for theme in themes:
        title = make_title(theme, generator)
        while title in titles:
            title = make_title(theme, generator)
        titles[title] = None
    genre_given_theme = generator.dirichlet(np.full(len(GENRES), 2.0), size=theme_count).cumsum(1)
    genres = (generator.random(items)[:, None] > genre_given_theme[themes]).sum(1).clip(max=len(GENRES) - 1)
    no_genre = generator.random(items) > settings.genre_share
    quality = settings.quality * generator.normal(size=items)

    # users: a group's taste is the sum of what its gender, age and occupation think of each theme
    traits = {"gender": GENDERS, "age": AGES, "occupation": OCCUPATIONS}
    codes = {name: generator.integers(len(values), size=users) for name, values in traits.items()}
    opinions = {name: generator.normal(size=(len(values), theme_count)) for name, values in traits.items()}
    group_taste = sum(opinions[name][codes[name]] for name in traits) / np.sqrt(len(traits))
    taste = settings.group_taste * group_taste + settings.user_taste * generator.normal(size=(users, theme_count))
    generosity = settings.generosity * generator.normal(size=users)

    # pairs: some users and items are more active than others; log weights plus Gumbel noise draw without repetition
    activity = generator.normal(scale=0.5, size=(users, 1)) + generator.normal(scale=0.5, size=(1, items))
    noisy = (activity + generator.gumbel(size=(users, items))).ravel()
    pairs = np.argpartition(-noisy, rows - 1)[:rows]
    user, item = np.divmod(generator.permutation(np.sort(pairs)), items)
    size = 2
    pair = (generator.normal(size=(users, size))[user] * generator.normal(size=(items, size))[item]).sum(1) / np.sqrt(
        size
    )
    log_odds = taste[user, themes[item]] + quality[item] + generosity[user] + settings.pair_taste * pair
    label = generator.random(rows) < expit(log_odds)

    def take(values, indices, nulls=None) -> pa.Array:
        return pa.array(np.array(values, dtype=object)[indices], mask=nulls)

    return pa.table(
        {
            "user_id": user + 1,
            **{name: take(values, codes[name][user]) for name, values in traits.items()},
            "item_id": item + 1,
            "title": take(list(titles), item),
            "genre": take(GENRES, genres[item], no_genre[item]),
            "label": label.astype(np.int8),
            "theme": take(list(THEMES), themes[item]),
        }
    )


def catalogue_fields() -> list[FlipField]:
    """The fields as MovieLens has them: ids on the ID side only, all else in both views."""
    return [
        FlipField("user_id", "int", entity="user", key=True, sides=("id",)),
        FlipField("gender", entity="user", max_tokens=4),
        FlipField("age", "int", entity="user", max_tokens=4),
        FlipField("occupation", entity="user", max_tokens=4),
        FlipField("item_id", "int", entity="item", key=True, sides=("id",)),
        FlipField("title", entity="item", key=True, max_tokens=24),
        FlipField("genre", entity="item", max_tokens=4),
    ]


KEYS = {"user": "user_id", "item": "item_id"}


def write_catalogue(
    output_dir: str | Path,
    table: pa.Table,
    split: str,
    settings: CatalogueSettings,
    seed: int,
    history: int | None = None,
) -> Path:
    """Writes the catalogue as a dataset folder with that split (see `SPLIT_RULES`) and returns its path.

    Args:
        history: most entries of a row's history; no histories are added when `None`.
    """
    table, fields = table.drop_columns("theme"), catalogue_fields()
    past = read_history(history, 0, fields, split=split, columns=table.column_names, **KEYS)
    placed, items = _placed(table, split, seed, past)
    protocol = {
        "label_rule": "a draw from the generator's click probability",
        "generator": vars(settings),
        "seed": seed,
        "split": split,
        "split_rule": SPLIT_RULES[split].format(row_key="|".join(KEYS.values()), time="", **KEYS),
        "split_seed": seed,
        "ratios": list(RATIOS),
        **({"history": history_rule(split, past)} if past else {}),
    }
    fields += [past.field] if past else []
    schema = DatasetSchema(DATASET, fields, user_column="user_id", protocol=protocol)
    report = {
        "dataset": DATASET,
        "protocol": protocol,
        "rows_kept": len(table),
        "splits": split_statistics(ibis.memtable(placed), schema.fields),
        **({"history_lengths": history_lengths(ibis.memtable(placed))} if past else {}),
    }
    check_splits(report["splits"], schema.fields, split, protocol["label_rule"], "a larger catalogue")
    return write_dataset_folder(output_dir, parts(placed), schema, report, catalogue_card(schema, report), items=items)


def _placed(table: pa.Table, split: str, seed: int, past: History | None) -> tuple[pa.Table, pa.Table | None]:
    """The rows with `_split`, and where there are histories with `history`; and the items then."""
    row_key = tuple(KEYS.values())
    if past is None:
        return split_table(table, split, seed, row_key=row_key, **KEYS), None
    numbered = ibis.memtable(table.append_column("_row", pa.array(range(len(table)), pa.int64())))
    rows = with_split(numbered, split, seed, RATIOS, row_key=row_key, order="_row", **KEYS)
    rows = with_histories(with_support(rows, 0, **KEYS, time=None), past, split=split, seed=seed, label="label")
    added = rows.select("_row", HISTORY, "_split").order_by("_row").to_pyarrow()
    of_history = added[HISTORY].cast(past.arrow_type(table.schema.field(past.item).type))
    placed = table.add_column(len(table.column_names) - 1, HISTORY, of_history)
    return placed.append_column("_split", added["_split"]), items_of(numbered, past).to_pyarrow()


def catalogue_card(schema: DatasetSchema, report: dict) -> str:
    """The dataset card; for its front matter see `dataset_card`."""
    front_matter = {
        "pretty_name": "Generated catalogue of the flip-ctr demo",
        "license": "cc0-1.0",
        "task_categories": ["tabular-classification"],
        "tags": ["click-through-rate", "synthetic", "flip-ctr"],
    }
    rule = schema.protocol.get("history")
    history = f"* **Histories** (`{HISTORY}`): {rule}.\n" if rule else ""
    rows = [
        [name, one["rows"], one["clicks"], one["fields"]["user_id"]["values"], one["fields"]["item_id"]["values"]]
        for name, one in report["splits"].items()
    ]
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False)}---

# Generated catalogue of the flip-ctr demo

No real user, item or click: made by `flip_ctr.data.datasets.synthetic` from seed {schema.protocol["seed"]}. Titles
tell an item's
theme, which decides much of what people like; the rest only ids can tell.

* **Label** `{schema.label}`: {schema.protocol["label_rule"]}.
* **Split** `{schema.protocol["split"]}`: {schema.protocol["split_rule"]}.
{history}
{markdown_table(["split", "rows", "clicks", "users", "items"], rows)}
"""


# --- a small PLM


def generate_texts(count: int = 6000, seed: int = 0) -> list[str]:
    """Text in which the words of a theme go together, none of it from a catalogue and none about clicks: lists of
    words, titles of other works, and descriptions of people."""
    generator = np.random.default_rng([seed, count])
    words, texts = theme_words(), []
    for number in range(count):
        theme = generator.integers(len(words))
        if number % 3 == 0:
            texts.append(f"title is {make_title(theme, generator)} ; genre is {generator.choice([*GENRES, 'unknown'])}")
        elif number % 30 == 1:
            traits = [generator.choice(values) for values in (GENDERS, AGES, OCCUPATIONS)]
            texts.append("gender is {} ; age is {} ; occupation is {}".format(*traits))
        else:
            texts.append(" ".join(generator.choice(words[theme], 8, replace=False)))
    return texts


@dataclass(frozen=True)
class TinyPlmSettings:
    """Size of the small BERT, and of its masked-language-model training (`steps` of `batch_size` texts)."""

    hidden_size: int = 48
    layers: int = 2
    heads: int = 4
    max_positions: int = 128
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-3


def make_tokenizer(texts: list[str], max_length: int) -> BertTokenizer:
    """A WordPiece tokenizer whose vocabulary is every word of the texts, and single characters that spell any other.

    Not by the trainer of `tokenizers`, which breaks ties differently in every process.
    """
    tokenizer = BertTokenizer()
    normalizer, splitter = tokenizer.backend_tokenizer.normalizer, tokenizer.backend_tokenizer.pre_tokenizer
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = {character for word in words for character in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    specials = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    pieces = [*specials, *sorted(words | characters), *sorted(f"##{one}" for one in characters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocabulary, model_max_length=max_length)


def make_tiny_plm(
    folder: str | Path, texts: list[str], seed: int = 42, settings: TinyPlmSettings = TinyPlmSettings()
) -> Path:
    """Trains a WordPiece tokenizer and a small BERT on the texts, saves both and returns the folder.

    `AutoTokenizer`, `AutoModel` and `AutoModelForMaskedLM` load it. Global random states are left as they were.
    """
    tokenizer = make_tokenizer(texts, settings.max_positions)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=settings.max_positions,
        initializer_range=settings.hidden_size**-0.5,  # 0.02 is for 768: so narrow a BERT would not leave word counts
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=seed)
    encoded, order = tokenizer(texts)["input_ids"], np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        schedule = get_linear_schedule_with_warmup(optimizer, settings.steps // 10, settings.steps)
        for _ in range(settings.steps):
            picked = order.integers(len(encoded), size=settings.batch_size)
            loss = model(**mask([{"input_ids": encoded[row]} for row in picked])).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
