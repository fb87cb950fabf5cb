# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A page to try a click model in a browser, with Gradio. What it computes is in [`Trial`]; visitors share a ranker, and
nothing that one does is seen by another."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import jinja2
import pyarrow.parquet as pq

from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.modeling_flip.values_flip import Value
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.serve.trial import History, Ranking, Trial, values_of
from flip_ctr.train.options import public_name

TEMPLATES = Path(__file__).with_name("templates")
MOST_ITEMS = 100  # that are shown
FIRST = "Say who the user is, or what they had before, and press Rank."
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
WHILE_TYPING: dict[str, Any] = HIDDEN | {"show_progress": "hidden", "trigger_mode": "always_last"}


def build_page(
    ranker: FlipRanker, users: Sequence[dict] | str | Path | None = None, title: str = "", top_k: int = 10
) -> gr.Blocks:
    """The page of a ranker; `.launch()` serves it.

    ```python
    >>> from flip_ctr import FlipRanker
    >>> from flip_ctr.serve.page import build_page
    >>> ranker = FlipRanker.from_pretrained("org/flip-ml-100k", items="items.parquet")
    >>> build_page(ranker).launch()
    ```

    Args:
        ranker: with the items to rank. What becomes of its catalogue later is not seen.
        users: to choose from, a dict with a user's fields (and history) each, or a Parquet file of them; anybody who
            opens the page sees these values.
        title: of the page; the model's name when empty.
        top_k: how many items are shown at first.
    """
    rows = pq.read_table(users).to_pylist() if isinstance(users, str | Path) else users or ()
    return _Page(Trial(ranker, rows), title, top_k).blocks


class _Page:
    """The inputs and outputs of a page, and what happens between them."""

    def __init__(self, trial: Trial, title: str, top_k: int):
        self.trial, self.top_k = trial, min(top_k, MOST_ITEMS)
        title = title or public_name(trial.ranker.model.name_or_path or "") or "flip-ctr"
        self.joint = trial.ranker.model.fusion is not None
        name = trial.ranker.model.name_or_path or ""
        model = "" if os.path.exists(name) else name  # what a folder is called says nothing
        macros = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True).get_template(
            "page.html"
        )
        self.show = macros.module
        style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
        with gr.Blocks(title=title, analytics_enabled=False) as self.blocks:
            gr.HTML(self.show.header(style, title, model, len(trial.ranker), self.joint))
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._ask_for_user()
                with gr.Column(scale=3, min_width=320):
                    self.ranking = gr.HTML(self._message(FIRST), elem_id="flip-ranking")
            with gr.Tabs():
                with gr.Tab("Change an item"):
                    self._ask_for_change()
                with gr.Tab("A new item"):
                    self._ask_for_new_item()
                with gr.Tab("Why a score"):
                    self._ask_why()
            self._connect()

    # --- what is asked

    def _ask_for_user(self) -> None:
        fields, history = self.trial.ranker.user_fields, self.trial.history_field
        self.sample = gr.Dropdown(
            [(self.trial.user_label(number), number) for number in range(len(self.trial.users))],
            value=0 if self.trial.users else None,
            label="User of the sample",
            visible=bool(self.trial.users),
            elem_id="flip-sample",
        )
        with gr.Accordion("The user's fields", open=not self.trial.users):
            gr.HTML(self._framed('<p class="flip-note">What is left empty is unknown to the model.</p>'))
            with gr.Row():
                self.user_inputs = self._inputs(fields, "user")
        self.history = gr.State([])
        with gr.Accordion("What they had before", visible=history is not None):
            self.history_item = self._item_input("history")
            self.clicked = gr.Radio([("clicked", 1), ("not clicked", 0)], value=1, show_label=False, container=False)
            with gr.Row():
                self.add = gr.Button("Add", size="sm", min_width=90, elem_id="flip-add")
                self.undo = gr.Button("Remove newest", size="sm", min_width=90, elem_id="flip-undo")
                self.clear = gr.Button("Clear", size="sm", min_width=90, elem_id="flip-clear")
            self.entries = gr.HTML(self._entries([]), elem_id="flip-history")
        self.most = gr.Slider(1, MOST_ITEMS, value=self.top_k, step=1, label="Items shown")
        self.rank = gr.Button("Rank", variant="primary", elem_id="flip-rank")

    def _ask_for_change(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.changed_item = self._item_input("change")
                self.changed_inputs = self._inputs(self.trial.item_fields, "change")
                self.change = gr.Button("Rank with the change", variant="primary", elem_id="flip-rank-change")
            with gr.Column(scale=3, min_width=320):
                first = "Choose an item, change what it says, and see it move. Nobody else sees the change."
                self.change_answer = gr.HTML(self._message(first), elem_id="flip-change-answer")

    def _ask_for_new_item(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.new_inputs = self._inputs(self.trial.item_fields, "new")
                self.new = gr.Button("Rank with the new item", variant="primary", elem_id="flip-rank-new")
            with gr.Column(scale=3, min_width=320):
                first = "Write an item that the model has never seen, and see where it would stand."
                self.new_answer = gr.HTML(self._message(first), elem_id="flip-new-answer")

    def _ask_why(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.why_item = self._item_input("why")
                self.why = gr.Button("Why this score", variant="primary", elem_id="flip-why")
            with gr.Column(scale=3, min_width=320):
                first = "Choose an item, and see what its score would be without each thing that the model reads."
                self.why_answer = gr.HTML(self._message(first), elem_id="flip-why-answer")

    def _inputs(self, fields: Sequence[FlipField], name: str) -> list[gr.components.Component]:
        """An input for each field, empty at first."""
        found: list[gr.components.Component] = []
        for field in fields:
            choices, several = self.trial.choices(field), field.is_multi_valued
            about: dict[str, Any] = {"label": field.wording, "min_width": 130, "elem_id": f"flip-{name}-{field.name}"}
            if field.kind == "numeric":
                found.append(gr.Number(None, precision=0 if field.type == "int" else None, **about))
            elif choices is not None:
                about |= {"multiselect": several, "value": [] if several else None, "allow_custom_value": True}
                found.append(gr.Dropdown(choices, **about))
            else:
                found.append(gr.Textbox(None, max_lines=4, **about))
        return found

    def _item_input(self, name: str) -> gr.Dropdown:
        """An item, found by its name: what is typed chooses the first item that has it, and lists the others."""
        with gr.Row():
            words = gr.Textbox(label="Find an item", placeholder="a part of its name", elem_id=f"flip-find-{name}")
            item = gr.Dropdown(
                [], value=None, label="Item", allow_custom_value=True, min_width=220, elem_id=f"flip-item-{name}"
            )
        words.input(self.on_search, words, item, **WHILE_TYPING)
        return item

    def _values(self, fields: Sequence[FlipField], values: Sequence[Value]) -> list[Any]:
        """Canonical values as inputs take them."""
        numeric = [field.kind == "numeric" for field in fields]
        return [
            self.trial.as_input(value, field) if not number else None if value is None else float(*values_of(value))
            for value, field, number in zip(values, fields, numeric)
        ]

    # --- what happens

    def _connect(self) -> None:
        user = [self.history, *self.user_inputs]
        ranked = {"inputs": [self.most, *user], "outputs": self.ranking}
        of_history = [self.history, self.entries]
        self.add.click(self.on_add, [self.history, self.history_item, self.clicked], of_history, **HIDDEN)
        self.undo.click(self.on_undo, self.history, of_history, **HIDDEN)
        self.clear.click(self.on_clear, None, of_history, **HIDDEN)
        self.rank.click(self.on_rank, **ranked, **HIDDEN)
        for choice in [self.sample.input] + [self.blocks.load] * bool(self.trial.users):
            chosen = choice(self.on_user, self.sample, [*of_history, *self.user_inputs], **HIDDEN)
            chosen.then(self.on_rank, **ranked, **HIDDEN)
        self.changed_item.change(self.on_item, self.changed_item, [self.change_answer, *self.changed_inputs], **HIDDEN)
        changed = [self.changed_item, *user, *self.changed_inputs]
        self.change.click(self.on_change, changed, self.change_answer, **HIDDEN)
        self.new.click(self.on_new, [*user, *self.new_inputs], self.new_answer, **HIDDEN)
        self.why.click(self.on_why, [self.why_item, *user], self.why_answer, **HIDDEN)

    def _message(self, text: object, kind: str = "note") -> str:
        return self._framed(self.show.message(str(text), kind))

    @staticmethod
    def _framed(html: str) -> str:
        return f'<div class="flip">{html}</div>'

    def _entries(self, history: History) -> str:
        field = self.trial.history_field
        shown = [(self.trial.choice(key), clicked) for key, clicked in reversed(history)]
        return self._framed(self.show.history(shown, 0 if field is None else field.max_values))

    def on_search(self, words: str) -> dict:
        found = self.trial.search(words) if words.strip() else []
        label = "Item" if found or not words.strip() else "Item: none is called so"
        return gr.update(choices=found, value=found[0][1] if found else None, label=label)

    def on_add(self, history: History, chosen: str | None, clicked: int) -> tuple:
        try:
            key = self.trial.find(chosen)
        except ValueError as error:
            return history, self._message(error, "error") + self._entries(history)
        history = [*history, (key, clicked)]
        return history, self._entries(history)

    def on_undo(self, history: History) -> tuple:
        return history[:-1], self._entries(history[:-1])

    def on_clear(self) -> tuple:
        return [], self._entries([])

    def on_user(self, number: int | None) -> list:
        if number is None:
            return [gr.skip() for _ in range(2 + len(self.user_inputs))]
        values, history = self.trial.user(number)
        return [history, self._entries(history), *self._values(self.trial.ranker.user_fields, values)]

    def on_rank(self, most: int | None, history: History, *values) -> str:
        return self._answer(self._rank, most or self.top_k, history, values)

    def on_item(self, chosen: str | None) -> list:
        fields = self.trial.item_fields
        if not chosen:  # nothing is found by what was typed
            return [gr.skip() for _ in range(len(fields) + 1)]
        try:
            values = self.trial.item(self.trial.find(chosen))
        except ValueError as error:
            return [self._message(error, "error"), *(gr.skip() for _ in fields)]
        return [gr.skip(), *self._values(fields, values)]

    def on_change(self, chosen: str | None, history: History, *values) -> str:
        return self._answer(self._change, chosen, history, values)

    def on_new(self, history: History, *values) -> str:
        return self._answer(self._new, history, values)

    def on_why(self, chosen: str | None, history: History, *values) -> str:
        return self._answer(self._why, chosen, history, values)

    def _answer(self, function: Callable[..., str], *args) -> str:
        try:
            return self._framed(function(*args))
        except ValueError as error:
            return self._message(error, "error")

    def _rank(self, most: int, history: History, values: Sequence) -> str:
        ranking = self.trial.rank(self.trial.read(self.trial.ranker.user_fields, values), history)
        total = len(ranking.numbers)
        rows = self.trial.rows(ranking, range(min(int(most), total)), history)
        return self.show.ranking(rows, total, self.joint)

    def _change(self, chosen: str | None, history: History, values: Sequence) -> str:
        key, (user, item) = self.trial.find(chosen), self._read(values)
        before = self.trial.rank(user, history)
        after = self.trial.rank_with(user, history, item | {self.trial.ranker.key.name: key})
        return self._moved(before, after, key, history)

    def _new(self, history: History, values: Sequence) -> str:
        user, item = self._read(values)
        if all(value is None for value in item.values()):
            raise ValueError(f"Write at least the new item's {self.trial.label_field.wording}")
        key = self.trial.unused_key()
        after = self.trial.rank_with(user, history, item | {self.trial.ranker.key.name: key})
        return self._moved(None, after, str(key), history)

    def _why(self, chosen: str | None, history: History, values: Sequence) -> str:
        key, user = self.trial.find(chosen), self.trial.read(self.trial.ranker.user_fields, values)
        return self.show.why(self.trial.why(user, history, key), self.joint)

    def _read(self, values: Sequence) -> tuple[dict, dict]:
        users = len(self.user_inputs)
        return (
            self.trial.read(self.trial.ranker.user_fields, values[:users]),
            self.trial.read(self.trial.item_fields, values[users:]),
        )

    def _moved(self, before: Ranking | None, after: Ranking, key: str, history: History) -> str:
        one = [ranking and self.trial.rows(ranking, [ranking.place(key)])[0] for ranking in (before, after)]
        neighbours = self.trial.rows(after, self.trial.around(after, key), history)
        unknown = self.trial.unknown(after, key)
        return self.show.moved(*one, len(after.numbers), neighbours, self.joint, unknown)
