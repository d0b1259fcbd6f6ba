"""Train the four tiny checkpoints on the project's own documentation.

    python -m examples.train_checkpoints [--only tiny-bloom] [--minutes 2.5]

They are overfitted on purpose: small enough to commit, and yet they answer a
documentation's opening with its words, stop by themselves and lose something
measurable when the int8 arithmetic is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from examples.checkpoint_page import REPORT_FILE, TrainingReport, write_page
from examples.documentation import (
    REPOSITORY,
    documentation_files,
    expand_folders,
    read_paragraphs,
)
from examples.tiny_families import FAMILIES, TinyFamily
from examples.training_rows import batches_by_length, collate, perplexity, training_rows

SEED = 20
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 0.05  # of the training
CHECKPOINTS = REPOSITORY / "examples" / "checkpoints"


def train(
    family: TinyFamily, model: Any, tokenizer: Any, paragraphs: Sequence[str], *, minutes: float
) -> tuple[int, float]:
    """Train with AdamW, a short warm-up and a cosine to zero.

    The schedule ends with the family's passes or with the minutes, whichever
    comes first: on a quick machine a run can be repeated exactly, on a slow or
    busy one it still ends in time with the learning rate brought down.

    Returns:
        The steps made and the mean loss of the last fifty.
    """
    random = Random(SEED)  # noqa: S311 - orders text, guards nothing
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    model.train()
    started = time.monotonic()
    steps = 0
    losses: deque[float] = deque([math.log(len(tokenizer))], maxlen=50)
    for completed_passes in range(family.passes):
        rows = training_rows(
            paragraphs, tokenizer, is_encoder_decoder=family.is_encoder_decoder, random=random
        )
        batches = batches_by_length(rows, tokens_per_batch=family.tokens_per_batch, random=random)
        for index, batch in enumerate(batches):
            spent = (time.monotonic() - started) / (60 * minutes * family.time_share)
            if spent >= 1:
                return steps, math.fsum(losses) / len(losses)
            done = (completed_passes + index / len(batches)) / family.passes
            for group in optimizer.param_groups:
                group["lr"] = PEAK_LEARNING_RATE * _schedule(max(done, spent))
            loss = model(**collate(batch, pad_token_id=tokenizer.pad_token_id or 0)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            steps += 1
        if completed_passes % 5 == 4:
            print(
                f"{family.alias}: pass {completed_passes + 1:3d}  loss {losses[-1]:.3f}", flush=True
            )
    return steps, math.fsum(losses) / len(losses)


def _schedule(progress: float) -> float:
    if progress < WARM_UP:
        return (progress + 0.1 * WARM_UP) / (1.1 * WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the weights in float16 and the tokenizer, in place of what was there.

    Raises:
        OverflowError: A weight is beyond float16.
    """
    model.half().eval()
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise OverflowError(f"{name} does not fit into float16")
    model.generation_config.do_sample = False
    model.generation_config._from_model_config = False
    # Beside its place first, so that nobody meets half a checkpoint there.
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    # Without the indentation tokenizer.json takes half the room.
    tokenizer.backend_tokenizer.save(str(new / "tokenizer.json"), pretty=False)
    if model.config.model_type == "t5":
        _declare_untied_head(new / "config.json")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _declare_untied_head(config_file: Path) -> None:
    # transformers 5 writes `true` for every T5; files of the T5 1.1 line, as
    # flan-ul2 is, say `false`, which also tells that the decoder's output is not scaled.
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = False
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Any, Any]:
    """The saved model, in float32, and its tokenizer, without asking the network."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto = AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def complete(model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int = 48) -> str:
    """The greedy continuation of one prompt."""
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        output = model.generate(
            **encoded,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or 0,
        )[0]
    prompt_tokens = 0 if model.config.is_encoder_decoder else encoded["input_ids"].shape[1]
    return str(tokenizer.decode(output[prompt_tokens:], skip_special_tokens=True))


def make_checkpoint(
    alias: str,
    paragraphs: Sequence[str],
    folder: Path,
    *,
    text: str,
    minutes: float,
) -> TrainingReport:
    """Train one family's checkpoint, save it, and measure what was saved."""
    family = next(family for family in FAMILIES if family.alias == alias)
    torch.manual_seed(SEED)
    tokenizer = family.make_tokenizer(paragraphs)
    model = family.make_model(len(tokenizer))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{family.alias}: {parameters:,} parameters, {len(paragraphs)} paragraphs", flush=True)
    started = time.monotonic()
    steps, final_loss = train(family, model, tokenizer, paragraphs, minutes=minutes)
    seconds = time.monotonic() - started
    save(model, tokenizer, folder)

    model, tokenizer = load(folder)
    prompt = "tgp-jobs submit"
    report = TrainingReport(
        alias=family.alias,
        parameters=parameters,
        vocabulary=len(tokenizer),
        text=text,
        text_bytes=sum(len(paragraph.encode()) for paragraph in paragraphs),
        steps=steps,
        seconds=round(seconds, 1),
        final_loss=round(final_loss, 3),
        perplexity=round(
            perplexity(model, tokenizer, paragraphs, is_encoder_decoder=family.is_encoder_decoder),
            2,
        ),
        sample_prompt=prompt,
        sample_completion=complete(model, tokenizer, prompt).strip(),
    )
    report_text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    (folder / REPORT_FILE).write_text(report_text, encoding="utf-8")
    print(
        f"{alias}: {steps} steps in {seconds:.0f} s: loss {final_loss:.3f}, perplexity of the saved"
        f" weights {report.perplexity}\n  {prompt!r} -> {report.sample_completion!r}",
        flush=True,
    )
    return report


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_checkpoints",
        description="Train the tiny checkpoints on the project's documentation.",
    )
    parser.add_argument("--output", type=Path, default=CHECKPOINTS, help="folder to write into")
    parser.add_argument(
        "--only",
        action="append",
        choices=[family.alias for family in FAMILIES],
        help="make this one; may be repeated (default: all)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=2.5,
        help="longest training of one checkpoint; tiny-flan takes up to 1.75 times as long",
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="checkpoints trained at the same time"
    )
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        help="files or folders to learn instead of the documentation; of .py files the docstrings",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    if arguments.text:
        files = expand_folders(arguments.text)
        text = ", ".join(str(path) for path in arguments.text)
    else:
        files = documentation_files()
        text = "README.md, CHANGELOG.md and docs/**/*.md"
    paragraphs = read_paragraphs(files)
    chosen = [each for each in FAMILIES if arguments.only is None or each.alias in arguments.only]
    # The longest first, so that no core is left alone with it at the end. Spawned,
    # since a forked torch may hang on the locks of its parent's threads.
    with ProcessPoolExecutor(
        arguments.processes, mp_context=get_context("spawn"), initializer=_prepare_process
    ) as pool:
        made = [
            pool.submit(
                make_checkpoint,
                family.alias,
                paragraphs,
                arguments.output / family.alias,
                text=text,
                minutes=arguments.minutes,
            )
            for family in sorted(chosen, key=lambda family: -family.time_share)
        ]
        for future in made:
            future.result()
    write_page(arguments.output)


def _prepare_process() -> None:
    # On matrices this small a second thread costs more than it brings, and on a
    # busy machine ten times as much: the cores take one checkpoint each instead.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Its messages here are of T5's untied head and GPT-2's default loss: both are meant.
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    main()
