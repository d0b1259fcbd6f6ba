"""All faults, entered by importing the modules that describe them."""

from tests.chaos import (
    client_faults,
    database_faults,
    delivery_faults,
    memory_faults,
    process_faults,
    prompt_faults,
    redis_faults,
)
from tests.chaos.fault import FAULTS

__all__ = [
    "FAULTS",
    "client_faults",
    "database_faults",
    "delivery_faults",
    "memory_faults",
    "process_faults",
    "prompt_faults",
    "redis_faults",
]
