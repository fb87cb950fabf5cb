"""Publishing and loading with the real client of the Hub, against a loopback hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import ModelCard, RepoCard
from loopback_hub import FakeHub
from safetensors.torch import load as load_safetensors
from transformers import AutoModel, AutoProcessor

from flip_ctr.modeling_flip.tower_code_flip import package_modules
from flip_ctr.train.outputs import hub as publishing

TOKEN = "hf_a-secret-token"
CODE = {f"{name}.py" for name in package_modules()}
REPORTS = {"README.md", "all_results.json", "history.json", "training_args.json", "training.png"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
WEIGHTS = {"config.json", "model.safetensors", "processor_config.json"}


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as running:
        yield running


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    """Of a process whose Hub is the loopback one. `HF_ENDPOINT` is read when huggingface_hub is imported: hence
    processes."""
    home = str(tmp_path_factory.mktemp("home"))
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }


WORKER = """
import contextlib, gc, io, json, sys, traceback
gc.disable()  # as in conftest.py
from flip_ctr.train import cli
from flip_ctr.train.outputs import plots
gc.freeze()
gc.enable()
pyplot, answers = plots.pyplot, sys.stdout
for line in sys.stdin:
    task, said, code = json.loads(line), io.StringIO(), 0
    plots.pyplot = pyplot if task.get("pictures") else lambda: None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if "script" in task:
                exec(task["script"], {"folder": task["folder"], "cli": cli})
            else:
                code = cli.main(task["arguments"])
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps({"code": code, "said": said.getvalue()}), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def worker(environment):
    """One process that runs commands and scripts: importing the stack takes longer than all that is done with it."""
    arguments = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


def ask(worker, code: int = 0, **task) -> str:
    worker.stdin.write(json.dumps(task) + "\n")
    worker.stdin.flush()
    answer = json.loads(worker.stdout.readline())
    assert answer["code"] == code, answer["said"][-3000:]
    return answer["said"]


def command(worker, *arguments, code: int = 0, pictures: bool = False) -> str:
    return ask(worker, code, arguments=list(map(str, arguments)), pictures=pictures)


def published(hub, repo: str) -> dict[str, bytes]:
    return hub.repos[repo][-1][1]


# --- a recipe publishes


@pytest.fixture(scope="module")
def pushed(hub, worker, tmp_path_factory, dataset_dir, pretrained):
    """A fine-tuning run that ends in a private repository; its folder holds things that must stay out."""
    folder = tmp_path_factory.mktemp("pushed") / "m"
    (folder / "checkpoint-3").mkdir(parents=True)
    for name in ("notes.txt", "optimizer.bin", "random_states_0.pkl", "mine.py", "checkpoint-3/model.safetensors"):
        (folder / name).write_bytes(b"not for others")
    flags = [
        "--max_train_samples",
        96,
        "--max_eval_samples",
        64,
        "--num_train_epochs",
        1,
        "--per_device_train_batch_size",
        32,
    ]
    command(
        worker,
        "finetune",
        "--dataset_dir",
        dataset_dir,
        "--model_name_or_path",
        pretrained,
        "--output_dir",
        folder,
        "--overwrite_output_dir",
        *flags,
        "--push_to_hub",
        "--hub_model_id",
        "org/flip-tiny",
        "--hub_private_repo",
        pictures=True,
    )
    return folder


def test_a_recipe_publishes_what_belongs_to_a_checkpoint(hub, pushed):
    files = published(hub, "org/flip-tiny")
    assert b"class EndpointHandler" in files.pop("handler.py")
    assert set(files) == WEIGHTS | CODE | REPORTS | TOKENIZER | {"reliability.png"}
    assert hub.private["org/flip-tiny"]
    for name in set(files) - {"README.md"}:
        assert files[name] == (pushed / name).read_bytes(), name
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


def test_the_card_names_the_repository(hub, pushed):
    card = ModelCard(published(hub, "org/flip-tiny")["README.md"].decode())
    assert 'pipeline("click-through-rate", model="org/flip-tiny"' in card.text and "path/or/hub-id" not in card.text
    assert card.data.model_name == "flip-tiny" and len(card.data.eval_results) == 10
    assert "path/or/hub-id" in (pushed / "README.md").read_text()  # the folder is not changed


def test_the_card_passes_validation(hub, worker, pushed, pretrained):
    """The client's own check, which asks the Hub; the loopback one accepts all YAML, so the client's reading is what is
    tested."""
    script = """
from huggingface_hub import ModelCard
card = ModelCard.load(folder + "/README.md")
card.validate()
assert not card.data.eval_results or len(card.data.to_dict()["model-index"]) == 1
"""
    for folder in (pushed, pretrained):
        ask(worker, script=script, folder=str(folder))
    assert ("POST", "/api/validate-yaml", 200) in hub.log


def test_nothing_secret_and_no_path_is_published(hub, pushed, dataset_dir, pretrained):
    for name, content in published(hub, "org/flip-tiny").items():
        for secret in (
            TOKEN,
            str(pushed.parent),
            str(dataset_dir),
            str(pretrained.parent),
            str(Path.home()),
            os.getcwd(),
        ):
            assert secret.encode() not in content, (name, secret)


def test_a_space_of_a_published_model_is_published(hub, worker, pushed, dataset_dir, tmp_path):
    asked = ["--items", dataset_dir, "--output_dir", tmp_path / "s", "--hub_model_id", "org/try", "--hub_private_repo"]
    command(worker, "space", "--model_name_or_path", "org/flip-tiny", *asked, "--push_to_hub")
    files = published(hub, "spaces/org/try")
    assert set(files) == {"README.md", "app.py", "requirements.txt", "items.parquet"}
    assert hub.private["spaces/org/try"] and "org/try" not in hub.repos
    card = RepoCard(files["README.md"].decode())
    assert card.data.to_dict()["models"] == ["org/flip-tiny"] and "(https://huggingface.co/org/flip-tiny)" in card.text
    assert "FlipRanker.from_pretrained('org/flip-tiny', " in files["app.py"].decode()
    hub.repos["spaces/org/try"][-1][1]["users.parquet"] = b"of a former Space"
    command(worker, "space", "--model_name_or_path", pushed, *asked, "--push_to_hub", "--overwrite_output_dir")
    files = published(hub, "spaces/org/try")
    assert "users.parquet" not in files and "model/model.safetensors" in files
    said = command(
        worker,
        "space",
        "--model_name_or_path",
        pushed,
        *asked[:4],
        "--push_to_hub",
        "--hub_model_id",
        "org/full/x",
        "--overwrite_output_dir",
        code=2,
    )
    assert "--hub_model_id org/full/x" in said


ELSEWHERE = """
import gc, sys
gc.disable()  # it would take a tenth of the time
for name in ("flip_ctr", "pandas", "pyarrow", "datasets", "accelerate", "peft", "evaluate"):
    sys.modules[name] = None
import json, torch
from transformers import AutoModel, AutoProcessor, pipeline
remote = {"trust_remote_code": True}
rows = json.loads(sys.argv[1])
for number, name in enumerate(sys.argv[3:]):
    model, processor = (auto.from_pretrained(name, **remote) for auto in (AutoModel, AutoProcessor))
    with torch.no_grad():
        outputs = dict(model.eval()(**processor(rows)))
    answers = pipeline("click-through-rate", model=name, **remote)(rows)
    outputs["answers"] = torch.tensor([answer["click_probability"] for answer in answers])
    torch.save(outputs, f"{sys.argv[2]}/{number}.pt")
"""

TRAINERS = """
from transformers import Trainer, TrainingArguments
from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor, FlipTrainer
P, M, out, token = folder
processor = FlipProcessor.from_pretrained(P)
def make(cls, name, model, **hub):
    common = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "hub_model_id": f"org/{name}"}
    return cls(model, TrainingArguments(f"{out}/{name}", **common, **hub), processing_class=processor)
make(Trainer, "by-trainer", FlipForCTR.from_pretrained(M)).push_to_hub()
mine = {"hub_private_repo": True, "hub_token": token}
make(FlipTrainer, "by-flip-trainer", FlipForCTR.from_pretrained(M), **mine).push_to_hub()
make(FlipTrainer, "by-pretraining", FlipForPretraining.from_pretrained(P)).push_to_hub(tags=["mine"])
try:
    make(FlipTrainer, "early", FlipForCTR.from_pretrained(M), push_to_hub=True)
except ValueError as error:
    assert "hub_strategy='end'" in str(error)
else:
    raise AssertionError
make(FlipTrainer, "end", FlipForCTR.from_pretrained(M), push_to_hub=True, hub_strategy="end").save_model()
"""


@pytest.fixture(scope="module")
def by_trainers(hub, worker, tmp_path_factory, pretrained, finetuned):
    """Folder of checkpoints that a `Trainer` and `FlipTrainer`s have published."""
    folder = tmp_path_factory.mktemp("trainers")
    ask(worker, script=TRAINERS, folder=[str(pretrained), str(finetuned["joint"][0]), str(folder), TOKEN])
    return folder


def test_a_trainer_publishes_a_checkpoint(hub, by_trainers, pretrained):
    expected = WEIGHTS | CODE | TOKENIZER | {"README.md"}
    assert set(published(hub, "org/by-trainer")) - {".gitattributes"} == expected | {"training_args.bin"}
    files = published(hub, "org/by-flip-trainer")
    assert set(files) == expected | {"handler.py"} and hub.private["org/by-flip-trainer"]
    assert set(published(hub, "org/end")) == expected | {"handler.py"} and "org/early" not in hub.repos
    for content in files.values():  # no path, and no token
        assert str(by_trainers).encode() not in content and TOKEN.encode() not in content
    files = published(hub, "org/by-pretraining")
    assert set(files) == expected and json.loads(files["config.json"])["architectures"] == ["FlipModel"]
    for name in ("by-flip-trainer", "by-pretraining"):
        card = ModelCard(published(hub, f"org/{name}")["README.md"].decode())
        assert "flip-ctr" in card.data.tags and ("mine" in card.data.tags) == (name == "by-pretraining")
        assert "lists the values of these fields of users" in card.text


def test_another_machine_scores_the_same(pushed, by_trainers, environment, dataset_dir, tmp_path):
    rows = tiny.ml_rows(dataset_dir)
    names = {"org/flip-tiny": pushed} | {
        f"org/{name}": by_trainers / name for name in ("by-trainer", "by-flip-trainer")
    }
    arguments = [sys.executable, "-c", ELSEWHERE, json.dumps(rows), str(tmp_path), *names]
    clean = environment | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(arguments, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, folder in enumerate(names.values()):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        with torch.no_grad():
            expected = AutoModel.from_pretrained(folder).eval()(**AutoProcessor.from_pretrained(folder)(rows))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        torch.testing.assert_close(found["answers"], expected.logits[:, 0].sigmoid())


# --- pretraining, adapters, Python, failures


def test_pretraining_heads_are_published_only_when_asked(hub, worker, pretrained, dataset_dir, tmp_path):
    push = ("push", "--model_name_or_path", pretrained, "--hub_model_id")
    command(worker, *push, "org/towers")
    command(worker, *push, "org/heads", "--hub_pretraining_heads")
    towers, heads = (
        set(load_safetensors(published(hub, f"org/{name}")["model.safetensors"])) for name in ("towers", "heads")
    )
    assert any(name.startswith(("mlm_head.", "mtm_head.")) for name in heads)
    assert {name.removeprefix("flip.") for name in heads if name.startswith("flip.")} == towers
    assert json.loads(published(hub, "org/towers")["config.json"])["architectures"] == ["FlipModel"]
    # fine-tuning starts from either in the same way
    flags = ["--dataset_dir", dataset_dir, "--max_train_samples", 64, "--max_eval_samples", 64, "--num_train_epochs", 1]
    for name in ("towers", "heads"):
        command(worker, "finetune", "--model_name_or_path", f"org/{name}", "--output_dir", tmp_path / name, *flags)
    states = [AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("towers", "heads")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    record = json.loads((tmp_path / "towers" / "training_args.json").read_text())
    assert record["started_from"]["recipe"] == "pretrain" and record["arguments"]["model_name_or_path"] == "org/towers"


def test_an_adapter_of_a_published_base(hub, worker, dataset_dir, pretrained, tmp_path):
    """It names its base by hub id, takes the place of a merged upload, and is loaded with its base from the Hub."""
    command(worker, "push", "--model_name_or_path", pretrained, "--hub_model_id", "org/base")
    flags = [
        "--dataset_dir",
        dataset_dir,
        "--model_name_or_path",
        "org/base",
        "--max_train_samples",
        64,
        "--max_eval_samples",
        64,
        "--num_train_epochs",
        1,
        "--use_lora",
        "--push_to_hub",
        "--hub_model_id",
        "org/tuned",
    ]
    command(worker, "finetune", *flags, "--output_dir", tmp_path / "merged")
    assert "model.safetensors" in published(hub, "org/tuned")
    command(worker, "finetune", *flags, "--output_dir", tmp_path / "adapter", "--lora_adapter_only")
    files = published(hub, "org/tuned")
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    found = command(
        worker, "evaluate", "--dataset_dir", dataset_dir, "--model_name_or_path", "org/tuned", "--max_eval_samples", 64
    )
    results = json.loads((tmp_path / "adapter" / "all_results.json").read_text())
    assert f"test_auc                     {results['test_auc']:.4f}" in found


def test_python_publishes_too(hub, worker, finetuned):
    script = """
import flip_ctr
from transformers import AutoModel, AutoProcessor, pipeline
from flip_ctr.train.outputs.hub import push_checkpoint
AutoModel.from_pretrained(folder).push_to_hub("org/from-python")
AutoProcessor.from_pretrained(folder).push_to_hub("org/from-python")
AutoModel.from_pretrained("org/from-python")
pipeline("click-through-rate", model=folder).push_to_hub("org/from-pipeline")
assert push_checkpoint(folder, "org/from-folder").endswith("org/from-folder")
"""
    for strategy in ("joint", "id"):
        ask(worker, script=script, folder=str(finetuned[strategy][0]))
        expected = WEIGHTS | CODE | (TOKENIZER if strategy == "joint" else set())
        assert expected <= set(published(hub, "org/from-python")) and expected <= set(
            published(hub, "org/from-pipeline")
        )
        stale = TOKENIZER & set(published(hub, "org/from-folder"))
        assert stale == (TOKENIZER if strategy == "joint" else set())  # those of the joint upload went


# `arguments` with another hub in the place of the loopback one
ANOTHER_HUB = """
import functools
from flip_ctr.train.outputs import hub
client, hub.HfApi = hub.HfApi, functools.partial(hub.HfApi, endpoint={endpoint!r})
try:
    raise SystemExit(cli.main({arguments!r}))
finally:
    hub.HfApi = client
"""


def test_python_publishes_no_pretraining_heads_unasked(hub, worker, pretrained):
    script = """
import flip_ctr
from transformers import AutoModel
model = AutoModel.from_pretrained(folder)
model.push_to_hub("org/python-towers")
model.push_to_hub("org/python-heads", pretraining_heads=True)
assert type(AutoModel.from_pretrained("org/python-towers")).__name__ == "FlipModel"
"""
    ask(worker, script=script, folder=str(pretrained))
    towers, heads = (
        set(load_safetensors(published(hub, f"org/python-{name}")["model.safetensors"])) for name in ("towers", "heads")
    )
    assert any("m_head." in name for name in heads) and not any("m_head." in name for name in towers)


def test_without_icl_no_random_projection_is_published(hub, worker, dataset_dir, plm, tmp_path):
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", icl_weight=0.0)
    command(worker, "push", "--model_name_or_path", tmp_path / "p", "--hub_model_id", "org/no-icl")
    assert not any("projection" in name for name in load_safetensors(published(hub, "org/no-icl")["model.safetensors"]))
    assert "views.id_hidden_state, views.text_pooled" in published(hub, "org/no-icl")["README.md"].decode()
    script = """
import flip_ctr
from transformers import AutoModel
model, info = AutoModel.from_pretrained("org/no-icl", output_loading_info=True)
assert type(model).__name__ == "FlipModel" and not info["missing_keys"] and not info["unexpected_keys"], info
"""
    ask(worker, script=script, folder="")


def test_what_others_put_into_the_repository_stays(hub, worker, finetuned, tmp_path):
    """A card by hand, files in folders: a push of model and processor alone removes neither."""
    folder = tmp_path / "bare"
    AutoModel.from_pretrained(finetuned["id"][0]).save_pretrained(folder)
    AutoProcessor.from_pretrained(finetuned["id"][0]).save_pretrained(folder)
    command(worker, "push", "--model_name_or_path", folder, "--hub_model_id", "org/kept")
    published(hub, "org/kept").update(
        {"README.md": b"by hand", "model_old/v1.safetensors": b"old", "model-00001-of-00002.safetensors": b"stale"}
    )
    command(worker, "push", "--model_name_or_path", folder, "--hub_model_id", "org/kept")
    files = published(hub, "org/kept")
    assert (
        files["README.md"] == b"by hand"
        and "model_old/v1.safetensors" in files
        and "model-00001-of-00002.safetensors" not in files
    )


def test_a_public_repository_is_not_taken_for_private(hub, worker, finetuned):
    push = ("push", "--model_name_or_path", finetuned["id"][0], "--hub_model_id", "org/open")
    command(worker, *push)
    before = len(hub.repos["org/open"])
    said = command(worker, *push, "--hub_private_repo", code=2)
    assert "org/open exists and is public" in said and len(hub.repos["org/open"]) == before


def test_an_upload_that_fails_leaves_the_checkpoint_and_says_what_to_do(hub, worker, dataset_dir, tmp_path):
    folder = tmp_path / "m"
    arguments = [
        "finetune",
        "--dataset_dir",
        str(dataset_dir),
        "--strategy",
        "id",
        "--max_train_samples",
        "64",
        "--max_eval_samples",
        "64",
        "--output_dir",
        str(folder),
        "--push_to_hub",
        "--hub_model_id",
        "org/later",
    ]
    script = ANOTHER_HUB.format(endpoint="http://127.0.0.1:9", arguments=arguments)
    said = ask(worker, 2, script=script, folder="")
    advice = f"flip-ctr push --model_name_or_path {folder} --hub_model_id org/later"
    assert "was not published to org/later: ConnectError" in said and advice in said and "Traceback" not in said
    assert json.loads((folder / "all_results.json").read_text())["test_auc"] > 0 and (folder / "README.md").exists()
    assert AutoModel.from_pretrained(folder).config.strategy == "id"
    command(worker, *advice.split()[1:])
    assert "model.safetensors" in published(hub, "org/later")


class Refusing(FakeHub):
    """Takes files, and refuses the commit."""

    def route(self, method, path, body):
        return (403, {}, {"error": "no"}) if "/commit/" in path else super().route(method, path, body)


def test_a_refused_commit_is_an_error_too(worker, finetuned):
    with Refusing() as refusing:
        arguments = ["push", "--model_name_or_path", str(finetuned["id"][0]), "--hub_model_id", "org/no"]
        said = ask(worker, 2, script=ANOTHER_HUB.format(endpoint=refusing.url, arguments=arguments), folder="")
    assert "was not published to org/no: HfHubHTTPError" in said and TOKEN not in said


def test_what_cannot_be_pushed_is_said_before_training(tmp_path, dataset_dir, plm, monkeypatch):
    for options, message in (
        ({"push_to_hub": True}, "--push_to_hub needs a token"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "--hub_model_id a/b/c"),
        ({"hub_model_id": "org/m"}, "--hub_model_id has no effect without --push_to_hub"),
        ({"hub_private_repo": True}, "--hub_private_repo has no effect without --push_to_hub"),
        ({"push_to_hub": True, "use_lora": True, "lora_adapter_only": True}, "add --hub_pretraining_heads"),
    ):
        monkeypatch.setattr(publishing, "get_token", lambda needed=message.endswith("needs a token"): not needed)
        recipe, start = (tiny.pretrain, plm) if "use_lora" in options else (tiny.finetune, None)
        with pytest.raises(ValueError, match=message):
            recipe(dataset_dir, start, tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, plm, finetuned):
    with pytest.raises(ValueError, match="is not a checkpoint folder: it has no config.json"):
        publishing.push_checkpoint(str(tmp_path), "org/m")
    with pytest.raises(ValueError, match="is not a FLIP checkpoint: its config.json is of a 'bert' model"):
        publishing.push_checkpoint(str(plm), "org/m")
    model = AutoModel.from_pretrained(finetuned["id"][0])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a whole checkpoint: it has no processor"):
        publishing.push_checkpoint(str(tmp_path), "org/m")


# --- large vocabularies


def test_large_vocabularies_are_published_in_their_file(hub, worker, finetuned):
    script = """
from pathlib import Path
from transformers import AutoFeatureExtractor, AutoProcessor
from flip_ctr.modeling_flip import feature_extraction_flip
feature_extraction_flip.MAX_JSON_VALUES = 5
processor = AutoProcessor.from_pretrained(folder)
vocabularies = processor.feature_extractor.vocabularies
for name, one in (("org/flip-words", processor), ("org/flip-extractor", processor.feature_extractor)):
    one.push_to_hub(name)
for loaded in (AutoProcessor.from_pretrained("org/flip-words").feature_extractor,
AutoFeatureExtractor.from_pretrained("org/flip-extractor")):
    assert loaded.vocabularies == vocabularies and sum(map(len, vocabularies)) > 5
"""
    ask(worker, script=script, folder=str(finetuned["joint"][0]))
    for name in ("org/flip-words", "org/flip-extractor"):
        assert "vocabularies.txt" in published(hub, name)


def test_a_grown_model_is_published(hub, worker, finetuned, dataset_dir):
    script = """
import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor
Model = AutoModelForSequenceClassification
model, processor = Model.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
rows = ROWS
new = [row | {"user_id": 987654} for row in rows]
assert processor.grow(new)["user_id"] == 1
model.grow(processor.fields)
table = model.flip.id_tower.embeddings.weight
with torch.no_grad():
    table += torch.arange(len(table))[:, None] * 1e-4  # what has learned differs from [UNK]
for one in (model, processor):
    one.push_to_hub("org/flip-grown")
again, theirs = Model.from_pretrained("org/flip-grown").eval(), AutoProcessor.from_pretrained("org/flip-grown")
assert theirs.feature_extractor.vocabularies[0][-1] == "987654"
for some in (rows, new):
    assert torch.equal(model(**processor(some)).logits, again(**theirs(some)).logits)
assert not torch.equal(again(**theirs(rows)).logits, again(**theirs(new)).logits)
"""
    script = script.replace("ROWS", repr(tiny.ml_rows(dataset_dir, 4)))
    ask(worker, script=script, folder=str(finetuned["joint"][0]))
