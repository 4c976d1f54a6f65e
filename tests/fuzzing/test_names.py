"""Hostile names through every writer and printer: shown whole, and as nothing but text."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console
from rich.progress import Progress

from spectralmoe_jax.ablation import tables
from spectralmoe_jax.escapes import csv_cell, drawn, html, latex, markdown, plain, printable
from spectralmoe_jax.evaluation.score_table import print_table
from spectralmoe_jax.inference.catalogue import Job, Outcome, print_failures
from spectralmoe_jax.reporting.page import rendered
from spectralmoe_jax.reporting.svg import Dots, Line, dot_chart, line_chart
from spectralmoe_jax.training.logging import ProgressReport
from tests.fuzzing.outcome import try_all
from tests.hostile_names import NAMES, by_seed, commands, shown

# what LaTeX prints for each command of a table, by the definitions of its kernel
LATEX = {
    r"\textbackslash": "\\", r"\textasciitilde": "~", r"\textasciicircum": "^", r"\textless": "<",
    r"\textgreater": ">", r"\textbar": "|", r"\textasciigrave": "`", r"\textquotedbl": '"',
    **{f"\\{mark}": mark for mark in "&%$#_{}"},
}  # fmt: skip
KINDS = ("paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item")
BLOCKS = {
    "inline",
    *(f"{kind}_{end}" for kind in KINDS
      for end in ("open", "close")),
}  # fmt: skip
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[{}]|[^\\{}]", re.DOTALL)


@pytest.fixture(params=[(0, 60), pytest.param((1, 500), marks=pytest.mark.slow)], ids=["quick", "slow"])
def names(request):
    seed, count = request.param
    return [(repr(name)[:60], name) for name in (*NAMES, *by_seed(count, seed))]


def typeset(text: str) -> str:
    """What LaTeX prints of a cell; fails at what is no plain text to it."""
    printed, depth = "", 0
    for token in TOKEN.findall(text):
        if token.startswith("\\"):
            printed += LATEX[token]  # an unknown command is an error
        elif token in "{}":
            depth += 1 if token == "{" else -1
            assert depth >= 0
        else:
            assert token not in "&%$#_^~\n", f"{token} is a command"
            printed += token
    assert not depth
    assert not re.search("--|``|''", re.sub(r"\{\}", "\0", text).replace("''", "")), "a ligature"
    return printed


def test_one_line_without_commands(names, record_property):
    def is_exact(name, text):
        return text == shown(name) and not commands(text) and "\n" not in text

    try_all(names, printable, is_exact, record_property, "names, one line")


def test_terminal(names, record_property):
    def read(name):
        out = io.StringIO()
        report = {
            "domains": {name: {"iou": {name: 0.5}, "miou": 0.5}},
            "all": {"iou": {name: 0.5}, "miou": 0.5, "overall_accuracy": 0.5}, "classes": [name],
            "mean_miou": 0.5,
        }  # fmt: skip
        console = Console(file=out, width=20_000, force_terminal=False)
        print_table(report, name, console)
        print_failures([Outcome(Job(name, None), "failed", name)], console)
        with ProgressReport(0, 1, 1, console) as progress:
            progress.print(name)
        with Progress(console=console, disable=True), console.status(plain(name)):
            pass
        return out.getvalue()

    def is_exact(name, text):
        return text.count(shown(name).strip() or "\n") >= 6 and not commands(text)

    try_all(names, read, is_exact, record_property, "names, terminal")


def results_of(name):
    run = {
        "seed": 0, "miou": 0.5, "mean_miou": 0.4, "overall_accuracy": 0.6, "trainable": 10,
        "domains": {name: 0.5, "other": 0.4}, "iou": {name: 0.1},
    }  # fmt: skip
    lost = {"seed": 1, "error": name}
    stats = {"mean": 0.5, "std": 0.1}
    found = {"runs": [run, lost], "miou": stats, "difference": {"mean": -0.01, "interval": [-0.02, 0.01]}}
    return {
        "title": name, "base": "b", "reference": name, "seeds": [0, 1], "images": 3, "classes": [name],
        "bootstrap": {"level": 0.95}, "variants": {name: found},
    }  # fmt: skip


def test_markdown(names, record_property):
    reader = MarkdownIt("gfm-like", {"linkify": False})

    def read(name):
        return tables.markdown_table(results_of(name))

    def is_exact(name, text):
        tokens = reader.parse(text)
        kinds = {token.type for token in tokens}
        pairs = zip(tokens[1:], tokens, strict=False)
        cells = [token for token, before in pairs if before.type in ("th_open", "td_open")]
        inner = {child.type for cell in tokens for child in cell.children or ()}
        said = [re.sub(" +", " ", "".join(child.content for child in cell.children)) for cell in cells]
        name = re.sub(" +", " ", shown(name))
        width = len(cells) // 2
        return (
            len(cells) == 2 * width
            and inner <= {"text", "text_special", "strong_open", "strong_close"}
            and kinds <= BLOCKS
            and said[5].strip() == re.sub(" +", " ", f"mIoU {name}").strip()
            and said[width].strip("* ") == name.strip("* ")
            and not commands(text)
        )

    try_all(names, read, is_exact, record_property, "names, Markdown")


def test_latex(names, record_property):
    def read(name):
        return tables.latex_table(results_of(name))

    def is_exact(name, text):
        comment, *lines = text.split("\n")
        rows = [line.removesuffix(r" \\") for line in lines if line.endswith(r" \\")]
        assert comment.startswith("% ")
        assert len(lines) == 8
        assert len(rows) == 2
        headings, cells = (re.split(r"(?<!\\) & ", row) for row in rows)
        assert len(headings) == len(cells)
        assert not any(row.lstrip().startswith(("[", "*")) for row in rows)
        assert cells[-2:] == ["$-1.00$", "$-2.00$ to $+1.00$"]
        return typeset(cells[0]) == shown(name) and typeset(headings[5]) == f"mIoU {shown(name)}"

    try_all(names, read, is_exact, record_property, "names, LaTeX")


def test_csv(names, record_property):
    def read(name):
        results = results_of(name)
        return tables.csv_table(results), tables.csv_of_runs(results)

    def is_exact(name, texts):
        short, runs = (list(csv.reader(io.StringIO(text))) for text in texts)
        for text, rows in zip(texts, (short, runs), strict=True):
            assert text.count("\n") == len(rows)
        cells = [short[1][0], runs[1][0], runs[2][-1]]
        for cell in cells:
            number = re.fullmatch(r"[+-]?\d+(\.\d+)?|-", cell)
            assert number or not cell.strip().startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
        assert short[1][-2:] == ["-1.00", "-2.00 to +1.00"]
        return all(cell in (shown(name), f"'{shown(name)}") for cell in cells)

    try_all(names, read, is_exact, record_property, "names, CSV")


class Reader(HTMLParser):
    """Collects the text, the tags and the attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self.said = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [(name, value) for name, value in attributes]

    def handle_data(self, data):
        self.said += data


def test_html_and_svg(names, record_property):
    plain_tags = {}

    def read(name):
        charts = line_chart([Line(name, [0, 1], [0, 1])], name, name) + dot_chart(
            [Dots(name, [0.5], True)], name, name
        )
        page = rendered(
            "viewer.html", title=name, shown=name, command="view", run=name, shares=[1.0],
            about={"layers": [{"name": name}]}, names=[name], palette=[(0, 0, 0)], expert_colours=[(0, 0, 0)],
            has_experts=True,
        )  # fmt: skip
        return charts, page, f'<p title="{html(name)}">{html(name)}</p>'

    for key, text in enumerate(read("wood")):
        plain_tags[key] = Reader(text).tags

    def is_exact(name, texts):
        for key, text in enumerate(texts):
            found = Reader(text)
            assert found.tags == plain_tags[key]
            assert not [c for c in commands(text) if c not in "\r"]
            assert shown(name) in found.said
            assert not any(attribute.startswith("on") for attribute, _ in found.values)
        return Reader(texts[2]).values == [("title", shown(name))]

    try_all(names, read, is_exact, record_property, "names, HTML and SVG")


def test_pictures(names, record_property):
    from matplotlib.cbook import is_math_text

    def is_exact(name, text):
        assert is_math_text(text) is False or "$" not in name
        return text.replace(r"\$", "$").removeprefix(" " if shown(name).startswith("_") else "") == shown(
            name
        )

    try_all(names, drawn, is_exact, record_property, "names, pictures")


def test_metadata_of_a_model_card(names, record_property):
    from huggingface_hub import ModelCard, ModelCardData

    def read(name):
        return f"---\n{ModelCardData(license_name=printable(name)).to_yaml()}\n---\n\n{markdown(name)}\n"

    def is_exact(name, text):
        front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n")) or {}
        stored = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
        return front.get("license_name", "") == stored.get("license_name", "") == shown(name)

    try_all(names, read, is_exact, record_property, "names, model card")


def test_a_number_stays_a_number():
    for cell in ("+1.20", "-0.5", "12", "-", "+0.10 to +0.50", 3, None, 0.5):
        assert csv_cell(cell) == cell
    assert json.dumps(csv_cell("-1 to =2")) == json.dumps("'-1 to =2")
    assert typeset(latex("a--b")) == "a--b"
