"""Server arguments and device operations on our CPU platform, through SGLang's own resolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.platforms import current_platform
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import prepare_server_args

from specvlm_sglang.cpu import activation, unsupported
from specvlm_sglang.cpu.attention import BACKEND_NAME
from specvlm_sglang.cpu.platform import (
    DEFAULT_MAX_RUNNING_REQUESTS,
    DEFAULT_MAX_TOTAL_TOKENS,
    DEFAULT_MEM_FRACTION_STATIC,
    TorchCpuPlatform,
)

pytestmark = pytest.mark.skipif(
    not activation.is_wanted(), reason="our platform stands back where an accelerator is"
)


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    load_plugins()


@pytest.fixture
def resolve(text_target: Path) -> Any:
    def resolve(*argv: str) -> Any:
        arguments = prepare_server_args(["--model-path", str(text_target), *argv])
        arguments.resolve_once()
        return resolving_view(arguments)

    return resolve


def test_sglang_finds_the_platform_through_its_entry_point() -> None:
    assert current_platform.is_out_of_tree()
    assert isinstance(current_platform, TorchCpuPlatform)
    assert current_platform.device_type == "cpu"


@pytest.mark.parametrize("argv", [[], ["--device", "cpu"]])
def test_a_model_path_is_all_that_a_user_needs_to_give(resolve: Any, argv: list[str]) -> None:
    resolved = resolve(*argv)
    assert resolved.device == "cpu"
    assert resolved.attention_backend == BACKEND_NAME
    assert resolved.disable_overlap_schedule is True
    assert resolved.max_total_tokens == DEFAULT_MAX_TOTAL_TOKENS
    assert resolved.max_running_requests == DEFAULT_MAX_RUNNING_REQUESTS
    assert resolved.mem_fraction_static == DEFAULT_MEM_FRACTION_STATIC
    assert resolved.page_size == 1
    assert resolved.enable_torch_compile is False


@pytest.mark.parametrize(
    ("flag", "text", "field", "value"),
    [
        ("--attention-backend", "torch_native", "attention_backend", "torch_native"),
        ("--max-total-tokens", "1000", "max_total_tokens", 1000),
        ("--max-running-requests", "3", "max_running_requests", 3),
        ("--mem-fraction-static", "0.25", "mem_fraction_static", 0.25),
        ("--page-size", "16", "page_size", 16),
        ("--dtype", "float32", "dtype", "float32"),
        ("--dtype", "bfloat16", "dtype", "bfloat16"),
        ("--attention-backend", BACKEND_NAME, "attention_backend", BACKEND_NAME),
    ],
)
def test_an_explicit_flag_wins_over_the_platforms_default(
    resolve: Any, flag: str, text: str, field: str, value: object
) -> None:
    assert getattr(resolve(flag, text), field) == value


def test_another_device_is_left_alone() -> None:
    class Arguments:
        device = "cuda"

    arguments = Arguments()
    TorchCpuPlatform().apply_server_args_defaults(arguments)
    assert vars(arguments) == {}


def test_free_memory_is_the_machines_whoever_uses_the_rest() -> None:
    platform = TorchCpuPlatform()
    total = platform.get_device_total_memory()
    assert total == psutil.virtual_memory().total
    free, of = platform.get_available_memory()
    assert 0 < free < of == total


def test_every_rank_works_on_the_one_cpu() -> None:
    platform = TorchCpuPlatform()
    assert {torch.device(platform.get_device(rank)) for rank in range(4)} == {torch.device("cpu")}
    assert platform.get_torch_distributed_backend_str() == "gloo"
    assert platform.get_compile_backend() == "eager"


@pytest.mark.parametrize(
    ("algorithm", "supported"),
    [("STANDALONE", True), ("specvlm", True), ("EAGLE", False), ("EAGLE3", False)],
)
def test_only_complete_drafts_are_supported(algorithm: str, supported: bool) -> None:
    platform = TorchCpuPlatform()
    assert platform.supports_speculative_algorithm(algorithm) is supported
    assert platform.get_default_speculative_draft_attention_backend(algorithm) == BACKEND_NAME
    supports = platform.supports_speculative_draft_attention_backend
    assert supports(algorithm, BACKEND_NAME)
    assert not supports(algorithm, "triton")


def test_an_algorithm_that_needs_hidden_states_is_refused_while_the_arguments_are_read(
    resolve: Any, text_draft: Path
) -> None:
    with pytest.raises(ValueError, match="EAGLE"):
        resolve(
            "--speculative-algorithm", "EAGLE", "--speculative-draft-model-path", str(text_draft)
        )


def test_sglangs_own_standalone_drafts_with_our_backend(resolve: Any, text_draft: Path) -> None:
    resolved = resolve(
        "--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(text_draft)
    )
    assert resolved.attention_backend == BACKEND_NAME
    assert resolved.speculative_draft_attention_backend in (None, BACKEND_NAME)
    assert resolved.speculative_num_draft_tokens == 4


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--enable-deterministic-inference"], "--enable-deterministic-inference does not work"),
        (["--enable-memory-saver"], "--enable-memory-saver does not work on a CPU: it releases"),
        (["--quantization", "fp8"], "--quantization=fp8 does not work on a CPU"),
        (["--quantization", "awq"], "--quantization=awq does not work on a CPU"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_by_its_flag(
    resolve: Any, flags: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        resolve(*flags)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_a_quantised_checkpoint_says_what_is_needed(
    method: str, text_target: Path, tmp_path: Path
) -> None:
    config = json.loads((text_target / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert unsupported.quantization_of(str(tmp_path)) == method
    arguments = prepare_server_args(["--model-path", str(tmp_path)])
    with pytest.raises(ValueError, match=f"quantised with {method}, whose kernels need a GPU"):
        arguments.resolve_once()


def test_a_plain_checkpoint_and_one_that_is_not_there_name_no_method(
    text_target: Path, tmp_path: Path
) -> None:
    assert unsupported.quantization_of(str(text_target)) is None
    assert unsupported.quantization_of(str(tmp_path / "missing")) is None


def test_the_profiler_finds_what_this_platform_does() -> None:
    activity = current_platform.get_torch_profiler_activity()
    assert activity == torch.profiler.ProfilerActivity.CPU
    assert hasattr(
        torch.profiler.ProfilerActivity, current_platform.get_torch_profiler_activity_str()
    )
