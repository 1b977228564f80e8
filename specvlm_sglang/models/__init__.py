"""What differs between model families, one small adapter each."""

from __future__ import annotations

from specvlm_sglang.models.family import ModelFamily, family_of, mrope_delta

__all__ = ["ModelFamily", "family_of", "mrope_delta"]
