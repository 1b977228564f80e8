"""What each request row has emitted, as far as its sampling parameters look back at it.

Rows are the target's (``req_pool_idx``). All of it is kept on the device and changed on the
forward stream alone: set when a prompt is complete, advanced by what a verification accepted.
SGLang's own penalties live on the scheduler's stream, which is a round behind under overlap
scheduling, and they count one token a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.lossless.parameters import LooksBack, looks_back
from specvlm_sglang.lossless.penalties import (
    BatchPenalties,
    parents_of,
    paths_of,
    penalise_nodes,
    penalty_terms,
)


class EmittedTokens:
    """Output of every row whose request looks back at it; nothing at all for others.

    Parameters
    ----------
    rows
        Rows of the target's request table.
    vocabulary
        Of the target's logits.
    device
        Where everything lies. The counts take ``4 * rows * vocabulary`` bytes there from the first
        request on that has a penalty, the rest a few bytes a row.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device | str) -> None:
        self.vocabulary = vocabulary
        self.device = device
        self._rows = rows
        self._asked: list[LooksBack | None] = [None] * rows
        self._values = torch.zeros((rows, 3), dtype=torch.float32, device=device)
        self._values[:, 2] = 1.0
        self._minimum = torch.zeros((rows, 1), dtype=torch.int32, device=device)
        self._emitted = torch.zeros((rows, 1), dtype=torch.int32, device=device)
        self._stops = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self._counts: torch.Tensor | None = None

    def begin(
        self, row: int, asked: LooksBack | None, earlier: Sequence[int], newest: torch.Tensor
    ) -> None:
        """A prompt is complete.

        Parameters
        ----------
        row
            Its request's.
        asked
            What looks back at the output; None for nothing.
        earlier
            What the request emitted before it was preempted.
        newest
            What the prefill sampled, ``[1]`` on the device.
        """
        if asked is None and self._asked[row] is None:
            return
        self._asked[row] = asked
        settings = asked or LooksBack()
        values = (settings.frequency, settings.presence, settings.repetition)
        self._values[row] = self._send(values, torch.float32)
        self._minimum[row] = settings.min_new_tokens if settings.withholds_stops else 0
        self._emitted[row] = len(earlier) + 1
        if settings.withholds_stops:
            self._set_stops(row, settings.stop_tokens)
        if settings.counts_tokens:
            self._set_counts(row, earlier, newest)

    def terms_after(
        self, asked: LooksBack, output: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from logits, and what scales them, after ``output``.

        Returns
        -------
        tuple
            float32 ``[vocabulary]`` each, on the device.
        """
        counts = torch.bincount(torch.tensor(output), minlength=self.vocabulary)
        values = torch.tensor([[asked.frequency, asked.presence, asked.repetition]])
        subtracted, scale = penalty_terms(counts.unsqueeze(0), *values.hsplit(3))
        return to_device(subtracted[0], self.device), to_device(scale[0], self.device)

    def terms_of(self, req: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What is added to the next logits of SGLang's ``Req``, and what scales them then.

        Returns
        -------
        tuple or None
            float32 ``[vocabulary]`` each, on the device; None where nothing looks back.
        """
        asked = looks_back(req)
        if asked is None:
            return None
        subtracted, scale = self.terms_after(asked, req.output_ids)
        added = -subtracted
        if asked.withholds_stops and len(req.output_ids) < asked.min_new_tokens:
            # Indices from the host would wait for the device.
            added.index_fill_(0, self._send(asked.stop_tokens, torch.int64), -torch.inf)
        return added, scale

    def looks_back(self, rows: Sequence[int]) -> bool:
        """Whether a request of these rows does; the host knows."""
        return any(self._asked[row] is not None for row in rows)

    def of_batch(self, rows: Sequence[int], device_rows: torch.Tensor) -> BatchPenalties:
        """Return what judges the next tokens of these rows.

        Parameters
        ----------
        rows
            ``req_pool_idx`` of the batch's requests.
        device_rows
            The same on the device, ``[batch]``.
        """
        index = device_rows.long()
        frequency, presence, repetition = self._values[index].hsplit(3)
        asked = [found for row in rows if (found := self._asked[row]) is not None]
        counts, stops = None, None
        if any(one.counts_tokens for one in asked):
            # A row whose request counts nothing may hold an older one's: its settings are neutral.
            counts = self._all_counts()[index]
        if any(one.withholds_stops for one in asked):
            stops = self._stops[index]
        return BatchPenalties(
            frequency,
            presence,
            repetition,
            counts,
            self._emitted[index],
            self._minimum[index],
            stops,
        )

    def judge(
        self,
        logits: torch.Tensor,
        verify_input: Any,
        rows: Sequence[int],
        device_rows: torch.Tensor,
    ) -> None:
        """Give every node of a batch's trees the logits that plain decoding would have there.

        Parameters
        ----------
        logits
            ``[batch * nodes, vocabulary]``, changed in place.
        verify_input
            SGLang's ``EagleVerifyInput``.
        rows, device_rows
            As `of_batch` takes them.
        """
        tokens = verify_input.draft_token.view(len(rows), -1).long()
        parents = parents_of(
            verify_input.retrieve_next_token,
            verify_input.retrieve_next_sibling,
            topk=verify_input.topk,
        )
        paths = paths_of(tokens, parents, steps=verify_input.spec_steps)
        penalise_nodes(logits, paths, self.of_batch(rows, device_rows))

    def advance(
        self, device_rows: torch.Tensor, tokens: torch.Tensor, accepted: torch.Tensor
    ) -> None:
        """Count what a verification emitted.

        Parameters
        ----------
        device_rows
            ``[batch]``.
        tokens
            int ``[batch, steps + 1]``, each row's emitted tokens at its front.
        accepted
            How many of them count, int ``[batch]``.
        """
        index = device_rows.long()
        self._emitted[index] += accepted.view(-1, 1).to(torch.int32)
        if self._counts is None:
            return
        places = torch.arange(tokens.shape[1], device=tokens.device)
        counted = (places < accepted.view(-1, 1)).to(torch.int32)
        self._counts.index_put_(
            (index.view(-1, 1).expand_as(tokens), tokens.long()), counted, accumulate=True
        )

    def _set_counts(self, row: int, earlier: Sequence[int], newest: torch.Tensor) -> None:
        counts = self._all_counts()[row]
        counts.zero_()
        tokens = newest.long()
        if earlier:
            tokens = torch.cat([self._send(earlier, torch.int64), tokens])
        counts.index_put_((tokens,), counts.new_ones(()), accumulate=True)

    def _all_counts(self) -> torch.Tensor:
        if self._counts is None:
            self._counts = torch.zeros(
                (self._rows, self.vocabulary), dtype=torch.int32, device=self.device
            )
        return self._counts

    def _set_stops(self, row: int, stops: Sequence[int]) -> None:
        width = self._stops.shape[1]
        if len(stops) > width:
            # The others repeat what they have: a token withheld twice is withheld.
            more = self._stops[:, :1].expand(-1, len(stops) - width)
            self._stops = torch.cat([self._stops, more], dim=1)
            width = len(stops)
        filled = (*stops, *[stops[0]] * (width - len(stops)))
        self._stops[row] = self._send(filled, torch.int64)

    def _send(self, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        return to_device(torch.tensor(values, dtype=dtype), self.device)
