"""Bad calls of the Python API with objects of every kind, and what their errors must name."""

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from bad_calls_setup import Call, call
from tiny import FIELDS, flip_config, sized_fields

from flip_ctr import (
    ClickThroughRatePipeline,
    FlipCollator,
    FlipConfig,
    FlipFeatureExtractor,
    FlipField,
    FlipForCTR,
    FlipForPretraining,
    FlipPretrainingCollator,
    FlipProcessor,
    register_id_tower,
)
from flip_ctr.data.batches.encoded import EncodedDataset


def field(*says: str, **values) -> Call:
    """A field with values that it cannot have."""
    return Call(f"FlipField({values})", lambda s: FlipField(**{"name": "f"} | values), says)


def config(*says: str, **values) -> Call:
    """A configuration with a setting that it cannot have."""
    return Call(f"FlipConfig({values})", lambda s: FlipConfig(**values), says)


FIELD_CALLS = [
    field("name of its column", name=""),
    field("name of its column", "None", name=None),
    field("name of its column", "3", name=3),
    field("'f'", "`type`", "'str'", "'string'", type="str"),
    field("'f'", "`type`", "None", type=None),
    field("'f'", "`kind`", "'list'", kind="list"),
    field("'f'", "`sides`", "'both'", sides=("both",)),
    field("'f'", "`sides`", "[]", sides=[]),
    field("'f'", "`sides`", "'id'", sides="id"),
    field("'f'", "`key`", "'yes'", key="yes"),
    field("'f'", "`max_tokens`", "0", max_tokens=0),
    field("'f'", "`max_tokens`", "2.5", max_tokens=2.5),
    field("'f'", "`max_values`", "True", max_values=True, kind="multi-valued"),
    field("'f'", "`max_values`", "multi-valued", max_values=3),
    field("'f'", "`separator`", "''", separator="", kind="multi-valued"),
    field("'f'", "`num_buckets`", "1", num_buckets=1, kind="numeric", type="int"),
    field("'f'", "`num_buckets`", "None", kind="hashed"),
    field("'f'", "`type`", "numeric", kind="numeric"),
    field("'f'", "`key`", "several values", kind="multi-valued", key=True),
    field("'f'", "`key`", "bucket", kind="numeric", type="int", key=True),
    field("'f'", "`bucketing`", "'even'", kind="numeric", type="int", bucketing="even"),
    field("'f'", "`history_of`", kind="history"),
    field("'f'", "`null_wording`", "''", null_wording=" "),
    field("'f'", "`nullable`", "None", nullable=None),
    field("'f'", "`vocab_size`", "-1", vocab_size=-1),
    call(
        "a field with a key that there is not", lambda s: FlipField.from_dict({"name": "a", "typ": "int"}), "'a'", "typ"
    ),
    call("a field without a name", lambda s: FlipField.from_dict({"type": "int"}), "name"),
    call("a field that is a number", lambda s: FlipField.from_dict(3), "3"),
    call("a field that is a list", lambda s: FlipField.from_dict(["a"]), "a"),
    call("a field that is text", lambda s: FlipField.from_dict("age"), "age"),
]

CONFIG_CALLS = [
    config("id_tower", "3", id_tower=3, fields=[]),
    config("id_embedding_size", "0", id_embedding_size=0),
    config("id_embedding_size", "'8'", id_embedding_size="8"),
    config("id_hidden_dims", "[]", id_hidden_dims=[]),
    config("id_hidden_dims", "300", id_hidden_dims=300),
    config("id_hidden_dims", "[0]", id_hidden_dims=[0]),
    config("id_dropout", "1.0", id_dropout=1.0),
    config("id_dropout", "-0.1", id_dropout=-0.1),
    config("id_dropout", "nan", id_dropout=float("nan")),
    config("id_tower_kwargs", "[3]", id_tower_kwargs=[3]),
    config("initializer_range", "0", initializer_range=0),
    config("prompts", "'user'", prompts="user"),
    config("text_pooling", "'max'", text_pooling="max"),
    config("mlm_weight", "-1", mlm_weight=-1),
    config("mtm_num_noise", "0", mtm_num_noise=0),
    config("mtm_noise", "'all'", mtm_noise="all"),
    config("icl_temperature", "0", icl_temperature=0.0),
    config("icl_similarity", "'l2'", icl_similarity="l2"),
    config("strategy", "'both'", strategy="both"),
    config("fusion", "'mean'", fusion="mean"),
    config("classifier_dropout", "2", classifier_dropout=2),
    config("projection_dim", "None", projection_dim=None),
    config("text_config", "model_type", text_config={"hidden_size": 8}),
    config("text_config", "'nothing'", text_config={"model_type": "nothing"}),
    config("a", "more than one field", fields=[{"name": "a"}, {"name": "a"}]),
    config("fields", "'age'", fields="age"),
    config("fields", "3", fields=3),
    config("fields", "3", fields=[3]),
    config("vocab_size", "'many'", fields=[{"name": "a", "vocab_size": "many"}]),
    config("history", "`history_of`", "'b'", fields=[{"name": "h", "kind": "history", "history_of": "b"}]),
]

MODEL_CALLS = [
    call("a model of no fields", lambda s: FlipForCTR(FlipConfig(strategy="id")), "fields"),
    call(
        "a model of a field without a vocabulary",
        lambda s: FlipForCTR(FlipConfig(fields=[{"name": "age"}], strategy="id")),
        "age",
        "vocab_size",
    ),
    call(
        "a tower that there is not",
        lambda s: FlipForCTR(FlipConfig(fields=sized_fields(9), strategy="id", id_tower="deepfn")),
        "id_tower",
        "deepfn",
        "deepfm",
    ),
    call(
        "a tower's argument that there is not",
        lambda s: FlipForCTR(FlipConfig(fields=sized_fields(9), strategy="id", id_tower_kwargs={"depth": 3})),
        "id_tower_kwargs",
        "depth",
        "low_rank",
    ),
    call(
        "a tower's argument of another type",
        lambda s: FlipForCTR(FlipConfig(fields=sized_fields(9), strategy="id", id_tower_kwargs={"low_rank": "x"})),
        "low_rank",
        "'x'",
    ),
    call(
        "a joint model without a PLM", lambda s: FlipForCTR(FlipConfig(fields=sized_fields(9))), "joint", "text_config"
    ),
    call(
        "pretraining without a PLM",
        lambda s: FlipForPretraining(FlipConfig(fields=sized_fields(9))),
        "text_config",
        "PLM",
    ),
    call(
        "pretraining without an objective",
        lambda s: FlipForPretraining(FlipConfig(fields=sized_fields(9), mlm_weight=0, mtm_weight=0, icl_weight=0)),
        "mlm_weight",
        "mtm_weight",
        "icl_weight",
    ),
    call(
        "pretraining with a frozen strategy",
        lambda s: FlipForPretraining(flip_config(sized_fields(9), s.text_config, strategy="frozen")),
        "strategy",
        "frozen",
    ),
    call("a model of a dict", lambda s: FlipForCTR({"fields": []}), "config", "FlipConfig"),
    call("forward without feature_ids", lambda s: s.model(), "`feature_ids`", "id"),
    call("forward of a joint model without input_ids", lambda s: s.joint_model(s.batch["feature_ids"]), "`input_ids`"),
    call(
        "feature_ids of too few slots",
        lambda s: s.model(s.batch["feature_ids"][:, :-1]),
        "feature_ids",
        "5",
        "6",
    ),
    call("feature_ids of one dimension", lambda s: s.model(s.batch["feature_ids"][0]), "feature_ids", "(6,)", "(B, 6)"),
    call("feature_ids of floats", lambda s: s.model(s.batch["feature_ids"].float()), "feature_ids", "float32"),
    call(
        "feature_ids beyond the vocabulary", lambda s: s.model(s.batch["feature_ids"] + 1000), "feature_ids", "column 0"
    ),
    call("feature_ids below 0", lambda s: s.model(s.batch["feature_ids"] - 100), "feature_ids", "column 0"),
    call("feature_ids as a list", lambda s: s.model([[4, 4, 4, 4, 4, 4]]), "feature_ids", "list"),
    call("feature_ids as an array", lambda s: s.model(np.full((1, 6), 4)), "feature_ids", "ndarray"),
    call(
        "labels of another length",
        lambda s: s.model(s.batch["feature_ids"], labels=torch.ones(3)),
        "labels",
        "(3,)",
        "(4,)",
    ),
    call(
        "labels of two columns",
        lambda s: s.model(s.batch["feature_ids"], labels=torch.ones(4, 2)),
        "labels",
        "(4, 2)",
        "(4,)",
    ),
    call(
        "labels above 1", lambda s: s.model(s.batch["feature_ids"], labels=torch.full((4,), 2)), "labels", "0", "1", "2"
    ),
    call(
        "labels that are NaN",
        lambda s: s.model(s.batch["feature_ids"], labels=torch.full((4,), float("nan"))),
        "labels",
        "nan",
    ),
    call(
        "weights of another length",
        lambda s: s.model(s.batch["feature_ids"], labels=torch.ones(4), sample_weight=torch.ones(5)),
        "sample_weight",
        "(5,)",
        "(4,)",
    ),
    call(
        "weights below 0",
        lambda s: s.model(s.batch["feature_ids"], labels=torch.ones(4), sample_weight=-torch.ones(4)),
        "sample_weight",
        "-1",
    ),
    call(
        "entity prompts for a model of row prompts",
        lambda s: s.joint_model(s.batch["feature_ids"], s.batch["input_ids"][:, None]),
        "prompts",
        "input_ids",
    ),
    call(
        "input_ids of one dimension",
        lambda s: s.joint_model(s.batch["feature_ids"], s.batch["input_ids"][0]),
        "input_ids",
        "(B, L)",
    ),
    call(
        "attention_mask of another shape",
        lambda s: s.joint_model(s.batch["feature_ids"], s.batch["input_ids"], s.batch["attention_mask"][:, :3]),
        "attention_mask",
    ),
    call(
        "input_ids of fewer rows",
        lambda s: s.joint_model(s.batch["feature_ids"], s.batch["input_ids"][:2]),
        "input_ids",
        "feature_ids",
    ),
    call(
        "input_ids beyond the PLM's vocabulary",
        lambda s: s.joint_model(s.batch["feature_ids"], s.batch["input_ids"] + 10_000),
        "input_ids",
    ),
    call(
        "features of a model without projections",
        lambda s: s.model.flip.get_id_features(s.batch["feature_ids"]),
        "icl_weight",
    ),
    call("a tower name that is taken", lambda s: register_id_tower("dcnv2")(type("Mine", (), {})), "dcnv2"),
    call("a tower that is no IdTower", lambda s: register_id_tower("mine")(type("Mine", (), {})), "Mine", "IdTower"),
    call(
        "growing to fewer values",
        lambda s: s.model.grow([one | {"vocab_size": 5} for one in s.processor.fields]),
        "user_id",
    ),
    call("growing to other fields", lambda s: s.model.grow(sized_fields(9, 9)), "f0"),
]

PROCESSOR_CALLS = [
    call("rows without a column", lambda s: s.processor(s.changed(age=...)), "'age'", "row 1"),
    call("columns without one", lambda s: s.processor({"user_id": [1]}), "'age'"),
    call("a frame without a column", lambda s: s.processor(pd.DataFrame(s.rows).drop(columns="age")), "'age'"),
    call("an Arrow table without a column", lambda s: s.processor(pa.Table.from_pylist(s.rows).drop(["age"])), "'age'"),
    call("text where a number is", lambda s: s.processor(s.changed(age="old")), "'age'", "row 1", "'old'"),
    call("a fraction where a whole number is", lambda s: s.processor(s.changed(age=2.5)), "'age'", "row 1", "2.5"),
    call(
        "infinity where a whole number is", lambda s: s.processor(s.changed(age=float("inf"))), "'age'", "row 1", "inf"
    ),
    call("a number where text is", lambda s: s.processor(s.changed(zip_code=2139)), "'zip_code'", "row 1", "2139"),
    call("a list where one value is", lambda s: s.processor(s.changed(zip_code=["a"])), "'zip_code'", "row 1"),
    call("a dict where one value is", lambda s: s.processor(s.changed(zip_code={"a": 1})), "'zip_code'", "row 1"),
    call("bytes where text is", lambda s: s.processor(s.changed(zip_code=b"02139")), "'zip_code'", "row 1", "bytes"),
    call("an object where text is", lambda s: s.processor(s.changed(zip_code=object())), "'zip_code'", "row 1"),
    call("an array where one value is", lambda s: s.processor(s.changed(age=np.arange(3))), "'age'", "row 1"),
    call("half of a character", lambda s: s.with_tokenizer(s.changed(title="a \ud83d")), "'title'", "row 1", "half"),
    call("a label of 2", lambda s: s.processor([one | {"label": 2} for one in s.rows]), "label", "row 0", "2"),
    call(
        "a label of text", lambda s: s.processor([one | {"label": "yes"} for one in s.rows]), "label", "row 0", "'yes'"
    ),
    call("a label that is null", lambda s: s.processor([one | {"label": None} for one in s.rows]), "label", "row 0"),
    call(
        "columns of two lengths",
        lambda s: s.processor({"age": [1, 2]} | {k: [v] for k, v in s.row.items() if k != "age"}),
        "age",
    ),
    call("rows that are None", lambda s: s.processor(None), "rows", "None"),
    call("rows that are a number", lambda s: s.processor(3), "rows", "int"),
    call("rows that are text", lambda s: s.processor("rows.csv"), "rows", "str"),
    call("rows that are lists", lambda s: s.processor([[1, 2]]), "rows", "list"),
    call("rows that are an array", lambda s: s.processor(np.ones((2, 6))), "rows", "ndarray"),
    call("rows of which one is None", lambda s: s.processor([s.row, None]), "row"),
    call(
        "a frame with a column twice",
        lambda s: s.processor(pd.concat([pd.DataFrame(s.rows), pd.DataFrame(s.rows)[["title"]]], axis=1)),
        "'title'",
        "more than one",
    ),
    call(
        "an Arrow table with a column twice",
        lambda s: s.processor(pa.Table.from_pylist(s.rows).append_column("title", pa.array(["a"] * 24))),
        "'title'",
        "more than one",
    ),
    call(
        "tensors of a kind that there is not",
        lambda s: s.processor(s.rows, return_tensors="tensorflow"),
        "tensorflow",
        "pt",
    ),
    call("a dataset without the fields", lambda s: FlipProcessor.from_dataset([{"a": 1}], FIELDS), "'user_id'"),
    call("a dataset of no rows", lambda s: FlipProcessor.from_dataset([], FIELDS), "rows"),
    call("no fields", lambda s: FlipProcessor.from_dataset(s.rows, []), "fields"),
    call("fields that are None", lambda s: FlipProcessor.from_dataset(s.rows, None), "fields"),
    call(
        "a field twice", lambda s: FlipProcessor.from_dataset(s.rows, [*FIELDS, FIELDS[0]]), "user_id", "more than one"
    ),
    call(
        "a tokenizer by its name",
        lambda s: FlipProcessor.from_dataset(s.rows, FIELDS, "bert-base"),
        "tokenizer",
        "str",
    ),
    call(
        "prompts that are too long",
        lambda s: FlipProcessor.from_dataset(s.rows, FIELDS, s.with_tokenizer.tokenizer, max_length=10),
        "10 tokens",
        "--prompt_fields",
    ),
    call(
        "prompts of a kind that there is not",
        lambda s: FlipProcessor.from_dataset(s.rows, FIELDS, prompts="user"),
        "prompts",
        "'user'",
    ),
    call(
        "a frequency below 1",
        lambda s: FlipProcessor.from_dataset(s.rows, FIELDS, min_frequency=0),
        "min_frequency",
        "0",
    ),
    call(
        "hashing without a user's field",
        lambda s: FlipProcessor.from_dataset(s.rows, FIELDS[3:], hash_user_values=True),
        "user",
    ),
    call("an option that there is not", lambda s: FlipProcessor.from_dataset(s.rows, FIELDS, min_freq=2), "min_freq"),
    call("a processor of a dict", lambda s: FlipProcessor({"fields": []}), "feature_extractor", "dict"),
    call(
        "vocabularies for other fields",
        lambda s: FlipFeatureExtractor(FIELDS, vocabularies=[["a"]]),
        "1 vocabularies",
        "6",
    ),
    call(
        "boundaries of no numeric field",
        lambda s: FlipFeatureExtractor(FIELDS[:1], [["a"]], boundaries=[[1.0]]),
        "boundaries",
    ),
    call("counts that lack a field", lambda s: FlipFeatureExtractor.from_counts({}, FIELDS), "'user_id'", "counts"),
    call("growing by rows without a column", lambda s: s.processor.grow([{"user_id": 3}]), "'age'"),
    call("a collator of something else", lambda s: FlipCollator("p", seed=0), "processor"),
    call(
        "a mask share above 1",
        lambda s: FlipPretrainingCollator(s.with_tokenizer, seed=0, text_mask_ratio=2.0),
        "text_mask_ratio",
        "2",
    ),
    call(
        "a mask share of text",
        lambda s: FlipPretrainingCollator(s.with_tokenizer, seed=0, text_mask_ratio="x"),
        "text_mask_ratio",
        "x",
    ),
    call(
        "pretraining batches without a tokenizer", lambda s: FlipPretrainingCollator(s.processor, seed=0), "mask token"
    ),
    call(
        "a dataset of bad rows", lambda s: EncodedDataset(s.processor, s.changed(age="old")), "'age'", "row 1", "'old'"
    ),
]

PIPELINE_CALLS = [
    call("a row without a column", lambda s: s.pipeline({"user_id": 3}), "'age'"),
    call("an empty row", lambda s: s.pipeline({}), "user_id"),
    call("a row with text where a number is", lambda s: s.pipeline(s.row | {"age": "old"}), "'age'", "'old'"),
    call("a list with a row without a column", lambda s: s.pipeline(s.changed(zip_code=...)), "'zip_code'", "row 1"),
    call("a stream with a bad row", lambda s: list(s.pipeline(iter(s.changed(age="old")))), "'age'", "'old'"),
    call("a stream of numbers", lambda s: list(s.pipeline(iter([1, 2]))), "rows"),
    call("scores of None", lambda s: s.pipeline(None), "rows"),
    call("scores of text", lambda s: s.pipeline("rows.csv"), "rows", "str"),
    call("a batch size of 0", lambda s: s.pipeline(s.rows, batch_size=0), "`batch_size`", "0"),
    call("a batch size of text", lambda s: s.pipeline(s.rows, batch_size="8"), "`batch_size`", "'8'"),
    call("a batch size that is a fraction", lambda s: s.pipeline(s.rows, batch_size=1.5), "`batch_size`", "1.5"),
    call("an argument that there is not", lambda s: s.pipeline(s.rows, top_k=3), "top_k", "batch_size"),
    call(
        "a pipeline's argument that there is not",
        lambda s: ClickThroughRatePipeline(s.model, processor=s.processor, top_k=1),
        "top_k",
    ),
    call("a pipeline without a processor", lambda s: ClickThroughRatePipeline(s.model)(s.rows), "processor"),
]

CALLS = [*FIELD_CALLS, *CONFIG_CALLS, *MODEL_CALLS, *PROCESSOR_CALLS, *PIPELINE_CALLS]
