"""What is computed from what was seen: how even shares are, medians and spreads, distributions."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

Histogram = Sequence[tuple[float, int]]  # value, how many


def shares(answers: Mapping[str, int], workers: int) -> list[float]:
    """The part of the answers that each worker gave, smallest first; one that answered nothing is there with 0."""
    total = max(sum(answers.values()), 1)
    counts = sorted(answers.values())
    return [count / total for count in [0] * (workers - len(counts)) + counts]


def jain(parts: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all have the same, 1/n when one has all.

    Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and Discrimination", DEC-TR-301, 1984.
    """
    squares = sum(part * part for part in parts)
    return sum(parts) ** 2 / (len(parts) * squares) if squares else 1.0


def variation(parts: Sequence[float]) -> float:
    """The coefficient of variation: the standard deviation of these parts, all that there are, over their mean."""
    mean = sum(parts) / len(parts)
    return (sum((part - mean) ** 2 for part in parts) / len(parts)) ** 0.5 / mean if mean else 0.0


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the smallest and largest."""
    known = list(values)
    return f"{median(known):.{digits}f} ({min(known):.{digits}f}..{max(known):.{digits}f})" if known else ""


def merged(histograms: Iterable[Histogram]) -> list[tuple[float, int]]:
    """All values together, smallest first. The same client made them, so equal buckets have equal middles."""
    total: Counter[float] = Counter()
    for histogram in histograms:
        for value, count in histogram:
            total[value] += count
    return sorted(total.items())


def cumulative(histogram: Histogram) -> tuple[list[float], list[float]]:
    """The distribution function of a histogram: values, and the part that is not above each."""
    total = sum(count for _, count in histogram)
    values, parts, seen = [], [], 0
    for value, count in histogram:
        seen += count
        values.append(value)
        parts.append(seen / total)
    return values, parts


def percentile(histogram: Histogram, part: float) -> float:
    """The smallest value that at least this part, up to 1, is not above."""
    values, parts = cumulative(histogram)
    return values[bisect_left(parts, part)]
