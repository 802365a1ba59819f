"""Sizes and limits as they are written."""

import pytest

from rules.units import OFF, Limit, parse_limit, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("10 MB", 10_000_000), ("10 Mo", 10_000_000), ("10 MiB", 10_485_760), ("20 kB", 20_000), ("20KB", 20_000)),
        *(("512 B", 512), ("1.5 MB", 1_500_000), ("1,5 Mo", 1_500_000), ("2 GB", 2_000_000_000), ("0 B", 0)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["10", "", "MB", "-1 MB", "10 TB", "10 MB now", "1e3 B", "10 minutes"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("100 / hour", Limit(100, 3600)),
        ("100/hour", Limit(100, 3600)),
        (" 5  /  min ", Limit(5, 60)),
        ("1 / s", Limit(1, 1)),
        ("20 / day", Limit(20, 86_400)),
        ("10000 / h", Limit(10_000, 3600)),
        ("", OFF),
        ("off", OFF),
        (" off ", OFF),
    ],
)
def test_a_limit_is_read(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text",
    ["0 / hour", "-1 / hour", "100", "100 / month", "100 / 2 hours", "1e9 / s", "٣ / min", "OFF", "none", "/ hour"],
)
def test_anything_else_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match="is not a limit: write"):
        parse_limit(text)
