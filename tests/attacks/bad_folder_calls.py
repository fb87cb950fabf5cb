"""Bad calls that read folders: datasets and checkpoints that are broken, and what their errors must name."""

import pyarrow as pa
from bad_calls_setup import call
from tiny import flip_config

from flip_ctr import FlipConfig, FlipForCTR, FlipForPretraining, FlipModel, FlipProcessor
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows

TRAIN, CONFIG, PROCESSOR = "data/train-00000-of-00001.parquet", "config.json", "processor_config.json"

FOLDER_CALLS = [
    call("a schema of no folder", lambda s: DatasetSchema.load(s.tmp / "nowhere"), "nowhere", "prepare"),
    call("a schema of an empty folder", lambda s: DatasetSchema.load(s.tmp), "schema.json", "prepare"),
    call(
        "a schema that is no JSON",
        lambda s: DatasetSchema.load(s.file("schema.json", "{").parent),
        "schema.json",
        "JSON",
    ),
    call(
        "a schema that is no text",
        lambda s: DatasetSchema.load(s.file("schema.json", b"\xff\xfe").parent),
        "schema.json",
        "UTF-8",
    ),
    call(
        "a schema that is a list",
        lambda s: DatasetSchema.load(s.file("schema.json", "[]").parent),
        "schema.json",
        "format_version",
    ),
    call(
        "a schema of another version",
        lambda s: DatasetSchema.load(s.copy("data", "schema.json", lambda values: values.update(format_version=99))),
        "schema.json",
        "99",
    ),
    call(
        "a schema with a key that there is not",
        lambda s: DatasetSchema.load(s.copy("data", "schema.json", lambda values: values.update(lable="x"))),
        "schema.json",
        "lable",
    ),
    call(
        "a schema without its fields",
        lambda s: DatasetSchema.load(s.copy("data", "schema.json", lambda values: values.pop("fields"))),
        "schema.json",
        "fields",
    ),
    call(
        "a schema whose fields are text",
        lambda s: DatasetSchema.load(s.copy("data", "schema.json", lambda values: values.update(fields="x"))),
        "schema.json",
        "fields",
    ),
    call(
        "a schema whose fields are null",
        lambda s: SplitRows(s.copy("data", "schema.json", lambda values: values.update(fields=None)), "train"),
        "schema.json",
        "fields",
    ),
    call(
        "a schema with a field of another type",
        lambda s: DatasetSchema.load(
            s.copy("data", "schema.json", lambda values: values["fields"][0].update(type="x"))
        ),
        "schema.json",
        "`type`",
        "'x'",
    ),
    call(
        "a schema whose label is a number",
        lambda s: SplitRows(s.copy("data", "schema.json", lambda values: values.update(label=3)), "train"),
        "schema.json",
        "label",
        "3",
    ),
    call(
        "a schema that names a column that is not there",
        lambda s: SplitRows(
            s.copy("data", "schema.json", lambda values: values["fields"][0].update(name="uid")), "train"
        ),
        "'uid'",
        "train",
    ),
    call("a split that there is not", lambda s: SplitRows(s.data, "dev"), "'dev'", "train"),
    call(
        "a split without a file",
        lambda s: SplitRows(s.copy("data", TRAIN, None), "train"),
        "'train'",
    ),
    call(
        "a split that is cut off",
        lambda s: SplitRows(s.copy("data", TRAIN, lambda data: data[:2000]), "train"),
        "'train'",
        "parquet",
    ),
    call(
        "a split with a damaged footer",
        lambda s: SplitRows(
            s.copy("data", TRAIN, lambda data: data[:-600] + bytes(500) + data[-100:]),
            "train",
        ),
        "'train'",
        "parquet",
    ),
    call(
        "a split with damaged rows",
        lambda s: list(
            SplitRows(
                s.copy("data", TRAIN, lambda data: data[:4] + bytes(3000) + data[3004:]),
                "train",
            ).parts()
        ),
        "'train'",
        "parquet",
    ),
    call(
        "a split of no rows", lambda s: SplitRows(s.split("test", lambda table: table[:0]), "test"), "'test'", "no rows"
    ),
    call(
        "a split without a column",
        lambda s: SplitRows(s.split("test", lambda table: table.drop(["age"])), "test"),
        "'test'",
        "'age'",
    ),
    call(
        "a split with a column of another type",
        lambda s: SplitRows(
            s.split("test", lambda table: table.set_column(0, table.column_names[0], pa.array([b"x"] * len(table)))),
            "test",
        ),
        "'test'",
        "binary",
    ),
]

LOADING_CALLS = [
    call("a model of no folder", lambda s: FlipForCTR.from_pretrained(str(s.tmp / "nowhere")), "nowhere"),
    call("a model of an empty folder", lambda s: FlipForCTR.from_pretrained(s.tmp), "model.safetensors"),
    call("a model of a file", lambda s: FlipForCTR.from_pretrained(s.file("m.bin", "x")), "m.bin"),
    call("a click model of a BERT", lambda s: FlipForCTR.from_pretrained(s.plm), "bert", "flip"),
    call("a configuration of a BERT", lambda s: FlipConfig.from_pretrained(s.plm), "bert", "flip"),
    call(
        "a configuration that is no JSON",
        lambda s: FlipConfig.from_pretrained(s.copy("id", CONFIG, lambda data: b"{")),
        "config.json",
    ),
    call(
        "a configuration that is a list",
        lambda s: FlipConfig.from_pretrained(s.copy("id", CONFIG, lambda data: b"[]")),
        "config.json",
    ),
    call(
        "a configuration with a setting that is not allowed",
        lambda s: FlipConfig.from_pretrained(s.copy("id", CONFIG, lambda values: values.update(id_dropout=7))),
        "id_dropout",
        "7",
    ),
    call(
        "a configuration whose fields are text",
        lambda s: FlipForCTR.from_pretrained(s.copy("id", CONFIG, lambda values: values.update(fields="x"))),
        "fields",
        "'x'",
    ),
    call(
        "a configuration with a tower that there is not",
        lambda s: FlipForCTR.from_pretrained(s.copy("id", CONFIG, lambda values: values.update(id_tower="mine"))),
        "id_tower",
        "mine",
    ),
    call(
        "a checkpoint without weights",
        lambda s: FlipForCTR.from_pretrained(s.copy("id", "model.safetensors", None)),
        "model.safetensors",
    ),
    call(
        "a checkpoint with empty weights",
        lambda s: FlipForCTR.from_pretrained(s.copy("id", "model.safetensors", lambda data: b"")),
        ".safetensors",
    ),
    call(
        "a checkpoint whose weights are cut off",
        lambda s: FlipForCTR.from_pretrained(s.copy("id", "model.safetensors", lambda data: data[:-100])),
        ".safetensors",
    ),
    call(
        "a checkpoint whose weights are something else",
        lambda s: FlipForCTR.from_pretrained(s.copy("id", "model.safetensors", lambda data: b"x" * 100)),
        ".safetensors",
    ),
    call(
        "a checkpoint whose tables are smaller",
        lambda s: FlipForCTR.from_pretrained(
            s.copy("id", CONFIG, lambda values: values["fields"][0].update(vocab_size=7))
        ),
        "vocab_size",
        "id_tower",
    ),
    call("a processor of no folder", lambda s: FlipProcessor.from_pretrained(str(s.tmp / "nowhere")), "nowhere"),
    call("a processor of an empty folder", lambda s: FlipProcessor.from_pretrained(s.tmp), "processor_config.json"),
    call("a processor of a BERT", lambda s: FlipProcessor.from_pretrained(s.plm), "processor_config.json"),
    call(
        "a processor that is no JSON",
        lambda s: FlipProcessor.from_pretrained(s.copy("id", PROCESSOR, lambda data: b"{")),
        "processor_config.json",
    ),
    call(
        "a processor whose fields are text",
        lambda s: FlipProcessor.from_pretrained(
            s.copy("id", PROCESSOR, lambda values: values["feature_extractor"].update(fields="x"))
        ),
        "fields",
        "'x'",
    ),
    call(
        "a processor without a vocabulary",
        lambda s: FlipProcessor.from_pretrained(
            s.copy("id", PROCESSOR, lambda values: values["feature_extractor"]["vocabularies"].pop())
        ),
        "vocabularies",
    ),
    call(
        "a processor without its tokenizer",
        lambda s: FlipProcessor.from_pretrained(s.copy("joint", "tokenizer.json", None)),
        "tokenizer",
    ),
    call(
        "pretraining around a folder that is not there",
        lambda s: FlipForPretraining.from_text_pretrained(str(s.tmp / "nowhere"), flip_config(s.processor.fields)),
        "nowhere",
    ),
    call(
        "a click model around a click model",
        lambda s: FlipForCTR.from_text_pretrained(s.joint, flip_config(s.processor.fields)),
        "FLIP checkpoint",
    ),
    call(
        "towers of a folder that is not there", lambda s: FlipModel.from_pretrained(str(s.tmp / "nowhere")), "nowhere"
    ),
]

CALLS = [*FOLDER_CALLS, *LOADING_CALLS]
