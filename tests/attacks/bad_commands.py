"""Bad commands, and what their one line of error must name. A text is what stands behind `flip-ctr`, in which `{name}`
is an attribute of `Setup`."""

import json

import raw_table
from bad_calls_setup import Call
from tiny import ml_rows

WEIGHTS, TEST = "model.safetensors", "data/test-00000-of-00001.parquet"
FINETUNE = "finetune --dataset_dir {data} --strategy id --output_dir {tmp}/o"
PRETRAIN = "pretrain --dataset_dir {data} --model_name_or_path {plm} --output_dir {tmp}/o"
PREPARE = "prepare --dataset ml-100k --data_dir {raw} --output_dir {tmp}/o"
PREDICT = "predict --model_name_or_path {id} --output {output} --input"
EVALUATE = "evaluate --dataset_dir {data} --model_name_or_path {id}"
# commands with a copy of a folder in which something is broken
SCORE_IT = "evaluate --dataset_dir {data} --model_name_or_path {broken}"
PUSH_IT = "push --model_name_or_path {broken} --hub_model_id a/b"
TRAIN_ON_IT = "finetune --dataset_dir {broken} --strategy id --output_dir {tmp}/o"
PRETRAIN_IT = "pretrain --dataset_dir {data} --model_name_or_path {broken} --output_dir {tmp}/o"
CALIBRATE = "calibrate --dataset_dir {data} --model_name_or_path {id} --output_dir {tmp}/o"
FUSE = "fuse --dataset_dir {data} --id_model {id} --plm_model {joint} --output_dir {tmp}/o"


def call(makes, *says: str) -> Call:
    return Call(f"flip-ctr {makes}", makes, says)


def schema(*says: str, **changes) -> Call:
    """`prepare` of a table with these changes of its description."""
    return Call(
        f"a schema with {changes}",
        lambda s: ["prepare", "--dataset", "table", "--schema", s.schema(**changes), "--output_dir", s.tmp / "o"],
        says,
    )


def clicks(what: str, content: str | bytes, *says: str, **changes) -> Call:
    """`prepare` of a table whose file has this content."""
    changes = {"files": "clicks.csv", "clicks": content} | changes
    return Call(
        f"clicks.csv: {what}",
        lambda s: ["prepare", "--dataset", "table", "--schema", s.schema(**changes), "--output_dir", s.tmp / "o"],
        says,
    )


def config(what: str, content: str | bytes, *says: str) -> Call:
    """`finetune` with this file of options."""
    return Call(
        f"--config: {what}",
        lambda s: ["finetune", "--config", s.file("c.yaml", content), "--dataset_dir", "d", "--output_dir", "o"],
        ("--config", "c.yaml", *says),
    )


def predict(what: str, path, *says: str, more=()) -> Call:
    """`predict` of a file."""
    return Call(
        f"predict: {what}",
        lambda s: ["predict", "--model_name_or_path", s.id, "--output", s.output, "--input", path(s), *more],
        says,
    )


def broken(what: str, name: str, file: str, change, command: str, *says: str) -> Call:
    """A command with a copy of a folder in which one file is another, in the place of `{broken}`."""

    def makes(s):
        folder = str(s.copy(name, file, change))
        words = [folder if word == "{broken}" else word for word in command.split()]
        return [word.format(data=s.data, id=s.id, joint=s.joint, tmp=s.tmp, raw=s.raw, plm=s.plm) for word in words]

    return Call(f"{what}: {command}", makes, says)


OPTION_CALLS = [
    call("finetun", "finetun", "finetune"),
    call("--strategy id", "--strategy"),
    call("finetune", "--dataset_dir", "--output_dir"),
    call("pretrain --output_dir o", "--dataset_dir"),
    call("evaluate --dataset_dir d", "--model_name_or_path"),
    call("push --model_name_or_path m", "--hub_model_id"),
    call("finetune --dataset_dir", "--dataset_dir"),
    call(f"{FINETUNE} --learning_rate fast", "--learning_rate", "'fast'"),
    call(f"{FINETUNE} --learning_rate -1", "--learning_rate", "-1"),
    call(f"{FINETUNE} --learning_rate nan", "--learning_rate", "nan"),
    call(f"{FINETUNE} --num_train_epochs 0", "--num_train_epochs", "0"),
    call(f"{FINETUNE} --num_train_epochs inf", "--num_train_epochs", "inf"),
    call(f"{FINETUNE} --per_device_train_batch_size 0", "--per_device_train_batch_size", "0"),
    call(f"{FINETUNE} --per_device_train_batch_size 2.5", "--per_device_train_batch_size", "'2.5'"),
    call(f"{FINETUNE} --id_hidden_dims 8 x", "--id_hidden_dims", "'x'"),
    call(f"{FINETUNE} --id_hidden_dims", "--id_hidden_dims"),
    call(f"{FINETUNE} --lr 1", "--lr", "--learning_rate"),
    call(f"{FINETUNE} --id_tower deepfn", "--id_tower", "'deepfn'", "deepfm"),
    call(f"{FINETUNE} --id_tower_kwargs {{", "--id_tower_kwargs", "{"),
    call(f"{FINETUNE} --id_tower_kwargs []", "--id_tower_kwargs", "[]"),
    call(f"{FINETUNE} --use_lora maybe", "--use_lora", "'maybe'"),
    call(f"{FINETUNE} --mixed_precision fp8", "--mixed_precision", "'fp8'"),
    call(f"{FINETUNE} --fusion gate", "--fusion", "gate"),
    call(f"{FINETUNE} --preset fast", "--preset", "'fast'"),
    call(f"{FINETUNE} --lora_r 4", "--lora_r", "--use_lora"),
    call(f"{FINETUNE} --checkpointing_steps often", "--checkpointing_steps", "often"),
    call(f"{FINETUNE} --lr_scheduler_type sawtooth", "--lr_scheduler_type", "sawtooth"),
    call(f"{FINETUNE} --freeze_plm", "--freeze_plm"),
    call(f"{FINETUNE} --grow", "--grow"),
    call(f"{FINETUNE} --seed x", "--seed", "'x'"),
    call(f"{FINETUNE} --seed -1", "--seed", "-1"),
    call(f"{FINETUNE} --report_to nothing", "--report_to", "nothing"),
    call(f"{FINETUNE} --push_to_hub", "--push_to_hub", "token"),
    call(f"{FINETUNE} --hub_model_id a/b", "--hub_model_id", "--push_to_hub"),
    call(f"{FINETUNE} --num_processes 2", "--num_processes", "--accelerate_config"),
    call(f"{FINETUNE} --accelerate_config nowhere", "--accelerate_config", "nowhere", "multi_gpu"),
    call(f"{FINETUNE} --accelerate_config multi_gpu --num_processes x", "--num_processes", "x"),
    call(f"{FINETUNE} --custom_code nowhere.py", "--custom_code", "nowhere.py"),
    call(f"{FINETUNE} stray", "stray"),
    call("finetune --config nowhere.yaml --dataset_dir d --output_dir o", "--config", "nowhere.yaml"),
    config("no YAML", "a: [", "line 1"),
    config("no text", b"\xff\xfea", "UTF-8"),
    config("a list", "- a", "option: value"),
    config("an option that there is not", "lr: 1", "lr", "learning_rate"),
    config("a value of another type", "seed: x", "--seed", "'x'"),
    config("no value", "seed:", "seed"),
    config("a list for one value", "seed: [1, 2]", "--seed", "[1, 2]"),
    config("a mapping for text", "strategy: {a: 1}", "--strategy"),
]

PREPARE_CALLS = [
    call("prepare", "--dataset", "ml-100k", "table"),
    call("prepare --dataset netflix --output_dir {tmp}/o", "--dataset", "'netflix'"),
    call("prepare --dataset ml-100k --data_dir {raw}", "--output_dir"),
    call("prepare --dataset ml-100k --data_dir {tmp}/nowhere --output_dir {tmp}/o", "nowhere"),
    call("prepare --dataset ml-100k --data_dir {tmp} --output_dir {tmp}/o", "u.data"),
    Call(
        "an archive that is none",
        lambda s: ["prepare", "--dataset", "ml-100k", "--data_dir", s.file("ml.zip", "x"), "--output_dir", s.tmp / "o"],
        ("ml.zip",),
    ),
    call("prepare --dataset ml-100k --data_dir {raw} --output_dir {data}", "data", "--overwrite_output_dir"),
    call(f"{PREPARE} --ratios 8 1", "--ratios", "3"),
    call(f"{PREPARE} --ratios 8 1 -1", "--ratios", "-1"),
    call(f"{PREPARE} --ratios 8 1 x", "--ratios", "'x'"),
    call(f"{PREPARE} --max_malformed_share 2", "--max_malformed_share", "2"),
    call(f"{PREPARE} --split dates", "--split", "'dates'"),
    call(f"{PREPARE} --click_threshold 9", "--click_threshold", "9"),
    call(f"{PREPARE} --drop_ratings 7", "--drop_ratings", "'7'"),
    call(f"{PREPARE} --drop_ratings x", "--drop_ratings", "'x'"),
    call(f"{PREPARE} --statistics nothing", "--statistics", "nothing"),
    call(f"{PREPARE} --history 0", "--history", "0"),
    call(f"{PREPARE} --support_rows 3", "--support_rows", "--history"),
    call(f"{PREPARE} --split time --label_delay 3", "--label_delay", "statistics or histories"),
    call(f"{PREPARE} --history 3 --past rolling", "--past", "splits by time"),
    call(f"{PREPARE} --item_title title", "--item_title", "cold_items"),
    call(f"{PREPARE} --memory_limit lots", "--memory_limit", "lots"),
    call(f"{PREPARE} --tokenizer_name {{tmp}}/nowhere", "--tokenizer_name", "nowhere"),
    call(f"{PREPARE} --schema s.yaml", "--schema", "ml-100k"),
    call("prepare --dataset bookcrossing --output_dir {tmp}/o", "--data_dir", "bookcrossing"),
    call("prepare --dataset table --output_dir {tmp}/o", "--schema"),
    call("prepare --dataset table --schema {tmp}/nowhere.yaml --output_dir {tmp}/o", "--schema", "nowhere.yaml"),
    call("prepare --dataset table --schema {tmp} --output_dir {tmp}/o", "--schema"),
    call("prepare --infer_schema {tmp}/nowhere.csv", "nowhere.csv"),
    call("prepare --infer_schema {tmp}/nowhere.csv --output_dir {tmp}/o", "--output_dir", "--infer_schema"),
    Call(
        "--infer_schema of an empty file",
        lambda s: ["prepare", "--infer_schema", s.file("e.csv", ""), "--schema", s.tmp / "s.yaml"],
        ("e.csv", "empty"),
    ),
    Call(
        "--infer_schema of a damaged Parquet file",
        lambda s: ["prepare", "--infer_schema", s.file("e.parquet", "PAR1xPAR1"), "--schema", s.tmp / "s.yaml"],
        ("e.parquet",),
    ),
    Call(
        "--infer_schema of a file without rows",
        lambda s: ["prepare", "--infer_schema", s.file("e.csv", "a,b\n"), "--schema", s.tmp / "s.yaml"],
        ("e.csv",),
    ),
    call("prepare --dataset ml-100k --data_dir {raw} --output_dir /dev/null/o", "/dev/null/o"),
]

SCHEMA_CALLS = [
    schema("line 1", "YAML", text="a: ["),
    schema("YAML", "twice", text="a: 1\na: 2\n"),
    schema("name", text="- a\n"),
    schema("expected", text=""),
    schema("`files`", files=...),
    schema("`fields`", fields=...),
    schema("`label`", label=...),
    schema("`name`", "3", name=3),
    schema("`name`", "'a b'", name="a b"),
    schema("`files`", "5", files=5),
    schema("`files`", "[]", files=[]),
    schema("no file fits", "nowhere.csv", files="nowhere.csv"),
    schema("folder", files="."),
    schema("`format`", "'xlsx'", format="xlsx"),
    schema("`delimiter`", "''", delimiter=""),
    schema("`delimiter`", delimiter="\n"),
    schema("`delimiter`", delimiter='"'),
    schema("`quote`", "'ab'", quote="ab"),
    schema("`quote`", quote=","),
    schema("`escape`", "'ab'", escape="ab"),
    schema("`escape`", escape=","),
    schema("`escape`", escape="\n"),
    schema("`encoding`", "'klingon'", encoding="klingon"),
    schema("`encoding`", "utf-16", encoding="utf-16"),
    schema("`encoding`", "base64", encoding="base64"),
    schema("`column_names`", column_names=3),
    schema("`null_values`", null_values="NULL"),
    schema("`types`", "'date'", types={"at": "date"}),
    schema("`types`", "'nothing'", types={"nothing": "int"}),
    schema("`label`", "'clicked'", label="clicked"),
    schema("`label`", label="stars >="),
    schema("`label`", "True", label=True),
    schema("`label`", label="title >= 4"),
    schema("`label`", label="user_id"),
    schema("`drop`", drop="stars = 3"),
    schema("`drop`", "3", drop=[3]),
    schema("`user`", "'uid'", user="uid"),
    schema("`time`", "'title'", time="title"),
    schema("`split`", "'dates'", split="dates"),
    schema("`split_seed`", "'x'", split_seed="x"),
    schema("`ratios`", "[8, 1]", ratios=[8, 1]),
    schema("`unique`", "'maybe'", unique="maybe"),
    schema("`sample_weight`", "'nothing'", sample_weight="nothing"),
    schema("`statistics`", "nothing", statistics=["nothing"]),
    schema("`history`", "'many'", history="many"),
    schema("`support_rows`", "-1", support_rows=-1),
    schema("`label_delay`", "-1", label_delay=-1),
    schema("`past`", "'late'", past="late"),
    schema("`item_title`", "'nobody'", split="cold_items", item_title="nobody"),
    schema("`row_key`", "3", row_key=3),
    schema("'lable'", lable="x"),
    schema("`fields`", "3", fields=3),
    schema("`fields`", "number 1", fields=[3]),
    schema("`fields`", "'a'", "typ", fields=[{"name": "a", "typ": "int"}]),
    schema("`fields`", "'a'", "`max_tokens`", fields=[{"name": "a", "max_tokens": "x"}]),
    schema("`fields`", "'nothing'", fields=[{"name": "nothing"}]),
    schema("`fields`", "'a'", "`column`", fields=[{"name": "a", "column": 3}]),
    schema("`joins`", "3", joins=3),
    schema("`joins`", "`on`", joins=[{"files": "clicks.csv"}]),
    schema("`joins`", "`files`", joins=[{"files": 5, "on": "uid"}]),
    schema("`joins`", "`missing`", "'maybe'", joins=[{"files": "clicks.csv", "on": "uid", "missing": "maybe"}]),
    schema("nowhere.csv", joins=[{"files": "nowhere.csv", "on": "uid"}]),
    schema("clicks.csv", "another table", joins=[{"files": "clicks.csv", "on": "uid"}]),
    clicks("empty", "", "clicks.csv", "empty"),
    clicks("a header alone", ",".join(raw_table.event_rows()[0]) + "\n", "clicks.csv", "empty"),
    clicks("no header", "1,2,3\n4,5,6\n", "clicks.csv", "no file has a column"),
    clicks("binary", b"\x00\xff" * 100, "clicks.csv", "line 1"),
    clicks("a Parquet file that is none", "x", "clicks.csv", "Parquet", format="parquet"),
    clicks("JSON that is none", "x\n", "clicks.csv", format="jsonl"),
    clicks("a JSON array of other columns", '[{"uid": 1}]', "clicks.csv", "no file has a column", format="jsonl"),
    clicks("a JSON array that is cut off", '[{"uid": 1}, {"uid"', "clicks.csv", format="jsonl"),
    clicks("a gzip file that is cut off", b"\x1f\x8b\x08\x00", "clicks.csv", "cut off"),
    clicks(
        "all lines broken",
        ",".join(raw_table.event_rows()[0]) + "\n" + "x\n" * 9,
        "clicks.csv",
        "line 2",
        "--max_malformed_share",
    ),
]

RECIPE_CALLS = [
    call("finetune --dataset_dir {tmp}/nowhere --strategy id --output_dir {tmp}/o", "nowhere", "prepare"),
    call("finetune --dataset_dir {tmp} --strategy id --output_dir {tmp}/o", "schema.json"),
    call("finetune --dataset_dir {raw} --strategy id --output_dir {tmp}/o", "schema.json"),
    call("finetune --dataset_dir {data} --strategy id --output_dir {id}", "--output_dir", "--overwrite_output_dir"),
    call("finetune --dataset_dir {data} --strategy id --output_dir /dev/null/o", "/dev/null/o"),
    call(
        "finetune --dataset_dir {data} --strategy joint --output_dir {tmp}/o",
        "--strategy joint",
        "--model_name_or_path",
    ),
    call(f"{FINETUNE} --model_name_or_path {{tmp}}/nowhere", "--model_name_or_path", "nowhere"),
    call(f"{FINETUNE} --model_name_or_path {{plm}}", "--strategy id", "--model_name_or_path"),
    call(f"{FINETUNE} --id_model {{tmp}}/nowhere", "--id_model", "nowhere"),
    call(f"{FINETUNE} --id_model {{plm}}", "--id_model", "plm"),
    call(f"{FINETUNE} --model_name_or_path {{id}} --id_tower deepfm", "--id_tower deepfm", "dcnv2"),
    call(f"{FINETUNE} --model_name_or_path {{joint}}", "fields", "joint"),
    call(f"{FINETUNE} --max_train_samples 0", "--max_train_samples"),
    call(f"{FINETUNE} --resume_from_checkpoint {{tmp}}/nowhere", "nowhere"),
    call(f"{PRETRAIN} --mlm_weight 0 --mtm_weight 0 --icl_weight 0", "--mlm_weight", "--mtm_weight", "--icl_weight"),
    call("pretrain --dataset_dir {data} --output_dir {tmp}/o", "--model_name_or_path"),
    call("pretrain --dataset_dir {data} --model_name_or_path {id} --output_dir {tmp}/o", "FLIP checkpoint", "id"),
    call(f"{PRETRAIN} --prompt_fields nothing", "--prompt_fields", "nothing"),
    call(f"{PRETRAIN} --freeze_plm_layers 99", "--freeze_plm_layers", "99"),
    call(f"{PRETRAIN} --grad_cache_chunk_size 4 --icl_weight 0", "--grad_cache_chunk_size"),
    call(f"{EVALUATE} --split dev", "--split", "'dev'"),
    call(f"{EVALUATE} --output_dir {{id}}", "--output_dir", "checkpoint"),
    call("evaluate --dataset_dir {data} --model_name_or_path {tmp}/nowhere", "--model_name_or_path", "nowhere"),
    call("evaluate --dataset_dir {data} --model_name_or_path {tmp}", "--model_name_or_path"),
    call("evaluate --dataset_dir {data} --model_name_or_path {plm}", "BertForMaskedLM", "finetune"),
    call("evaluate --dataset_dir {data} --model_name_or_path {pretrained}", "FlipForPretraining", "finetune"),
    call("evaluate --dataset_dir {data} --model_name_or_path {joint}", "fields", "joint"),
    call("fuse --dataset_dir {data} --id_model {id} --plm_model {id} --output_dir {tmp}/o", "--plm_model", "'id'"),
    call("fuse --dataset_dir {data} --id_model {plm} --plm_model {joint} --output_dir {tmp}/o", "--id_model", "plm"),
    call(f"{FUSE} --fusion mean", "--fusion", "'mean'"),
    call(FUSE, "the ids of", "age"),
    call(f"{CALIBRATE} --calibration beta", "--calibration", "'beta'"),
    call(f"{CALIBRATE} --output_dir {{id}}", "--output_dir", "--model_name_or_path"),
    call("calibrate --dataset_dir {data} --model_name_or_path {pretrained} --output_dir {tmp}/o", "FlipForPretraining"),
    call("finetune --dataset_dir {data} --strategy id --output_dir {tmp}/o --negative_sampling_rate 1.5", "at most 1"),
    call("push --model_name_or_path {tmp}/nowhere --hub_model_id a/b", "nowhere"),
    call("push --model_name_or_path {tmp} --hub_model_id a/b", "config.json"),
    call("push --model_name_or_path {plm} --hub_model_id a/b", "bert"),
    call("push --model_name_or_path {id} --hub_model_id a/b/c", "--hub_model_id", "a/b/c"),
    call("push --model_name_or_path {id} --hub_model_id a/b", "a/b", "publish it later"),
    call("demo --dataset ml-100k --output_dir {tmp}/o", "--model_name_or_path"),
    call("demo --data_dir {raw} --output_dir {tmp}/o", "--data_dir", "--dataset"),
    call("demo --output_dir {data}", "--overwrite_output_dir", "data"),
    broken("no weights", "id", WEIGHTS, None, SCORE_IT, "model.safetensors"),
    broken("weights cut off", "id", WEIGHTS, lambda data: data[:-100], SCORE_IT, ".safetensors"),
    broken(
        "empty weights",
        "id",
        WEIGHTS,
        lambda data: b"",
        "finetune --dataset_dir {data} --strategy id --model_name_or_path {broken} --output_dir {tmp}/o",
        ".safetensors",
    ),
    broken(
        "fewer weights",
        "id",
        WEIGHTS,
        lambda values: values.pop("id_classifier.weight"),
        SCORE_IT,
        "id_classifier.weight",
    ),
    broken(
        "weights of another shape",
        "id",
        "config.json",
        lambda values: values["fields"][0].update(vocab_size=9),
        SCORE_IT,
        "id_tower",
        "vocab_size",
    ),
    broken("config.json is no JSON", "id", "config.json", lambda data: b"{", SCORE_IT, "config.json"),
    broken("config.json is a list", "id", "config.json", lambda data: b"[]", SCORE_IT, "config.json"),
    broken("config.json is empty", "id", "config.json", lambda data: b"", SCORE_IT, "config.json"),
    broken("config.json is no text", "id", "config.json", lambda data: b"\xff\xfe", SCORE_IT, "config.json"),
    broken(
        "no architectures",
        "id",
        "config.json",
        lambda values: values.pop("architectures"),
        SCORE_IT,
        "flip",
        "finetune",
    ),
    broken(
        "a setting that is not allowed",
        "id",
        "config.json",
        lambda values: values.update(id_dropout=7),
        SCORE_IT,
        "id_dropout",
        "7",
    ),
    broken("no processor", "id", "processor_config.json", None, SCORE_IT, "processor_config.json"),
    broken(
        "a processor that is no JSON",
        "id",
        "processor_config.json",
        lambda data: b"{",
        SCORE_IT,
        "processor_config.json",
    ),
    broken(
        "a processor of another vocabulary",
        "id",
        "processor_config.json",
        lambda values: values["feature_extractor"]["vocabularies"][0].append("999"),
        SCORE_IT,
        "vocabularies",
    ),
    broken(
        "no tokenizer",
        "joint",
        "tokenizer.json",
        None,
        "predict --model_name_or_path {broken} --input r.csv --output {tmp}/s.csv",
        "tokenizer",
    ),
    broken("a checkpoint without weights", "id", WEIGHTS, None, PUSH_IT, "weights"),
    broken("config.json is no JSON", "id", "config.json", lambda data: b"{", PUSH_IT, "config.json"),
    broken("config.json is a list", "id", "config.json", lambda data: b"[]", PUSH_IT, "config.json"),
    broken("weights cut off", "pretrained", WEIGHTS, lambda data: data[:-100], PUSH_IT, ".safetensors"),
    broken("a PLM without weights", "plm", WEIGHTS, None, PRETRAIN_IT, "model.safetensors"),
    broken("a PLM whose weights are cut off", "plm", WEIGHTS, lambda data: data[:-100], PRETRAIN_IT, ".safetensors"),
    broken("a PLM without a tokenizer", "plm", "tokenizer.json", None, PRETRAIN_IT, "tokenizer"),
    broken("a split is missing", "data", TEST.replace("test", "train"), None, TRAIN_ON_IT, "'train'"),
    broken("a split is cut off", "data", TEST, lambda data: data[:2000], TRAIN_ON_IT, "'test'"),
    broken(
        "a split's rows are damaged",
        "data",
        TEST,
        lambda data: data[:4] + bytes(3000) + data[3004:],
        TRAIN_ON_IT,
        "'test'",
    ),
]

PREDICT_CALLS = [
    call(f"{PREDICT} {{tmp}}/nowhere.csv", "nowhere.csv"),
    call(f"{PREDICT} {{tmp}}", "--input", "folder"),
    call(f"{PREDICT} rows.xlsx", "--input", "rows.xlsx"),
    call("predict --model_name_or_path {id} --input rows.csv --output scores.txt", "scores.txt", ".csv"),
    call(
        "predict --model_name_or_path {tmp}/nowhere --input rows.csv --output scores.csv",
        "--model_name_or_path",
        "nowhere",
    ),
    call("predict --model_name_or_path {plm} --input rows.csv --output scores.csv", "BertForMaskedLM"),
    call(f"{PREDICT} rows.csv --time_column at", "--time_column", "--events"),
    call(f"{PREDICT} rows.csv --per_device_eval_batch_size 0", "--per_device_eval_batch_size", "0"),
    predict("an empty file", lambda s: s.file("e.csv", ""), "e.csv", "empty"),
    predict("a header alone", lambda s: s.file("e.csv", "user_id,gender\n"), "e.csv", "'age'"),
    predict("an empty JSON-lines file", lambda s: s.file("e.jsonl", ""), "e.jsonl", "no rows"),
    predict("a column is missing", lambda s: s.csv(age=...), "rows.csv", "'age'"),
    predict("text where a number is", lambda s: s.csv(age="old"), "rows.csv", "line 3", "age", "'old'"),
    predict("a fraction where a whole number is", lambda s: s.csv(age=2.5), "rows.csv", "line 3", "age", "2.5"),
    predict(
        "broken JSON",
        lambda s: s.file("r.jsonl", json.dumps(ml_rows(s.data, 1)[0]) + '\n{"a": \n'),
        "r.jsonl",
        "line 2",
    ),
    predict("a JSON array", lambda s: s.file("r.jsonl", '[{"a": 1}]'), "r.jsonl"),
    predict(
        "JSON that is nested very deep", lambda s: s.file("r.jsonl", '{"age": ' + "[" * 100_000), "r.jsonl", "line 1"
    ),
    predict(
        "a column of two types",
        lambda s: s.file("r.jsonl", '{"user_id": 1}\n{"user_id": {"a": 1}}\n'),
        "r.jsonl",
        "'user_id'",
    ),
    predict("a number of 5,000 digits", lambda s: s.file("r.jsonl", '{"user_id": ' + "9" * 5000 + "}\n"), "r.jsonl"),
    predict("bytes of another encoding", lambda s: s.file("r.csv", b"user_id,title\n1,\xff\n"), "r.csv"),
    predict("a header with a column twice", lambda s: s.file("r.csv", "user_id,user_id\n1,1\n"), "r.csv", "user_id"),
    predict("a row of too many values", lambda s: s.file("r.csv", 'user_id,gender\n1,"a\nb",3\n'), "r.csv"),
    predict("a damaged Parquet file", lambda s: s.file("r.parquet", "PAR1" + "x" * 99 + "PAR1"), "r.parquet"),
    predict("text as Parquet", lambda s: s.file("r.parquet", "user_id\n1\n"), "r.parquet"),
    Call(
        "predict: a column that has the name of the score",
        lambda s: [
            "predict",
            "--model_name_or_path",
            s.id,
            "--output",
            s.output,
            "--input",
            s.file("r.csv", with_score(s)),
        ],
        ("r.csv", "'click_probability'"),
    ),
    Call(
        "predict: the output is a folder",
        lambda s: ["predict", "--model_name_or_path", s.id, "--output", folder(s, "o.csv"), "--input", s.csv()],
        ("o.csv",),
    ),
    Call(
        "predict: the output lies in a file",
        lambda s: ["predict", "--model_name_or_path", s.id, "--output", s.file("f", "x") / "o.csv", "--input", s.csv()],
        ("o.csv",),
    ),
    predict(
        "events of a model without histories", lambda s: s.csv(), "events", "no histories", more=("--events", "e.csv")
    ),
    predict("items that are not there", lambda s: s.csv(), "items.csv", more=("--items", "items.csv")),
]


def with_score(s) -> str:
    rows = [row | {"click_probability": 1} for row in ml_rows(s.data, 2)]
    return raw_table.write_csv(s.tmp / "r.csv", rows).read_text()


def folder(s, name: str):
    path = s.tmp / name
    path.mkdir()
    return path


CALLS = [*OPTION_CALLS, *PREPARE_CALLS, *SCHEMA_CALLS, *RECIPE_CALLS, *PREDICT_CALLS]
