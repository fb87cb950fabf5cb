"""A checkpoint is one thing: what does not belong together, or is damaged, is refused by name, whatever loads it."""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.modeling_flip import base_flip, feature_extraction_flip
from flip_ctr.modeling_flip.fingerprint_flip import fields_digest

ROWS = tiny.toy_rows(11)
WEIGHTS, CONFIG, PROCESSOR, VOCABULARIES = (
    "model.safetensors",
    "config.json",
    "processor_config.json",
    "vocabularies.txt",
)


def saved(folder: Path, processor: FlipProcessor, text_config, seed: int = 0, **settings) -> Path:
    torch.manual_seed(seed)
    tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, **settings))).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, processor, text_config):
    """A checkpoint whose vocabularies lie in a file of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extraction_flip, "MAX_JSON_VALUES", 3)
        return saved(tmp_path_factory.mktemp("whole"), processor, text_config)


@pytest.fixture(scope="module")
def in_json(tmp_path_factory, processor, text_config):
    return saved(tmp_path_factory.mktemp("json"), processor, text_config)


@pytest.fixture(scope="module")
def other(tmp_path_factory, tokenizer, text_config):
    """One of other rows, with vocabularies of the same sizes."""
    rows = [row | {"user_id": -row["user_id"]} for row in tiny.toy_rows()]
    processor = FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer)
    return saved(tmp_path_factory.mktemp("other"), processor, text_config, seed=1)


@pytest.fixture
def copy(tmp_path):
    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy


def scores(folder: Path) -> list[float]:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**processor(ROWS)).logits[:, 0].sigmoid()
    answers = torch.tensor([one["click_probability"] for one in pipeline("click-through-rate", str(folder))(ROWS)])
    torch.testing.assert_close(answers, expected)
    return expected.tolist()


def change_json(folder: Path, name: str, change, on_purpose: bool = True) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    if on_purpose and "sha256" in values:
        values["sha256"].pop(name, None)
    (folder / name).write_text(json.dumps(values))


def change_vocabularies(change):
    def changed(values: dict) -> None:
        extractor = values["feature_extractor"]
        change(extractor, extractor["vocabularies"])

    return lambda folder: change_json(folder, PROCESSOR, changed)


def change_lines(change):
    def changed(folder: Path) -> None:
        lines = (folder / VOCABULARIES).read_text().split("\n")
        (folder / VOCABULARIES).write_text("\n".join(change(lines)))

    return changed


def change_weights(change):
    def changed(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        change_json(folder, CONFIG, lambda values: values["sha256"].pop(WEIGHTS))

    return changed


def flip_bit(name: str, place: float):
    def changed(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * place)] ^= 1
        (folder / name).write_bytes(data)

    return changed


def cut(name: str, share: float):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int((folder / name).stat().st_size * share)]
    )


def index(folder: Path) -> None:
    names = dict.fromkeys(load_file(folder / WEIGHTS), "../whole/model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / WEIGHTS).unlink()


# how a checkpoint is damaged: whose vocabularies lie where, what is done, and who refuses it, naming what
DAMAGES = {
    "a vocabulary is shorter": ("json", change_vocabularies(lambda _, some: some[0].pop()), "processor", "vocabular"),
    "two values are swapped": (
        "json",
        change_vocabularies(lambda _, some: some[0].insert(0, some[0].pop())),
        "processor",
        "vocabularies",
    ),
    "two vocabularies are swapped": (
        "json",
        change_vocabularies(lambda _, some: some.insert(0, some.pop())),
        "processor",
        "vocabularies",
    ),
    "the vocabularies are null": (
        "json",
        change_vocabularies(lambda all_, _: all_.update(vocabularies=None)),
        "processor",
        "vocabularies",
    ),
    "a field of the processor is renamed": (
        "json",
        change_vocabularies(lambda all_, _: all_["fields"][0].update(wording="member")),
        "processor",
        "fields",
    ),
    "a field of the model is renamed": (
        "json",
        lambda folder: change_json(folder, CONFIG, lambda values: values["fields"][0].update(entity="item")),
        "both",
        "fields in config.json",
    ),
    "a line of the file is gone": ("file", change_lines(lambda lines: lines[1:]), "processor", VOCABULARIES),
    "lines of the file are reordered": (
        "file",
        change_lines(lambda lines: [*lines[1::-1], *lines[2:]]),
        "processor",
        VOCABULARIES,
    ),
    "a bit of the file is flipped": ("file", flip_bit(VOCABULARIES, 0.5), "processor", VOCABULARIES),
    "a bit of a weight is flipped": ("json", flip_bit(WEIGHTS, 0.9), "model", WEIGHTS),
    "the weights are cut off": ("json", cut(WEIGHTS, 0.8), "model", WEIGHTS),
    "the weights are empty": ("json", cut(WEIGHTS, 0), "model", WEIGHTS),
    "a bit of the tokenizer is flipped": ("json", flip_bit("tokenizer.json", 0.5), "processor", "tokenizer.json"),
    "the tokenizer is cut off": ("json", cut("tokenizer.json", 0.5), "processor", "tokenizer.json"),
    "the tokenizer's settings are gone": (
        "json",
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        "processor",
        "tokenizer_config.json is missing",
    ),
    "config.json is cut off": ("json", cut(CONFIG, 0.5), "both", CONFIG),
    "processor_config.json is cut off": ("json", cut(PROCESSOR, 0.5), "both", PROCESSOR),
    "code is of another version": (
        "json",
        lambda folder: (folder / "heads_flip.py").write_text("# older"),
        "model",
        "heads_flip.py",
    ),
    "weights are missing": (
        "json",
        change_weights(lambda weights: weights.pop("text_classifier.weight")),
        "model",
        "text_classifier.weight",
    ),
    "weights lie elsewhere": ("json", index, "model", "'../whole/model.safetensors'"),
    "a setting of the model is another": (
        "json",
        lambda folder: change_json(folder, CONFIG, lambda values: values.update(text_pooling="mean"), False),
        "both",
        "config.json: damaged or changed",
    ),
    "a setting of the processor is another": (
        "json",
        lambda folder: change_json(folder, PROCESSOR, lambda values: values.update(max_length=12), False),
        "both",
        "processor_config.json: damaged or changed",
    ),
    "the checkpoint is newer": (
        "json",
        lambda folder: change_json(folder, CONFIG, lambda values: values["fingerprint"].update(format=99)),
        "both",
        "newer flip-ctr",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name(damage, whole, in_json, copy):
    kind, change, who, named = DAMAGES[damage]
    folder = copy({"json": in_json, "file": whole}[kind])
    change(folder)
    loads = {"model": [AutoModel], "processor": [AutoProcessor], "both": [AutoModel, AutoProcessor]}[who]
    for auto_class in loads:
        with pytest.raises((ValueError, OSError), match=named) as error:
            auto_class.from_pretrained(folder)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises((ValueError, OSError), match=named):
        pipeline("click-through-rate", model=str(folder))


@pytest.mark.parametrize("name", [WEIGHTS, PROCESSOR, CONFIG])
def test_files_of_two_checkpoints_are_refused(name, in_json, other, copy):
    folder = copy(in_json)
    shutil.copy(other / name, folder / name)
    with pytest.raises(ValueError, match="another checkpoint|not of the model"):
        pipeline("click-through-rate", model=str(folder))
    with pytest.raises(ValueError, match="another checkpoint|not of the model"):
        AutoModel.from_pretrained(folder)
    if name != WEIGHTS:
        with pytest.raises(ValueError, match="not of the model"):
            AutoProcessor.from_pretrained(folder)


def test_model_and_processor_of_two_checkpoints_are_refused(in_json, other):
    model, processor = FlipForCTR.from_pretrained(in_json), FlipProcessor.from_pretrained(other)
    with pytest.raises(ValueError, match="differ in the vocabularies"):
        pipeline("click-through-rate", model=model, processor=processor)


def test_line_ends_of_windows_are_read(whole, copy):
    """As git may write them."""
    folder = copy(whole)
    for name in (VOCABULARIES, "tokenizer.json", CONFIG, PROCESSOR, "heads_flip.py"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert scores(folder) == scores(whole)


def test_what_is_changed_on_purpose_loads(in_json, copy):
    folder = copy(in_json)
    change_weights(lambda weights: weights["text_classifier.bias"].add_(1))(folder)
    assert scores(folder) != scores(in_json)
    FlipForCTR.from_pretrained(folder).save_pretrained(folder)
    assert json.loads((folder / CONFIG).read_text())["sha256"].keys() >= {WEIGHTS, "modeling_flip.py"}


def test_older_checkpoints_without_a_fingerprint_load(in_json, copy):
    folder = copy(in_json)
    for name in (CONFIG, PROCESSOR):
        change_json(folder, name, lambda values: [values.pop(key) for key in ("fingerprint", "sha256")])
    change_vocabularies(lambda all_, _: all_.pop("fingerprint"))(folder)
    assert scores(folder) == scores(in_json)


def test_a_head_that_was_never_trained_does_not_score(tmp_path, processor, text_config):
    FlipForPretraining(tiny.flip_config(processor.fields, text_config)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="were never trained.*fine-tune"):
        pipeline("click-through-rate", model=str(tmp_path))
    model = FlipForCTR.from_pretrained(tmp_path)
    assert "id_classifier.weight" in model.untrained
    tiny.shake(model)  # in the place of training
    assert not model.untrained
    pipeline("click-through-rate", model=model, processor=processor)


def test_a_new_attribute_of_fields_changes_no_fingerprint(processor):
    fields = processor.feature_extractor.fields
    assert fields_digest(fields) == fields_digest([field | {"null_values": [], "decimal": "."} for field in fields])
    assert fields_digest(fields) != fields_digest(fields[::-1])


@pytest.mark.parametrize("killed_at", ["base_flip.py", CONFIG, None])
def test_saving_over_another_checkpoint_is_never_a_mix(killed_at, in_json, other, copy, monkeypatch):
    """A process that is killed on the way leaves the old one, the new one, or one that is refused."""
    folder, replace = copy(in_json), os.replace

    def killed(source, target):
        if Path(target).name == killed_at:
            raise KeyboardInterrupt
        replace(source, target)

    model, processor = FlipForCTR.from_pretrained(other), FlipProcessor.from_pretrained(other)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt) if killed_at else contextlib.nullcontext():
            model.save_pretrained(folder)
    if killed_at == CONFIG:
        with pytest.raises(ValueError, match="of another checkpoint"):
            AutoModel.from_pretrained(folder)
    elif killed_at:
        assert scores(folder) == scores(in_json)
    else:
        with pytest.raises(ValueError, match="not of the model"):
            scores(folder)
        processor.save_pretrained(folder)
        assert scores(folder) == scores(other)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_killed_process_left_is_removed(in_json, copy):
    folder = copy(in_json)
    (folder / f".saving-{2**22 + 1}@{socket.gethostname()}-abc").mkdir()  # no such process
    (folder / ".saving-1@elsewhere-abc").mkdir()
    FlipForCTR.from_pretrained(folder).save_pretrained(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".saving-1@elsewhere-abc"]


def test_a_checkpoint_that_is_replaced_while_it_is_read(in_json, other, copy, monkeypatch):
    folder = copy(in_json)
    config = AutoConfig.from_pretrained(folder)
    check = base_flip.check_checkpoint

    def replaced(*args):
        sha = check(*args)
        for name in (WEIGHTS, CONFIG):
            shutil.copy(other / name, folder / name)
        return sha

    with monkeypatch.context() as patch:
        patch.setattr(base_flip, "check_checkpoint", replaced)
        with pytest.raises(OSError, match=f"{folder} was replaced while it was read; load it again"):
            FlipForCTR.from_pretrained(folder)
    shutil.copy(other / PROCESSOR, folder / PROCESSOR)
    with pytest.raises(OSError, match="was replaced while it was read"):  # between configuration and weights
        FlipForCTR.from_pretrained(folder, config=config)


def test_weights_of_two_variants_lie_in_one_folder(in_json, other, copy):
    folder = copy(in_json)
    model = FlipForCTR.from_pretrained(other)
    model.config = FlipForCTR.from_pretrained(in_json).config
    model.save_pretrained(folder, variant="half")
    one, half = (FlipForCTR.from_pretrained(folder, variant=variant).state_dict() for variant in (None, "half"))
    expected = FlipForCTR.from_pretrained(in_json).state_dict()
    assert all(torch.equal(one[name], expected[name]) for name in expected)
    assert all(torch.equal(half[name], weight) for name, weight in model.state_dict().items())
    flip_bit("model.half.safetensors", 0.9)(folder)
    with pytest.raises(ValueError, match="model.half.safetensors: damaged"):
        FlipForCTR.from_pretrained(folder)
