"""Confidence interval of a median, from the sign test: exact for any distribution of independent values."""

from math import comb
from statistics import median

CONFIDENCE = 0.95


def median_interval(values):
    """The median, and the narrowest interval between two of the values that covers the true median with at least 95 %.

    The number of values below the true median is binomial with 1/2. With fewer than six values no interval covers it.

    >>> median_interval([1.1, 1.3, 1.2, 1.0, 1.4, 1.25])
    (1.225, 1.0, 1.4)
    >>> median_interval(range(1, 13))
    (6.5, 3, 10)
    >>> median_interval([1, 2, 3, 4, 5])
    (3, None, None)
    """
    ordered = sorted(values)
    n, cut, tail = len(ordered), 0, 0.0
    while cut < n // 2:
        tail += comb(n, cut) / 2**n  # no more than `cut` of n values on one side
        if 2 * tail > 1 - CONFIDENCE:
            break
        cut += 1
    if cut == 0:
        return median(ordered), None, None
    return median(ordered), ordered[cut - 1], ordered[n - cut]


def verdict(low, high):
    """What a ratio's interval shows.

    >>> verdict(0.9, 1.1), verdict(1.05, 1.2), verdict(0.7, 0.9), verdict(None, None)
    ('no difference shown', 'more', 'less', 'too few turns')
    """
    if low is None:
        return "too few turns"
    return "more" if low > 1 else "less" if high < 1 else "no difference shown"
