"""What bad calls are made with: checkpoints, a dataset folder, rows and tables, each made when the first call asks."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import raw_table
import tiny
import torch
from safetensors.torch import load_file, save_file

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.train import prepare
from flip_ctr.train.prepare_arguments import PrepareArguments


@dataclass(frozen=True)
class Call:
    """A call that is wrong, and what its error must say.

    Attributes:
        what: the call in words, each its own.
        makes: the call; for a command what stands behind `flip-ctr`, as text in which `{name}` is an attribute of
            [`Setup`].
        says: what the message must contain, in any order.
    """

    what: str
    makes: "Callable[[Setup], object] | str"
    says: tuple[str, ...]


def call(what: str, makes: "Callable[[Setup], object]", *says: str) -> Call:
    return Call(what, makes, says)


class Setup:
    """Everything that calls need, below one folder."""

    def __init__(self, folder: Path):
        self.folder, self._number = folder, 0

    @property
    def tmp(self) -> Path:
        """A new empty folder."""
        self._number += 1
        path = self.folder / f"n{self._number}"
        path.mkdir()
        return path

    # --- folders

    @cached_property
    def data(self) -> Path:
        raw = tiny.write_raw_100k(self.folder / "raw")
        prepare.run(PrepareArguments("ml-100k", str(self.folder / "data"), str(raw)))
        return self.folder / "data"

    @cached_property
    def raw(self) -> Path:
        return self.data.parent / "raw"

    @cached_property
    def plm(self) -> Path:
        return tiny.save_bert(self.folder / "plm", tiny.wordpiece())

    @cached_property
    def id(self) -> Path:
        tiny.finetune(self.data, None, self.folder / "id", num_train_epochs=1)
        return self.folder / "id"

    @cached_property
    def joint(self) -> Path:
        """Written without training, which would take longer than everything else."""
        processor = self.with_tokenizer
        model = FlipForCTR(tiny.flip_config(processor.fields, self.text_config, strategy="joint"))
        return self._saved(model, processor, "joint")

    @cached_property
    def pretrained(self) -> Path:
        processor = self.with_tokenizer
        return self._saved(FlipForPretraining(tiny.flip_config(processor.fields, self.text_config)), processor, "pre")

    def _saved(self, model, processor, name: str) -> Path:
        model.save_pretrained(self.folder / name)
        processor.save_pretrained(self.folder / name)
        return self.folder / name

    # --- objects

    @cached_property
    def text_config(self):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.plm)

    @cached_property
    def rows(self) -> list[dict]:
        return tiny.toy_rows()

    @cached_property
    def row(self) -> dict:
        return {name: value for name, value in self.rows[0].items() if name != "label"}

    @cached_property
    def processor(self) -> FlipProcessor:
        """Of an ID-only model."""
        return FlipProcessor.from_dataset(self.rows, tiny.FIELDS)

    @cached_property
    def with_tokenizer(self) -> FlipProcessor:
        return FlipProcessor.from_dataset(self.rows, tiny.FIELDS, tiny.wordpiece(), max_length=96)

    @cached_property
    def model(self) -> FlipForCTR:
        return FlipForCTR(tiny.flip_config(self.processor.fields, strategy="id")).eval()

    @cached_property
    def joint_model(self) -> FlipForCTR:
        return FlipForCTR(tiny.flip_config(self.with_tokenizer.fields, self.text_config, strategy="joint")).eval()

    @cached_property
    def pipeline(self):
        from flip_ctr import ClickThroughRatePipeline

        return ClickThroughRatePipeline(model=self.model, processor=self.processor)

    @cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        return dict(self.with_tokenizer(self.rows[:4]))

    def changed(self, **values) -> list[dict]:
        """Two rows, of which the second has other values; a column whose value is `...` is left out."""
        other = {name: value for name, value in (self.row | values).items() if value is not ...}
        return [self.row, other]

    # --- files

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.tmp / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def csv(self, **values) -> Path:
        """A CSV file of two rows of the dataset, of which the second has other values; `...` leaves a column out."""
        first = tiny.ml_rows(self.data, 1)[0]
        kept = [name for name in first if values.get(name) is not ...]
        return raw_table.write_csv(self.tmp / "rows.csv", [first, first | values], columns=kept)

    @property
    def output(self) -> Path:
        """A file that is not there yet."""
        return self.tmp / "scores.csv"

    def copy(self, name: str, file: str, change: Callable | None) -> Path:
        """A copy of a folder in which one file is another: `change` gets its bytes and gives the new ones, or gets what
        is in a JSON file or the tensors, and changes these on purpose; None removes the file."""
        folder = self.tmp / name
        shutil.copytree(getattr(self, name), folder)
        path = folder / file
        if change is None:
            path.unlink()
        elif path.suffix == ".json" and change.__code__.co_varnames[:1] == ("values",):
            values = json.loads(path.read_text())
            change(values)
            path.write_text(json.dumps(values))
            tiny.changed_on_purpose(folder, file)
        elif path.suffix == ".safetensors" and change.__code__.co_varnames[:1] == ("values",):
            values = load_file(path)
            change(values)
            save_file(values, path, {"format": "pt"})
            tiny.changed_on_purpose(folder, file)
        else:
            path.write_bytes(change(path.read_bytes() if path.is_file() else b""))
        return folder

    def split(self, split: str, change: Callable[[pa.Table], pa.Table]) -> Path:
        """A copy of the dataset folder with one split changed."""
        folder = self.tmp / "data"
        shutil.copytree(self.data, folder)
        path = next((folder / "data").glob(f"{split}-*.parquet"))
        pq.write_table(change(pq.read_table(path)), path)
        return folder

    def schema(self, text: str | None = None, clicks: str | bytes | None = None, **changes) -> Path:
        """The description of a small table of clicks; `text` is all of it, and `clicks` the file's content."""
        folder = self.tmp
        if clicks is None:
            raw_table.write_csv(folder / "clicks.csv", raw_table.event_rows()[:60])
        else:
            (folder / "clicks.csv").write_bytes(clicks.encode() if isinstance(clicks, str) else clicks)
        if text is None:
            return raw_table.write_schema(folder, **changes)
        (folder / "schema.yaml").write_text(text)
        return folder / "schema.yaml"

    def prepare(
        self, text: str | None = None, clicks: str | bytes | None = None, options: dict | None = None, **changes
    ):
        """Prepares that table."""
        schema = self.schema(text, clicks, **changes)
        args = {"dataset": "table", "output_dir": str(self.tmp / "out"), "schema": str(schema)} | (options or {})
        return prepare.run(PrepareArguments(**args))
