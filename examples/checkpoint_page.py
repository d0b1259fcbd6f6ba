"""What was measured while a tiny checkpoint was made, and the page that shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from examples.tiny_families import FAMILIES

REPORT_FILE = "training.json"

PAGE = """\
# The tiny checkpoints

One per family of models, each with a tokenizer trained on the same text, in the
layout of the Hugging Face hub: `AutoTokenizer` and `AutoModel...` load them from
their folder. They are in the catalogue, so `--model tiny-bloom` is enough. They
make the demo print words and give the tests weights that mean something; they
know nothing but the text below, which they nearly have by heart.

| checkpoint | stands for | with | parameters | tokens in the vocabulary | KiB on disk | \
steps | seconds of training | perplexity |
|---|---|---|---|---|---|---|---|---|
{rows}

Weights are float16. The perplexity is that of the saved weights in float32 on the
text they were trained on, so it says that they learned, not how well they would
do elsewhere; for the encoder-decoder it is that of each paragraph's second half
given the first.

Text: {texts}.

Made by

    python -m examples.train_checkpoints

which writes this page from what it measured. `--only NAME` makes one again,
`--text FILE_OR_FOLDER...` uses other text, `--minutes` is the longest training of
one checkpoint (tiny-flan gets more of it, since only what its decoder says is
learned from). The run is seeded.

What they say to an opening, greedily:

{samples}
"""


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What was measured while one checkpoint was made; its training.json."""

    alias: str
    parameters: int
    vocabulary: int
    text: str
    text_bytes: int
    steps: int
    seconds: float
    final_loss: float
    perplexity: float
    sample_prompt: str
    sample_completion: str


def write_page(output: Path) -> None:
    """Describe every checkpoint in the folder from its own training.json."""
    rows: list[str] = []
    samples: list[str] = []
    texts: set[str] = set()
    for family in FAMILIES:
        folder = output / family.alias
        if not (folder / REPORT_FILE).is_file():
            continue
        report = TrainingReport(**json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))
        size_kib = sum(path.stat().st_size for path in folder.iterdir()) / 1024
        rows.append(
            f"| {family.alias} | {family.relative} | {family.trait} | {report.parameters:,} |"
            f" {report.vocabulary} | {size_kib:,.0f} | {report.steps} | {report.seconds:.0f} |"
            f" {report.perplexity} |"
        )
        completion = " ".join(report.sample_completion.split())
        samples.append(f"- {family.alias}: `{report.sample_prompt}` -> `{completion}`")
        texts.add(f"{report.text} ({report.text_bytes / 1024:.0f} KiB of paragraphs)")
    page = PAGE.format(
        rows="\n".join(rows), samples="\n".join(samples), texts="; ".join(sorted(texts))
    )
    (output / "README.md").write_text(page, encoding="utf-8")
