"""Fixtures that are made once a session: a tiny tokenizer and BERT, processors, a raw folder and a dataset folder."""

import contextlib
import os
import sys

import pytest
import tiny
import torch
import warm_python
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoModelForMaskedLM
from transformers.utils import logging as transformers_logging

from flip_ctr import FlipProcessor
from flip_ctr.data.prepare.figures import pyplot
from flip_ctr.train.loop import leave_out

transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    yield
    # Accelerate's state outlives a run; a recipe with another precision would be refused
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


PICTURES = ("flip_ctr.data.prepare.dataset_picture.pyplot", "flip_ctr.train.outputs.plots.pyplot")


@pytest.fixture(scope="session", autouse=True)
def no_pictures():
    """Drawing takes half the time of preparing a small dataset and of a small run, as hundreds of tests do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(name, lambda: None)
        yield


EFFECT_ROWS = dict(leave_out.MOST_ROWS)


@pytest.fixture(scope="session", autouse=True)
def few_effect_rows():
    """What a card says of the fields takes a tenth of a small run, of which there are hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in EFFECT_ROWS:
            patch.setitem(leave_out.MOST_ROWS, kind, 6)
        yield


@pytest.fixture(scope="session")
def drawing(no_pictures):
    """`with drawing():` what a fixture makes has its pictures."""

    @contextlib.contextmanager
    def draw():
        with pytest.MonkeyPatch.context() as patch:
            for name in PICTURES:
                patch.setattr(name, pyplot)
            yield

    return draw


@pytest.fixture
def pictures(drawing):
    """For tests of the pictures on the cards of a dataset and of a run."""
    with drawing():
        yield


# Linux has it
if hasattr(os, "pidfd_open"):
    warm_python.WARM = warm_python.Warm()


def pytest_unconfigure():
    if warm_python.WARM is not None:
        warm_python.WARM.close()


@pytest.fixture(scope="session")
def warm():
    """A file to start in place of `sys.executable`, for processes of which no import is tested."""
    return sys.executable if warm_python.WARM is None else str(warm_python.WARM.executable)


@pytest.fixture(scope="module")
def spark():
    """A local Spark, which `--engine pyspark` then uses."""
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.log.level": "ERROR",
        # a handful of rows: compiling each query to bytecode, and that to machine code, takes all of the time
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    }
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").appName("tests")
    session = builder.config(map=settings).getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.wordpiece()


@pytest.fixture(scope="session")
def plm(tmp_path_factory, tokenizer):
    """Folder of a tiny BERT with MLM head and its WordPiece tokenizer."""
    return tiny.save_bert(tmp_path_factory.mktemp("plm"), tokenizer)


@pytest.fixture(scope="session")
def calm_plm(tmp_path_factory, plm):
    """The tiny BERT without dropout: two processes can do what one does."""
    folder = tmp_path_factory.mktemp("plm") / "calm"
    model = AutoModelForMaskedLM.from_pretrained(plm, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder)
    tiny.wordpiece().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows():
    return tiny.toy_rows()


@pytest.fixture(scope="session")
def processor(tokenizer, rows):
    return FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, max_length=96)


@pytest.fixture(scope="session")
def id_processor(rows):
    return FlipProcessor.from_dataset(rows, tiny.FIELDS)


@pytest.fixture(scope="session")
def kind_processor(tokenizer):
    """Of rows with a field of each kind."""
    return FlipProcessor.from_dataset(tiny.kind_rows(), tiny.KIND_FIELDS, tokenizer, max_length=128)


@pytest.fixture(scope="session")
def text_config(plm):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(plm)


@pytest.fixture(scope="session")
def batch(processor, rows):
    """A pretraining batch of all toy rows."""
    return tiny.pretraining_batch(processor, rows)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    """Dataset folder of a small MovieLens-100K with a planted signal."""
    from flip_ctr.train import prepare  # an engine, which other tests do without

    folder = tmp_path_factory.mktemp("ml")
    raw = tiny.write_raw_100k(folder / "ml-100k")
    prepare.run(prepare.PrepareArguments("ml-100k", str(folder / "data"), str(raw)))
    return folder / "data"


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, dataset_dir, plm, drawing):
    """Folder of a checkpoint that the pretraining recipe wrote, with its picture."""
    folder = tmp_path_factory.mktemp("pretrained") / "p"
    with drawing():
        tiny.pretrain(dataset_dir, plm, folder)
    return folder


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory, dataset_dir, pretrained, plm, drawing):
    """For each strategy the folder of a checkpoint, fine-tuned from the pretrained one (`frozen`: from the PLM), with
    its pictures, and the recipe's results."""
    folder = tmp_path_factory.mktemp("finetuned")
    # a trained tower has larger weights than a new one: raise the rate so that scores differ visibly
    starts = {"id": pretrained, "plm": pretrained, "joint": pretrained, "frozen": plm}
    options = {"joint": {"fusion": "gate"}}
    with drawing():
        return {
            strategy: (
                folder / strategy,
                tiny.finetune(
                    dataset_dir,
                    start,
                    folder / strategy,
                    strategy=strategy,
                    learning_rate=0.02,
                    **options.get(strategy, {}),
                ),
            )
            for strategy, start in starts.items()
        }
