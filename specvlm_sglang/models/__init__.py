"""What differs between model families, one small adapter each."""

from __future__ import annotations

from specvlm_sglang.models.family import ModelFamily, mrope_delta
from specvlm_sglang.models.registry import family_of

__all__ = ["ModelFamily", "family_of", "mrope_delta"]
