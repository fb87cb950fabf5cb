"""Tiny tokenizers, language models, rows and raw files, made on the spot for the tests."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaTokenizer,
    ModernBertConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    RobertaConfig,
    RobertaTokenizer,
)

from flip_ctr import FlipConfig, FlipField
from flip_ctr.data.batches.collators import FlipPretrainingCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.prepare.dataset_folder import read_split, shard_path
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema
from flip_ctr.train import finetune as finetune_recipe
from flip_ctr.train import predict as predict_recipe
from flip_ctr.train import pretrain as pretrain_recipe

CORPUS = [
    "gender is male ; age is 24 ; occupation is writer ; zip code is 02139 ; title is Titanic (1997)",
    "gender is female ; age is 31 ; title is Cité des enfants perdus, La (1995) ; genre is Drama, Romance",
    "title is unknown ; genre is Animation, Children's, Comedy ; film, thriller, horror, action and crime",
]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


# --- tokenizers


# WordPiece and Unigram vocabularies by hand: the trainers of `tokenizers` break ties differently in each process


def wordpiece() -> BertTokenizer:
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in CORPUS for word, _ in splitter.pre_tokenize_str(text.lower())})
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    # every second word is whole, the others come in pieces
    pieces = [
        *BERT_SPECIAL,
        *letters,
        *("##" + one for one in letters),
        *(word for word in words[::2] if len(word) > 1),
    ]
    return BertTokenizer({piece: number for number, piece in enumerate(pieces)}, model_max_length=320)


def _byte_bpe(special: list[str]) -> dict:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False, initial_alphabet=alphabet),
    )
    model = json.loads(trained.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def byte_bpe() -> RobertaTokenizer:
    return RobertaTokenizer(**_byte_bpe(ROBERTA_SPECIAL), model_max_length=512)


def gpt2() -> GPT2Tokenizer:
    """Byte-level BPE without a mask token."""
    return GPT2Tokenizer(**_byte_bpe(["<|endoftext|>"]), pad_token="<|endoftext|>", model_max_length=512)


def unigram() -> DebertaV2Tokenizer:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]  # as in DeBERTa-v3, whose [MASK] is an added token
    words = sorted({"▁" + word for text in CORPUS for word in text.split()})
    letters = sorted(set("".join(words)))
    pieces = [(piece, 0.0) for piece in special] + [(letter, -6.0) for letter in letters]
    return DebertaV2Tokenizer(vocab=pieces + [(word, -5.0) for word in words[::2]], model_max_length=512)


def joining() -> BertTokenizer:
    """A tokenizer whose pieces span spaces, so that prompts do not compose."""
    tokenizer = wordpiece()
    trained = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=BERT_SPECIAL, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)  # no pre-tokenizer: nothing stops a merge at a space
    tokenizer._tokenizer.model = trained.model
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"$^"), "isolated")
    return tokenizer


# those of decoders: nothing stands behind a prompt, and before it at most one token


def qwen() -> Qwen2Tokenizer:
    """Byte-level BPE without special tokens around a text, without a mask token, and here without padding."""
    tokenizer = Qwen2Tokenizer(**_byte_bpe(["<|endoftext|>"]), model_max_length=512)
    tokenizer.pad_token = None
    return tokenizer


def starting(tokenizer):
    """The tokenizer with its BOS before each text, as Llama's and Gemma's files have it."""
    bos = tokenizer.bos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def llama3() -> Qwen2Tokenizer:
    """Byte-level BPE with a BOS."""
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer = Qwen2Tokenizer(
        **_byte_bpe(special), bos_token=special[0], eos_token=special[1], unk_token=None, model_max_length=512
    )
    tokenizer.pad_token = None
    return starting(tokenizer)


def _spaces_bpe(special: list[str]) -> dict:
    """BPE of SentencePiece: a space is a letter, and what the vocabulary lacks becomes bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    special = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def llama2() -> LlamaTokenizer:
    return starting(LlamaTokenizer(**_spaces_bpe(["<unk>", "<s>", "</s>"]), model_max_length=512))


def llama2_legacy() -> LlamaTokenizer:
    """As old files have it: a space of the tokenizer's own before each text, also where there is one."""
    tokenizer = llama2()
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer._tokenizer.normalizer, tokenizer._tokenizer.pre_tokenizer = normalizers.Sequence(spaces), None
    return tokenizer


def gemma() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return starting(GemmaTokenizer(**_spaces_bpe(special), model_max_length=512))


TOKENIZERS = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "unigram": unigram,
    "qwen": qwen,
    "llama3": llama3,
    "llama2": llama2,
    "llama2_legacy": llama2_legacy,
    "gemma": gemma,
}


# --- language models

VOCAB = 60
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCAB,
}
_DEBERTA = _SIZES | {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_position_embeddings": 64,
}
PLM_CONFIGS = {
    "bert": lambda: BertConfig(**_SIZES, max_position_embeddings=64),
    "roberta": lambda: RobertaConfig(**_SIZES, max_position_embeddings=66, type_vocab_size=1),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64
    ),
    "deberta-v2": lambda: DebertaV2Config(**_DEBERTA),
    "deberta-v2-new-head": lambda: DebertaV2Config(**_DEBERTA, legacy=False),
    "modernbert": lambda: ModernBertConfig(
        **_SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, local_attention=8
    ),
    "electra": lambda: ElectraConfig(**_SIZES, embedding_size=8, max_position_embeddings=64),
}


_DECODER = _SIZES | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 320, "use_cache": True}
DECODER_CONFIGS = {
    "qwen3": lambda **sizes: Qwen3Config(**_DECODER | sizes),
    "llama": lambda **sizes: LlamaConfig(**_DECODER | sizes),
    "gemma3_text": lambda **sizes: Gemma3TextConfig(
        **_DECODER | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]} | sizes
    ),
}


def save_decoder(folder: Path, kind: str, tokenizer) -> Path:
    """A causal language model for a tokenizer as a checkpoint folder, as decoders are published."""
    torch.manual_seed(0)
    config = DECODER_CONFIGS[kind](vocab_size=len(tokenizer), initializer_range=0.1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_mlm(kind: str):
    """A masked language model of which every weight is random and large enough to matter."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(PLM_CONFIGS[kind]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.3
            parameter.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    return model


def save_bert(folder: Path, tokenizer) -> Path:
    """A BERT for a tokenizer, with its MLM head, as a checkpoint folder."""
    torch.manual_seed(0)
    sizes = _SIZES | {"vocab_size": len(tokenizer), "num_hidden_layers": 1}
    BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=320, initializer_range=0.1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- rows and batches

FIELDS = [
    FlipField("user_id", "int", entity="user", key=True, sides=("id",)),
    FlipField("age", "int", entity="user", max_tokens=4),
    FlipField("zip_code", entity="user", max_tokens=8),
    FlipField("movie_id", "int", entity="item", key=True, sides=("id",)),
    FlipField("title", entity="item", key=True, max_tokens=12),
    FlipField("genre", entity="item", max_tokens=12),
]
GENRES = ["Drama, Romance", "Comedy", "Animation, Children's, Comedy", None]


def toy_rows(count: int = 24) -> list[dict]:
    """Rows with a null (genre), leading zeros, and values of different lengths."""
    return [
        {
            "user_id": 1 + row % 7,
            "age": 20 + row % 7 * 3,
            "zip_code": f"0{row % 7}139",
            "movie_id": 100 + row % 9,
            "title": ["Titanic (1997)", "Cité des enfants perdus, La (1995)", "Film"][row % 9 % 3] + f" {row % 9}",
            "genre": GENRES[row % 9 % 4],
            "label": row * 5 % 3 % 2,
        }
        for row in range(count)
    ]


# a field of each kind, multi-valued ones by vocabulary and by buckets
KIND_FIELDS = [
    FlipField("user_id", "int", kind="hashed", num_buckets=16, entity="user", key=True, sides=("id",)),
    FlipField("history", "int", kind="multi-valued", max_values=3, separator=" ", entity="user", sides=("id",)),
    FlipField("age", "int", kind="numeric", num_buckets=4, entity="user", max_tokens=8, null_wording="not given"),
    FlipField("movie_id", "int", entity="item", key=True, sides=("id",)),
    FlipField("title", entity="item", max_tokens=12),
    FlipField("genres", kind="multi-valued", separator="|", max_values=3, entity="item", max_tokens=12),
    FlipField("tags", kind="multi-valued", num_buckets=8, max_values=2, entity="item", max_tokens=16),
    FlipField("price", "float", kind="numeric", bucketing="log", num_buckets=5, entity="item", max_tokens=8),
]
GENRE_LISTS = [
    ["Drama", "Romance"],
    ["Comedy"],
    [],
    ["Comedy", "Drama", "Crime", "Horror"],
    None,
    ["Drama", "Drama", "Thriller"],
]


def kind_rows(count: int = 24) -> list[dict]:
    """Rows with a field of each kind: lists that are null, empty, too long, or repeat a value, and numbers that are
    null."""
    return [
        {
            "user_id": 1 + row % 7,
            "history": [100 + one % 9 for one in range(row, row + row % 5)],
            "age": None if row % 7 == 3 else 20 + row % 7 * 3,
            "movie_id": 100 + row % 9,
            "title": f"Film {row % 9}",
            "genres": GENRE_LISTS[row % 9 % len(GENRE_LISTS)],
            "tags": [["night", "city"], ["rain"], None][row % 3],
            "price": [0.5, 3.25, 100.0, None, -2.0][row % 5],
            "label": row * 5 % 3 % 2,
        }
        for row in range(count)
    ]


def write_dataset(folder: Path, rows: list[dict], fields: list[FlipField]) -> Path:
    """A dataset folder by hand, with the same rows in each split."""
    (folder / "data").mkdir(parents=True)
    DatasetSchema("by-hand", fields, user_column="user_id").save(folder)
    for split in SPLITS:
        pq.write_table(pa.Table.from_pylist(rows), shard_path(folder, split))
    return folder


TOWER_KWARGS = {
    "lr": {},
    "fm": {},
    "afm": {"attention_size": 3},
    "widedeep": {},
    "deepfm": {},
    "pnn": {"products": "both"},
    "fibinet": {},
    "dcn": {},
    "dcnv2": {"low_rank": 3, "num_experts": 2},
    "gdcn": {"num_cross_layers": 2},
    "xdeepfm": {"cin_sizes": [5, 3]},
    "autoint": {"num_layers": 2, "attention_size": 4},
    "afn": {"num_neurons": 6},
    "masknet": {},
    "finalmlp": {"num_heads": 2, "gate_size": 5},
}
# a tower's other forms: name -> (tower, its arguments)
TOWER_FORMS = {
    "pnn, inner": ("pnn", {"products": "inner"}),
    "pnn, outer": ("pnn", {"products": "outer"}),
    "fibinet, all": ("fibinet", {"bilinear": "all", "reduction_ratio": 1}),
    "fibinet, each": ("fibinet", {"bilinear": "each"}),
    "dcnv2, full": ("dcnv2", {"full_matrix": True}),
    "dcnv2, stacked": ("dcnv2", {"low_rank": 3, "num_experts": 2, "structure": "stacked"}),
    "dcnv2, full, stacked": ("dcnv2", {"full_matrix": True, "structure": "stacked"}),
    "gdcn, stacked": ("gdcn", {"num_cross_layers": 2, "structure": "stacked"}),
    "autoint, no DNN": ("autoint", {"num_layers": 2, "attention_size": 4, "use_dnn": False}),
    "afn, batch norm": ("afn", {"num_neurons": 6, "norm": "batch"}),
    "afn+": ("afn", {"num_neurons": 6, "use_dnn": True}),
    "masknet, parallel": (
        "masknet",
        {"structure": "parallel", "num_blocks": 2, "block_size": 5, "reduction_ratio": 0.5},
    ),
    "finalmlp, contexts": (
        "finalmlp",
        {"first_context": ["f0"], "second_context": ["f2", "f1"], "second_hidden_dims": [6, 4]},
    ),
    "finalmlp, no selection": ("finalmlp", {"feature_selection": False}),
}
ALL_TOWERS = {name: (name, kwargs) for name, kwargs in TOWER_KWARGS.items()} | TOWER_FORMS


def flip_config(fields, text_config=None, id_tower: str = "dcnv2", **settings) -> FlipConfig:
    small = {"id_embedding_size": 4, "id_hidden_dims": [8], "projection_dim": 8, "mtm_embedding_size": 4}
    small |= {"id_tower_kwargs": TOWER_KWARGS.get(id_tower, {}), "projection_dropout": 0.0}
    return FlipConfig(text_config=text_config, fields=fields, id_tower=id_tower, **small | settings)


def sized_fields(*sizes: int) -> list[dict]:
    """Fields f0, f1, ... on both sides with so many feature ids."""
    return [{"name": f"f{number}", "vocab_size": size} for number, size in enumerate(sizes)]


def pretraining_batch(processor, rows, **masks) -> dict[str, torch.Tensor]:
    collator = FlipPretrainingCollator(processor, seed=0, **masks)
    return collator(EncodedDataset(processor, rows).__getitems__(range(len(rows))))


def shake(model: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Adds noise to all weights, so that zero or tiny initial values hide nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * scale
    return model


# --- raw MovieLens-100K files with a planted signal: people like the genre of their group

USERS, MOVIES = 60, 40
ML_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def write_raw_100k(folder: Path) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    users = [[u, 20 + u % 30, "MF"[u % 2], ["writer", "lawyer"][u // 2 % 2], f"0{u:04}"] for u in range(1, USERS + 1)]
    items = []
    for movie in range(1, MOVIES + 1):
        genre = [5, 8][movie % 2]
        title = f"{['Comedy', 'Drama'][movie % 2]} Number {movie} (19{50 + movie})"
        flags = [int(number == genre) for number in range(len(ML_GENRES))]
        items.append([movie, title, "01-Jan-1995", "", "http://us.imdb.com/", *flags])
    ratings = []
    for user in range(1, USERS + 1):
        for movie in range(1, MOVIES + 1):
            likes = (user + movie) % 2 == (random.random() < 0.1)
            ratings.append([user, movie, 3 if random.random() < 0.05 else 5 if likes else 1, 880000000 + user * movie])
    tables = {
        "u.genre": ([[name, number] for number, name in enumerate(ML_GENRES)], "|"),
        "u.item": (items, "|"),
        "u.user": (users, "|"),
        "u.data": (ratings, "\t"),
    }
    for name, (rows, separator) in tables.items():
        (folder / name).write_text("".join(separator.join(map(str, row)) + "\n" for row in rows), encoding="latin-1")
    return folder


# --- recipes

SMALL = {
    "id_embedding_size": 4,
    "id_hidden_dims": [8],
    "per_device_train_batch_size": 32,
    "max_train_samples": 96,
    "max_eval_samples": 64,
    "num_train_epochs": 2,
    "logging_steps": 2,
    "mixed_precision": "no",  # whatever the machine of the tests multiplies
}


def pretrain(dataset_dir, model, output_dir, **options) -> dict:
    options = {"id_tower_kwargs": '{"low_rank": 3, "num_experts": 2}', "projection_dim": 8} | SMALL | options
    options |= {
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        "model_name_or_path": model and str(model),
    }
    return pretrain_recipe.run(pretrain_recipe.PretrainArguments(**options))


def predicted(model, source, output=None, **options) -> pa.Table:
    """What `predict` writes for the rows of a file."""
    output = Path(source).parent / "predicted.parquet" if output is None else output
    predict_recipe.run(
        predict_recipe.PredictArguments(str(model), str(source), str(output), overwrite_output=True, **options)
    )
    return pq.read_table(output)


def finetune(dataset_dir, model, output_dir, **options) -> dict:
    """Around a PLM, from a checkpoint, or (`model` None) an ID-only model from scratch."""
    if model is None:
        options = {"id_tower_kwargs": '{"low_rank": 3, "num_experts": 2}', "strategy": "id"} | options
    options = SMALL | {"model_name_or_path": model and str(model)} | options
    options |= {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
    return finetune_recipe.run(finetune_recipe.FinetuneArguments(**options))


def changed_on_purpose(folder: Path, file: str) -> None:
    """Takes a file's line out of the checksums of a checkpoint."""
    for name in ("config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            values.get("sha256", {}).pop(file, None)
            (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def ml_rows(dataset_dir, count: int = 10) -> list[dict]:
    """Rows of the test split, without their labels."""
    rows = read_split(str(dataset_dir), "test").slice(0, count).to_pylist()
    return [{name: value for name, value in row.items() if name not in ("label", "timestamp")} for row in rows]


def reshard(dataset_dir, folder, files: int = 3, group_rows: int = 100):
    """A copy of a dataset folder with each split in so many files of small row groups."""
    shutil.copytree(dataset_dir, folder, ignore=shutil.ignore_patterns("data", ".cache"))
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        table = read_split(dataset_dir, split)
        bounds = np.linspace(0, len(table), files + 1).astype(int)
        for number, (start, stop) in enumerate(zip(bounds, bounds[1:])):
            path = folder / "data" / f"{split}-{number:05}-of-{files:05}.parquet"
            pq.write_table(table.slice(start, stop - start), path, row_group_size=group_rows)
    return folder
