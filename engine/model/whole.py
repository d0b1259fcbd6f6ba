"""Loading a checkpoint as int8 with bitsandbytes, whole, onto one device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from engine.checkpoint.architecture import TEXT_HALF_KEYS
from engine.checkpoint.folder import Checkpoint
from engine.checkpoint.tensors import refuse_tensors
from engine.device import plain_dtype
from engine.int8.linear import ComputeMode, Int8Linear
from engine.interface import LoadInterruptedError, LoadProgress, ModelLoadError
from engine.layout.skeleton import int8_linears, int8_settings
from engine.model.loaded import Int8Model
from engine.quiet import quiet_libraries

_WEIGHTS_BAR = "Loading weights"


def load_int8(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    mode: ComputeMode,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> Int8Model:
    """Read, quantise and place every weight; a store that is int8 already is taken as it is.

    Raises:
        ModelLoadError: The weights cannot be read, or do not fit.
        LoadInterruptedError: should_stop() turned true between two tensors.
    """
    with quiet_libraries(), _weights_progress(on_progress, should_stop):
        model = _load_model(checkpoint, device)
        _take_over_linears(model, mode)
    return Int8Model(model=model.eval(), tokenizer=checkpoint.tokenizer, device=device)


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
                **({"key_mapping": TEXT_HALF_KEYS} if checkpoint.is_text_half else {}),
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


def _take_over_linears(model: Any, mode: ComputeMode) -> None:
    """Put our int8 linears, over the same weights, in the place of bitsandbytes'."""
    for name, linear in list(int8_linears(model)):
        ours = Int8Linear(linear.in_features, linear.out_features, mode=mode)
        weight: Any = linear.weight
        ours.weight = torch.nn.Parameter(weight.data, requires_grad=False)
        ours.SCB = weight.SCB
        if linear.bias is not None:
            ours.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
        model.set_submodule(name, ours)


def _quantization(config: Any) -> dict[str, Any]:
    """Empty for an int8 store, whose own settings transformers reads."""
    if getattr(config, "quantization_config", None) is not None:
        return {}
    return {"quantization_config": int8_settings(config)}


def _refuse_incomplete(checkpoint: Checkpoint, model: Any, report: dict[str, Any]) -> None:
    """What a checkpoint lacks, transformers fills with random numbers."""
    # a mismatched key comes with its two shapes
    mismatched = {
        str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ())
    }
    refuse_tensors(
        checkpoint.folder,
        missing=list(report.get("missing_keys", ())),
        misshapen=mismatched | _misshapen_linears(model),
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
