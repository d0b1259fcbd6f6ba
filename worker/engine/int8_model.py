"""Loading a checkpoint as int8 with bitsandbytes, whole, onto one device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import LoadInterruptedError, LoadProgress, ModelLoadError
from worker.engine.library_noise import quiet_libraries
from worker.engine.model_layout import ModelLayout
from worker.engine.model_skeleton import int8_settings
from worker.engine.weight_passes import ResidentPasses, WeightPasses

DeviceChoice = Literal["auto", "cuda", "cpu"]

_WEIGHTS_BAR = "Loading weights"


@dataclass(kw_only=True)
class Int8Model:
    """A model in evaluation mode, its tokenizer, and how its forward passes are run.

    Attributes:
        layout: Its tensors, where it was loaded by them.
        free: Ends what it holds besides memory, such as threads.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    passes: WeightPasses = field(default_factory=ResidentPasses)
    layout: ModelLayout | None = None
    free: Callable[[], None] = lambda: None

    @property
    def parameter_count(self) -> int:
        if self.layout is not None:
            return self.layout.parameter_count
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Of parameters, buffers and int8 scales, wherever they are; a tied head counts once."""
        if self.layout is not None:
            return self.layout.int8_bytes
        tensors = [*self.model.parameters(), *self.model.buffers()]
        scales = (getattr(parameter, "SCB", None) for parameter in self.model.parameters())
        tensors += [scale for scale in scales if isinstance(scale, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def choose_device(choice: DeviceChoice) -> torch.device:
    """The device to load on.

    Raises:
        ModelLoadError: CUDA was asked for and there is none.
    """
    if choice == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if choice == "cuda":
        raise ModelLoadError(
            "the worker was told to use CUDA, and torch sees no CUDA device; install a driver "
            "and a CUDA build of torch, or set the device to auto or cpu"
        )
    return torch.device("cpu")


def load_int8(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> Int8Model:
    """Read, quantise and place every weight; a store that is int8 already is taken as it is.

    Raises:
        ModelLoadError: The weights or the tokenizer cannot be read, or do not fit.
        LoadInterruptedError: should_stop() turned true between two tensors.
    """
    with quiet_libraries(), _weights_progress(on_progress, should_stop):
        tokenizer = load_tokenizer(checkpoint)
        model = _load_model(checkpoint, device)
    return Int8Model(model=model.eval(), tokenizer=tokenizer, device=device)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer beside the weights.

    Raises:
        ModelLoadError: There is none, or it is damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(
            str(checkpoint.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelLoadError(
            f"the tokenizer in {checkpoint.folder} cannot be loaded ({error}); the folder needs "
            "tokenizer.json and tokenizer_config.json, copy or download them again"
        ) from error


def _load_model(checkpoint: Checkpoint, device: torch.device) -> Any:
    try:
        with warnings.catch_warnings():
            # torch's and bitsandbytes' deprecations among themselves
            warnings.simplefilter("ignore")
            model, report = checkpoint.model_class.from_pretrained(
                str(checkpoint.folder),
                config=checkpoint.config,
                device_map={"": 0 if device.type == "cuda" else "cpu"},
                dtype=plain_dtype(device),
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                # both are refused below, with their names
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **_quantization(checkpoint.config),
            )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelLoadError(_does_not_fit(checkpoint, device)) from error
    except UnpicklingError as error:
        raise ModelLoadError(
            f"a .bin file in {checkpoint.folder} is damaged or holds more than tensors, and "
            "code in a checkpoint is never run; use the model's safetensors files"
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, ImportError, EOFError) as error:
        raise ModelLoadError(
            f"the weights in {checkpoint.folder} cannot be loaded: {error}"
        ) from error
    _refuse_incomplete(checkpoint, model, report)
    return model


def plain_dtype(device: torch.device) -> torch.dtype:
    """What is not int8 is kept in: float16 on a GPU, float32 on a CPU.

    float16 and not bfloat16, which a T4 emulates. On a CPU both took 16 ms a
    step on four layers of width 512, and float32 cannot overflow.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def _quantization(config: Any) -> dict[str, Any]:
    """Empty for an int8 store, whose own settings transformers reads."""
    if getattr(config, "quantization_config", None) is not None:
        return {}
    return {"quantization_config": int8_settings()}


def _refuse_incomplete(checkpoint: Checkpoint, model: Any, report: dict[str, Any]) -> None:
    """What a checkpoint lacks, transformers fills with random numbers."""
    # a mismatched key comes with its two shapes
    mismatched = {
        str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ())
    }
    faults = (
        ("lacks", sorted(report.get("missing_keys", ()))),
        ("has another shape for", sorted(mismatched | _misshapen_linears(model))),
    )
    for what, names in faults:
        if names:
            raise ModelLoadError(
                f"the checkpoint in {checkpoint.folder} {what} {len(names)} tensors of its own "
                f"architecture, {names[0]} first; config.json and weights do not belong together, "
                "copy or download the folder again"
            )


def _misshapen_linears(model: Any) -> set[str]:
    """Int8 weights of another shape than their layer.

    transformers 5.17 checks the shapes of all but quantised tensors.
    """
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if hasattr(module, "in_features")
        and tuple(module.weight.shape) != (module.out_features, module.in_features)
    }


def _does_not_fit(checkpoint: Checkpoint, device: torch.device) -> str:
    files_gib = sum(file.stat().st_size for file in checkpoint.weight_files) / 2**30
    where = "this box's memory"
    if device.type == "cuda":
        where = f"the GPU's {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB"
    return (
        f"the model does not fit in {where}: its files are {files_gib:.1f} GiB, and int8 takes "
        "about half of a float16 file and a quarter of a float32 one; free memory that other "
        "programs hold, or choose a smaller model"
    )


@contextmanager
def _weights_progress(
    on_progress: Callable[[LoadProgress], None], should_stop: Callable[[], bool]
) -> Iterator[None]:
    """Hear transformers' bar over the weights, and draw none of its bars."""
    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None:  # an older transformers: no progress, but no bars either
        was_enabled = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            if was_enabled:
                transformers_logging.enable_progress_bar()
        return

    def hook(_factory: object, args: tuple[Any, ...], options: dict[str, Any]) -> _Bar:
        is_weights = options.get("desc") == _WEIGHTS_BAR
        items = args[0] if args else options.get("iterable", ())
        return _Bar(items, on_progress if is_weights else None, should_stop)

    previous = set_hook(hook)
    try:
        yield
    finally:
        set_hook(previous)


class _Bar:
    """Stands in for a tqdm bar: reports instead of drawing."""

    def __init__(
        self,
        items: Iterable[Any],
        on_progress: Callable[[LoadProgress], None] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._items = items
        self._on_progress = on_progress
        self._should_stop = should_stop

    def __iter__(self) -> Iterator[Any]:
        items = list(self._items)
        for done, item in enumerate(items, start=1):
            if self._should_stop():
                raise LoadInterruptedError
            yield item
            if self._on_progress is not None:
                self._on_progress(
                    LoadProgress(stage="weights", done=done, total=len(items), unit="tensors")
                )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_exception: object) -> None:
        return None

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return _do_nothing


def _do_nothing(*_args: object, **_options: object) -> None:
    """update(), set_description(), close(), ... of a bar that is not drawn."""
