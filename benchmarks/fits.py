"""What fits where: docs/fits.md, made from the planner.

    python -m benchmarks.fits           # print the page
    python -m benchmarks.fits --write   # put it in its place

Nothing is measured here: the page holds the planner's predictions, and a test
compares it with what this program prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.layout.blocks import config_of_shape
from engine.plan.demands import ModelDemands, Workload
from engine.plan.from_layout import demands_of_config
from engine.plan.machine import CPU_MARGIN_BYTES
from engine.plan.plan import Budgets, CannotRunError, Plan, Tier
from engine.plan.rates import CPU, GIB, T4
from engine.plan.search import make_plan

PAGE = Path(__file__).parents[1] / "docs" / "fits.md"
MODELS = ("bloom-7b1", "cerebras-gpt-13b", "flan-ul2", "gpt-neox-20b")
WORKLOAD = Workload(prompt_tokens=128, new_tokens=128)
DISK_BYTES = 100 * GIB
TIERS: tuple[Tier, ...] = ("resident", "ram", "disk")


@dataclass(frozen=True, kw_only=True)
class Box:
    """A machine; gpu_gib is what CUDA leaves to a program, None without a card."""

    name: str
    gpu_gib: float | None
    ram_gib: float

    @property
    def budgets(self) -> Budgets:
        # A card's figure is what is usable already, so its margin is off it.
        return Budgets(
            gpu_bytes=None if self.gpu_gib is None else int(self.gpu_gib * GIB),
            cpu_bytes=int(self.ram_gib * GIB) - CPU_MARGIN_BYTES,
            disk_bytes=DISK_BYTES,
        )


BOXES = (
    Box(name="A T4 in a free notebook: 14.5 GiB, 12.7 GiB of RAM", gpu_gib=14.5, ram_gib=12.7),
    Box(name="A T4 with 32 GiB of RAM: 14.5 GiB", gpu_gib=14.5, ram_gib=32),
    Box(name="A desktop: a card of 8 GiB, 16 GiB of RAM", gpu_gib=7.0, ram_gib=16),
    Box(name="No GPU: 16 GiB of RAM", gpu_gib=None, ram_gib=16),
)
HEADINGS = ("model", "resident", "from RAM", "from disk", "rows", "tokens/s", "bound by")
INTRODUCTION = f"""\
# What fits where

**Everything on this page is predicted, not measured.** The planner computes it from the models' \
shapes and from the speed of a T4's link, disk and chip, as FlexGen's authors fitted them \
(12.89 GiB/s from RAM to the GPU, 0.473 GiB/s from disk). `tgp-jobs plan MODEL` does the same \
for your machine.

Rows have {WORKLOAD.prompt_tokens} prompt tokens and {WORKLOAD.new_tokens} new ones, a shard has \
{WORKLOAD.shard_rows}. Of the RAM, {CPU_MARGIN_BYTES / GIB:g} GiB are left to the worker itself. \
The card of 8 GiB is planned with 7.0, because a desktop's display takes some of it; its link and \
chip are taken for a T4's. Sizes count blocks: a layer, the embedding, the head, or the norms.
"""
CLOSING = """\
How to read it:

- **resident** blocks stay on the processor that computes; the others are copied to it, or read \
from disk, once a step; an encoder's once a micro-batch.
- **rows** are generated together. A step with streamed blocks takes as long for many rows as for \
one, so a plan often keeps fewer blocks resident to make room for more rows.
- **bound by** is what a step waits for. Where it is the disk, more RAM helps most.
- A T4's chip is counted with its float16 rates. We have not timed int8 on one.
- Without a GPU the constants are of two cores of one server, so those figures are the roughest.

This page is made by `python -m benchmarks.fits --write`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_sections(), CLOSING])


def _sections() -> Iterator[str]:
    models = {on_gpu: _demands(on_gpu=on_gpu) for on_gpu in (True, False)}
    for box in BOXES:
        yield f"## {box.name}\n"
        yield _line(HEADINGS)
        yield _line(["---"] * len(HEADINGS))
        for model in models[box.gpu_gib is not None]:
            yield _line(_cells(model, box))
        yield ""


def _demands(*, on_gpu: bool) -> list[ModelDemands]:
    return [demands_of_config(config_of_shape(name), name, on_gpu=on_gpu) for name in MODELS]


def _cells(model: ModelDemands, box: Box) -> list[str]:
    throughputs = CPU if box.gpu_gib is None else T4
    try:
        plan = make_plan(model, WORKLOAD, box.budgets, throughputs)
    except CannotRunError as error:
        return [f"`{model.name}`", *["-"] * 5, str(error)]
    return [
        f"`{model.name}`",
        *(str(len(plan.blocks_at(tier))) for tier in TIERS),
        str(plan.rows),
        _speed(plan),
        plan.limit,
    ]


def _speed(plan: Plan) -> str:
    """Two digits or three, as many as a prediction deserves."""
    speed = plan.prediction.tokens_per_second
    return f"{speed:.1f}" if speed < 10 else f"{speed:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} in docs/")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
