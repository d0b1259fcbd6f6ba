from __future__ import annotations

import pytest

from jobs.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("14.5GiB", 29 * 2**29),
        ("10GB", 10**10),
        ("512MiB", 2**29),
        ("1kb", 1000),
        (" 2 TiB ", 2**41),
        ("0B", 0),
        ("0.1GB", 10**8),
    ],
)
def test_a_number_with_a_unit_is_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["14", "", "GiB", "14 Gigs", "-1GiB", "1e3GiB", "nanGiB", "1.GB"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size; write a number and a unit, such as"):
        parse_size(text)
