"""Tests of specvlm-sglang; run from the repository root."""
