"""Markers that transformers' test files use."""

import pytest

MARKERS = [
    "accelerate_tests",
    "all_flash_attn_test",
    "bitsandbytes",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "generate",
    "torch_compile_test",
    "torch_export_test",
]


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by transformers' common tests")
