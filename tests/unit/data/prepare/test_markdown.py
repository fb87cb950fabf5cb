"""What others have written is shown as text in cards, tables and pictures."""

import re

import pytest
import yaml
from huggingface_hub import DatasetCard

from flip_ctr import FlipField
from flip_ctr.data.prepare.dataset_card import dataset_card
from flip_ctr.data.prepare.figures import pyplot
from flip_ctr.data.prepare.markdown import code, fenced, link, markdown_table, plain, prose
from flip_ctr.data.readers.dataset_schema import DatasetSchema

# a name that is markup, HTML, a link, an end of front matter, code, a row of a table, and the start of a heading
ODD = "# x\n---\n<script>alert(1)</script> [x](javascript:alert(1)) ![y](http://a/b.png) `c` | *d* _e_ ~~f~~"
ODD += " &lt; $x^2$\u202e"
# what Markdown would read, where a sign is not escaped
MARKUP = re.compile(r"<|(?<!\\)(?:[`*|~\]\[]|!\[)|^#", re.MULTILINE)


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text).replace("&lt;", "<").replace("&amp;", "&")


@pytest.mark.parametrize(
    "text", [ODD, "a | b", "**bold**", "1. one", "- one", "> one", "=====", "a_b", "_a_", "C&A", "&copy;", "\\"]
)
def test_plain_text_shows_what_was_written(text):
    line = plain(text)
    assert not MARKUP.search(line) and "\n" not in line and "\u202e" not in line
    assert unescaped(line) == " ".join(text.replace("\u202e", " ").split())


@pytest.mark.parametrize("text", ["MovieLens-100K", "my_clicks (2019), rows > 4", "Amélie", "a.b-c", "10 rows", "0.02"])
def test_what_is_no_markup_stays_as_it_is(text):
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"), [("a", "`a`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("a\nb", "`a b`")]
)
def test_code_has_fences_that_it_does_not_hold(text, shown):
    assert code(text) == shown
    assert fenced(f"a\n```\n{text}", "bibtex").splitlines()[0] == "````bibtex"


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("https://a.b/c?d=e#f", "[x](https://a.b/c?d=e#f)"),
        ("LICENSE", "[x](LICENSE)"),
        ("mailto:a@b.c", "[x](mailto:a@b.c)"),
        ("https://a.b/c d)[y](z<", "[x](https://a.b/c%20d%29%5By%5D%28z%3C)"),
        ("javascript:alert(1)", "x"),
        ("JavaScript:alert(1)", "x"),
        (" java\nscript:alert(1)", "[x](java%20script:alert%281%29)"),
        ("data:text/html,x", "x"),
        ("//evil.example", "x"),
        ("http://[", "x"),
        ("", "x"),
    ],
)
def test_links_lead_where_a_reader_may_follow(target, shown):
    assert link("x", target) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`stars >= 4` is a click", "`stars >= 4` is a click"),
        ("`a<b` <b> and `` c`d `` *e*", "`a<b` &lt;b> and `` c`d `` \\*e\\*"),
        ("a ` b", "a \\` b"),
        ("`", "\\`"),
    ],
)
def test_a_sentence_quotes_as_code(text, shown):
    assert prose(text) == shown


def test_a_cell_ends_no_table():
    table = markdown_table(["a|b", "<b>"], [["x\ny", "`c|d` e\\|f"], [1234, "`a<b` <i>"]])
    assert table.splitlines()[0] == "| a\\|b | &lt;b> |"
    assert table.splitlines()[2:] == ["| x y | `c\\|d` e\\|f |", "| 1,234 | `a<b` &lt;i> |"]


def test_a_dataset_card_of_odd_names():
    fields = [FlipField("<b>|`x", entity="[u](javascript:1)", key=True, wording=ODD), FlipField("y\n---\nz: 1")]
    of_split = {"rows": 1, "clicks": 1, "click_rate": 1.0}
    of_split["fields"] = {one.name: {"values": 1, "nulls": 0, "unseen_share": 0.0} for one in fields}
    report = {"rows_read": 1, "dropped": {ODD: 0}, "malformed": 0, "rows_kept": 1, "prompt_lengths": {}}
    report |= {"splits": {"train": of_split, "test": of_split}, "entity_prompts": {}}
    protocol = {"label_rule": ODD, "split": "random", "split_rule": ODD}
    schema = DatasetSchema("odd", fields, user_column=None, protocol=protocol)
    facts = {"title": ODD, "licence": plain(ODD), "licence_link": "x: y\n---\n# z", "citation": "```\nz"}
    card = dataset_card(schema, report, facts)
    body = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", card.split("\n---\n", 1)[1])  # without code
    assert "<" not in body and "](javascript" not in body.replace("\\](", "") and "````bibtex" in card
    assert card.count("\n---\n") == 1 and [line for line in card.splitlines() if line.startswith("# ")] == [
        "# " + plain(ODD)
    ]
    front = yaml.safe_load(card.removeprefix("---\n").split("\n---\n")[0])
    assert (front["pretty_name"], front["license_link"]) == (ODD, facts["licence_link"])
    assert DatasetCard(card).data.to_dict()["pretty_name"] == ODD


def test_dollars_in_pictures_are_text(tmp_path):
    plt = pyplot()
    figure, axis = plt.subplots()
    axis.set_title("$\\frac{$ costs $5")  # no formula that there is
    figure.savefig(tmp_path / "a.png")
    plt.close(figure)
