"""Language-to-video attention scores: how much the text after a video looks at each of its tokens.

The score of video token ``j`` is the probability that the target's attention gives it, averaged
over layers, query heads and query rows (SpecVLM, arXiv 2508.16201, section 3). Each row's softmax
runs over every key that the row sees, text included, and the video part is not renormalised, so
the scores of a video sum to the attention mass that the language spends on it.

Inputs are taken as float32 and all arithmetic is float64; only the result is rounded to float32.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def language_query_rows(
    prompt_length: int, video_positions: npt.ArrayLike, max_query_rows: int = 256
) -> IntArray:
    """Positions of the rows that score the video: the newest text after its last token.

    Parameters
    ----------
    prompt_length : int
        Number of tokens in the prompt, at least 0.
    video_positions : int array, shape [N]
        Where the video tokens stand in the prompt.
    max_query_rows : int
        At most this many rows, the last ones of the prompt; at least 1.

    Returns
    -------
    int64 array, shape [rows]
        Ascending. Empty without video tokens, and when the prompt ends with one.

    Raises
    ------
    ValueError
        For an argument out of range, or positions that are not 1-D integers.
    """
    if prompt_length < 0:
        raise ValueError(f"prompt_length must be at least 0, got {prompt_length}")
    if max_query_rows < 1:
        raise ValueError(f"max_query_rows must be at least 1, got {max_query_rows}")
    video = _positions("video_positions", video_positions, prompt_length)
    if video.size == 0:
        return np.empty(0, dtype=np.int64)
    first = max(int(video.max()) + 1, prompt_length - max_query_rows)
    return np.arange(first, prompt_length, dtype=np.int64)


def language_to_video_scores(
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    *,
    query_positions: npt.ArrayLike,
    video_positions: npt.ArrayLike,
    scale: float,
    logit_cap: float | None = None,
) -> npt.NDArray[np.float32]:
    """Score every video token from the whole attention map, one layer at a time.

    Parameters
    ----------
    queries : float array, shape [layers, rows, q_heads, head_dim]
        Query rows after rotary embedding. Consecutive query heads share a KV head.
    keys : float array, shape [layers, positions, kv_heads, head_dim]
        Every key of the prompt after rotary embedding, in prompt order.
    query_positions : int array, shape [rows]
        Where each row stands in the prompt: it sees the keys at ``0 .. position``, itself included.
    video_positions : int array, shape [N]
        Where the video tokens stand in the prompt.
    scale : float
        Multiplies the logits; positive, usually ``head_dim ** -0.5``.
    logit_cap : float, optional
        Positive; replaces each scaled logit ``x`` by ``cap * tanh(x / cap)`` (SGLang's
        ``RadixAttention.logit_cap``). None leaves the logits alone.

    Returns
    -------
    float32 array, shape [N]
        In the order of ``video_positions``; at least 0, and at most 1 in total when those are
        distinct. A video token after a row gets nothing from it. Without rows (the prompt ends
        with its video) every score is 0, for which :mod:`reference.selection` defines a fallback.

    Raises
    ------
    ValueError
        For shapes that do not fit together, query heads that cannot be grouped over the KV heads,
        non-finite queries or keys, positions out of range, or a scale or cap that is not positive.
    """
    inputs = _Inputs(queries, keys, query_positions, video_positions, scale, logit_cap)
    totals = np.zeros(inputs.video.size)
    if inputs.rows.size:
        everything = np.arange(inputs.positions)
        for layer in range(inputs.layers):
            logits = inputs.logits(layer, everything)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            totals += weights.sum(axis=(0, 1, 2))[inputs.video]
    return inputs.mean(totals)


def language_to_video_scores_streamed(
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    *,
    query_positions: npt.ArrayLike,
    video_positions: npt.ArrayLike,
    scale: float,
    logit_cap: float | None = None,
    key_block: int = 1024,
) -> npt.NDArray[np.float32]:
    """Score every video token in two passes over blocks of keys, never holding a whole map.

    The first pass finds each row's log-sum-exp over all the keys that it sees (a running maximum
    and a running sum); the second reads the video keys again and sums their probabilities.

    Parameters
    ----------
    key_block : int
        Keys read at once, at least 1: working memory is ``q_heads * rows * key_block`` numbers.

    Other parameters, the result and the errors are those of :func:`language_to_video_scores`.
    """
    if key_block < 1:
        raise ValueError(f"key_block must be at least 1, got {key_block}")
    inputs = _Inputs(queries, keys, query_positions, video_positions, scale, logit_cap)
    totals = np.zeros(inputs.video.size)
    if inputs.rows.size:
        for layer in range(inputs.layers):
            log_sums = _row_log_sums(inputs, layer, key_block)[..., None]
            for block in _blocks(inputs.video.size, key_block):
                logits = inputs.logits(layer, inputs.video[block])
                totals[block] += np.exp(logits - log_sums).sum(axis=(0, 1, 2))
    return inputs.mean(totals)


class _Inputs:
    """Checked inputs of a scoring call, and the logits of any of its keys."""

    def __init__(
        self,
        queries: npt.ArrayLike,
        keys: npt.ArrayLike,
        query_positions: npt.ArrayLike,
        video_positions: npt.ArrayLike,
        scale: float,
        logit_cap: float | None,
    ) -> None:
        self.queries = _features("queries", queries)
        self.keys = _features("keys", keys)
        self.layers, row_count, self.q_heads, head_dim = self.queries.shape
        key_layers, self.positions, self.kv_heads, key_dim = self.keys.shape
        if self.layers < 1 or self.layers != key_layers:
            raise ValueError(
                "queries and keys must have the same number of layers, at least 1, "
                f"got {self.layers} and {key_layers}"
            )
        if head_dim < 1 or head_dim != key_dim:
            raise ValueError(
                "queries and keys must have the same head_dim, at least 1, "
                f"got {head_dim} and {key_dim}"
            )
        if self.q_heads < 1 or self.kv_heads < 1 or self.q_heads % self.kv_heads:
            raise ValueError(
                "queries must have a positive multiple of the heads of keys, "
                f"got {self.q_heads} query heads over {self.kv_heads} KV heads"
            )
        self.rows = _positions("query_positions", query_positions, self.positions)
        self.video = _positions("video_positions", video_positions, self.positions)
        if self.rows.size != row_count:
            raise ValueError(
                f"query_positions must have one entry for each of the {row_count} rows of queries, "
                f"got {self.rows.size}"
            )
        self.scale = _positive("scale", scale)
        self.logit_cap = None if logit_cap is None else _positive("logit_cap", logit_cap)

    def logits(self, layer: int, positions: IntArray) -> FloatArray:
        """Logits of the keys at ``positions``: [kv_heads, group, rows, keys], -inf where unseen."""
        rows, head_dim = self.rows.size, self.queries.shape[-1]
        queries = self.queries[layer].astype(np.float64).transpose(1, 0, 2)
        grouped = queries.reshape(self.kv_heads, -1, rows, head_dim)
        keys = self.keys[layer, positions].astype(np.float64).transpose(1, 2, 0)[:, None]
        logits: FloatArray = grouped @ keys * self.scale
        if self.logit_cap is not None:
            logits = self.logit_cap * np.tanh(logits / self.logit_cap)
        seen = positions[None, :] <= self.rows[:, None]
        return np.where(seen, logits, -np.inf)

    def mean(self, totals: FloatArray) -> npt.NDArray[np.float32]:
        """Turn sums over layers, heads and rows into scores."""
        maps = self.layers * self.q_heads * self.rows.size
        scores: npt.NDArray[np.float32] = (totals / max(maps, 1)).astype(np.float32)
        return scores


def _row_log_sums(inputs: _Inputs, layer: int, key_block: int) -> FloatArray:
    """Log-sum-exp of each row's logits over the keys that it sees: [kv_heads, group, rows]."""
    shape = (inputs.kv_heads, inputs.q_heads // inputs.kv_heads, inputs.rows.size)
    maxima, sums = np.full(shape, -np.inf), np.zeros(shape)
    for block in _blocks(inputs.positions, key_block):
        logits = inputs.logits(layer, np.arange(block.start, block.stop))
        # Every row sees key 0, so from the first block on this is finite.
        larger = np.maximum(maxima, logits.max(axis=-1))
        sums = sums * np.exp(maxima - larger) + np.exp(logits - larger[..., None]).sum(axis=-1)
        maxima = larger
    log_sums: FloatArray = maxima + np.log(sums)
    return log_sums


def _blocks(size: int, block: int) -> Iterator[slice]:
    """Slices that cover ``0 .. size - 1`` in order, the last one possibly shorter."""
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


def _features(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    # A float64 value beyond float32 becomes infinite here and is reported below.
    with np.errstate(over="ignore"):
        array = np.asarray(values).astype(np.float32)
    if array.ndim != 4:
        raise ValueError(
            f"{name} must have four axes, layers x tokens x heads x head_dim, "
            f"got shape {array.shape}"
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"{name} must be finite in float32, got {array[~finite][0]}")
    return array


def _positions(name: str, values: npt.ArrayLike, length: int) -> IntArray:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} must be a 1-D integer array, got {array.dtype} of shape {array.shape}"
        )
    outside = array[(array < 0) | (array >= length)]
    if outside.size:
        raise ValueError(f"{name} must be at least 0 and below {length}, got {outside[0]}")
    return array.astype(np.int64)


def _positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)
