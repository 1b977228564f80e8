"""FlashInfer's kernels that SPECVLM runs on compile for an H100, where CUDA's compiler is."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ARCHITECTURE = "9.0a"
# Draft decoding; verification of a tree reads the paged cache under a mask of its own (mode 2).
MODULES = {
    "decode": (
        "gen_batch_decode_module",
        "dtype, dtype, dtype, i32, 128, 128, 0, False, False",
        "",
    ),
    "tree": (
        "gen_batch_prefill_module",
        "'fa2', dtype, dtype, dtype, i32, 128, 128, 0, False, False, False",
        "paged_kernel_mask_2",
    ),
}
SCRIPT = """
import torch
from flashinfer.jit.attention import {make}
dtype, i32 = torch.bfloat16, torch.int32
spec = {make}({arguments})
spec.write_ninja()
print(spec.ninja_path)
"""


@pytest.mark.parametrize("name", MODULES)
def test_the_kernels_compile_for_sm_90(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("FlashInfer is not installed")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine to compile with")
    make, arguments, wanted = MODULES[name]
    environment = {
        **os.environ,
        "FLASHINFER_CUDA_ARCH_LIST": ARCHITECTURE,
        "FLASHINFER_WORKSPACE_BASE": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(make=make, arguments=arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    ninja = Path(made.stdout.splitlines()[-1])
    # The objects only: linking them takes the driver's library.
    listed = subprocess.run(
        ["ninja", "-f", str(ninja), "-t", "targets", "all"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    targets = [line.split(":")[0] for line in listed.stdout.splitlines()]
    objects = [target for target in targets if target.endswith(".o") and wanted in target]
    assert objects, listed.stdout
    built = subprocess.run(
        ["ninja", "-f", str(ninja), *objects],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-3000:]
    # An ELF of NVIDIA's is inside each object.
    for target in objects:
        assert b".nv_fatbin" in (tmp_path / target).read_bytes(), target
