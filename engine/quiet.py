"""Keeping the libraries' bars and advice off the worker's standard error.

They speak to a person at a prompt; what matters of it the engine reports itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

# bitsandbytes warns in every linear of every step that float32 activations
# are quantised through float16, and at the first load that optional 4-bit CPU
# kernels are not installed.
_BITSANDBYTES_LOGGERS = (
    "bitsandbytes.autograd._functions",
    "bitsandbytes.backends.cpu.ops",
    "bitsandbytes.cextension",
    "bitsandbytes.nn.modules",
)


def _is_an_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let through only errors of transformers and bitsandbytes, then restore."""
    verbosity = transformers_logging.get_verbosity()
    loggers = [logging.getLogger(name) for name in _BITSANDBYTES_LOGGERS]
    transformers_logging.set_verbosity_error()
    for logger in loggers:
        logger.addFilter(_is_an_error)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger in loggers:
            logger.removeFilter(_is_an_error)
