"""Putting the twins in the place of SGLang's kernels, for tensors on the CPU only.

SGLang's ``HookRegistry`` is not used for it: it imports every target in every process that loads
plugins, the detokenizer too, and only logs what fails. It also takes a name that is None (there is
no such kernel on this platform) for an object, and would rebind every None in every module.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from specvlm_sglang.cpu.kernels import (
    cache_locs,
    fill,
    hashing,
    kv_pool,
    renorm,
    sampling,
    tree,
    verify,
)
from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

ROOM = "kernels"

_CACHE_LOCS = "sglang.kernels.ops.speculative.cache_locs"
_EAGLE = "sglang.kernels.ops.speculative.eagle"
_RENORM = "sglang.kernels.ops.sampling.renorm"
_SPEC_TREE = "sglang.kernels.ops.speculative.spec_tree"


@dataclass(frozen=True)
class Twin:
    """A symbol of SGLang and what stands in for it on the CPU.

    Attributes
    ----------
    module, attribute
        Where SGLang defines it; ``attribute`` may be ``Class.method``.
    function
        Ours, with the parameters of the original.
    may_be_missing
        Whether SGLang binds the name to None on a platform without the kernel.
    """

    module: str
    attribute: str
    function: Callable[..., Any]
    may_be_missing: bool = False


TWINS = (
    Twin(
        "sglang.srt.mem_cache.allocation",
        "assign_req_to_token_pool_func",
        cache_locs.assign_req_to_token_pool,
    ),
    Twin("sglang.kernels.ops.memory.common", "get_last_loc_triton", cache_locs.get_last_loc),
    Twin(
        _CACHE_LOCS,
        "assign_draft_cache_locs_contiguous_func",
        cache_locs.assign_draft_cache_locs_contiguous,
    ),
    Twin(_CACHE_LOCS, "assign_extend_cache_locs_func", cache_locs.assign_extend_cache_locs),
    Twin(
        _CACHE_LOCS,
        "assign_extend_cache_locs_uniform_func",
        cache_locs.assign_extend_cache_locs_uniform,
    ),
    Twin(_CACHE_LOCS, "fill_front_out_cache_loc_func", fill.fill_front_out_cache_loc),
    Twin(_EAGLE, "fill_accept_out_cache_loc_func", fill.fill_accept_out_cache_loc),
    Twin(_EAGLE, "fill_bonus_tokens_func", fill.fill_bonus_tokens),
    Twin(_SPEC_TREE, "build_tree_kernel_efficient_func", tree.build_tree_kernel_efficient),
    Twin(_SPEC_TREE, "verify_tree_greedy_func", verify.verify_tree_greedy),
    Twin(
        "sglang.kernels.ops.speculative.verify_sampling",
        "tree_speculative_sampling_target_only",
        sampling.tree_speculative_sampling_target_only,
        may_be_missing=True,
    ),
    Twin(_RENORM, "top_k_renorm_prob", renorm.top_k_renorm_prob, may_be_missing=True),
    Twin(_RENORM, "top_p_renorm_prob", renorm.top_p_renorm_prob, may_be_missing=True),
    Twin("sglang.kernels.ops.sampling.murmur_hash", "murmur_hash32", hashing.murmur_hash32),
    Twin(
        "sglang.srt.mem_cache.memory_pool",
        "MHATokenToKVPool._init_kv_copy_and_warmup",
        kv_pool.init_kv_copy,
    ),
)
"""Every kernel of the EAGLE/STANDALONE path that has no CPU implementation on our platform."""


def install() -> None:
    """Replace every symbol in `TWINS` in this process; idempotent.

    Modules that imported a symbol already are rebound, later ones find the replacement.

    Raises
    ------
    HostMismatchError
        SGLang's symbols are not the ones that the twins were written for; nothing is replaced.
    """
    contract.require(ROOM)
    for twin in TWINS:
        module = importlib.import_module(twin.module)
        if twin.may_be_missing and getattr(module, twin.attribute) in (None, twin.function):
            _provide(twin)
        else:
            replace_function(
                twin.module, twin.attribute, functools.partial(_on_cpu, ours=twin.function)
            )


def _on_cpu(original: Callable[..., Any], *, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Call ``ours`` where the first argument that lives on a device lives on the CPU."""

    @functools.wraps(original, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        for value in chain(args, kwargs.values()):
            device = getattr(value, "device", None)
            if device is not None:
                chosen = ours if torch.device(device).type == "cpu" else original
                return chosen(*args, **kwargs)
        return original(*args, **kwargs)

    return dispatch


def _provide(twin: Twin) -> None:
    """Bind a name that is None, also where ``from module import name`` has copied it.

    The None itself says nothing, so other modules of SGLang are recognised by the name.
    """
    for name, module in list(sys.modules.items()):
        held = vars(module).get(twin.attribute, twin.function)
        if held is None and name.split(".")[0] == "sglang":
            setattr(module, twin.attribute, twin.function)
