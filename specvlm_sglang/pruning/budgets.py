"""How many video tokens are kept: known on the host, from lengths and options alone."""

from __future__ import annotations

from collections.abc import Sequence

from specvlm_sglang.policies import Policy, check_retention


def video_token_budget(n: int, retention: float, at_most: int | None = None) -> int:
    """Number of video tokens to keep out of ``n``: ``floor(n * retention + 1e-6)``, at least 1.

    Without any tokens it is 0, and never more than ``at_most``.

    Raises
    ------
    ValueError
        ``n`` negative, ``retention`` outside (0, 1] or ``at_most`` below 1.
    """
    if n < 0:
        raise ValueError(f"n={n} must be at least 0")
    check_retention(retention, "retention")
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most={at_most} must be at least 1")
    # Without the small addend 1000 * (1 - 0.9) would keep 99 tokens, not 100.
    budget = min(n, max(1, int(n * retention + 1e-6)))
    return budget if at_most is None else min(budget, at_most)


def video_token_budgets(
    video_lengths: Sequence[int], retention: float, at_most: int | None = None
) -> list[int]:
    """Budget of each of several videos; ``at_most`` is shared in proportion to their budgets."""
    budgets = [video_token_budget(length, retention) for length in video_lengths]
    return shares(video_token_budget(sum(budgets), 1.0, at_most), budgets)


def kept_tokens(
    video_lengths: Sequence[int], policy: Policy, retention: float, at_most: int | None = None
) -> int:
    """K of a prompt, known from lengths and options alone.

    Parameters
    ----------
    video_lengths
        Tokens of each video.
    policy
        Its needs say whether the videos share one budget.
    retention
        Share of the tokens to KEEP, in (0, 1].
    at_most
        Never more tokens than this, of all videos together.
    """
    if policy.keeps_all:
        return sum(video_lengths)
    if policy.per_video and len(video_lengths) > 1:
        return sum(video_token_budgets(video_lengths, retention, at_most))
    return video_token_budget(sum(video_lengths), retention, at_most)


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide ``total`` in proportion to ``sizes`` by largest remainder, ties to the earlier one."""
    whole = max(sum(sizes), 1)
    found = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
    for index in by_remainder[: total - sum(found)]:
        found[index] += 1
    return found
