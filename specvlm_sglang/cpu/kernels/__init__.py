"""Torch twins of the CUDA and Triton kernels that SGLang's speculative path runs unguarded.

One module per family of operations. Arguments, layouts and in-place writes are SGLang's, so the
originals' names stay; `install` puts the twins in their place for CPU tensors. Batches are small
and tensors are host memory here, so short ragged loops go over NumPy views and lists: one torch
call on a handful of elements costs more than the whole loop. Work as wide as the vocabulary is
torch.
"""

from specvlm_sglang.cpu.kernels.install import TWINS, Twin, install

__all__ = ["TWINS", "Twin", "install"]
