"""Placeholders of a prompt, one per picture, and the tokens they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Span = tuple[int, int]
"""First and last token, both inclusive."""


def expand_placeholders(
    ids: Sequence[int], lengths: Mapping[int, Sequence[int]], names: Mapping[int, str]
) -> tuple[list[int], dict[int, list[Span]]]:
    """Repeat every placeholder as often as its picture has tokens.

    Working on token ids keeps pictures apart whose placeholders stand side by side, and leaves the
    text as the client tokenised it.

    Parameters
    ----------
    ids
        The prompt.
    lengths
        Per placeholder id, the tokens of its pictures in order.
    names
        Per placeholder id, what to call its pictures in messages.

    Returns
    -------
    list of int
        The prompt with the placeholders repeated.
    dict of int to list of Span
        Per placeholder id, where each picture is.

    Raises
    ------
    ValueError
        Another number of placeholders than pictures.
    """
    for placeholder, wanted in lengths.items():
        found = sum(token == placeholder for token in ids)
        if found != len(wanted):
            name = names[placeholder]
            raise ValueError(
                f"the prompt has {found} {name} placeholders for {len(wanted)} {name}s"
            )
    expanded: list[int] = []
    spans: dict[int, list[Span]] = {placeholder: [] for placeholder in lengths}
    for token in ids:
        if token not in lengths:
            expanded.append(token)
            continue
        length = lengths[token][len(spans[token])]
        spans[token].append((len(expanded), len(expanded) + length - 1))
        expanded += [token] * length
    return expanded, spans
