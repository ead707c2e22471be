"""Rotation of positions, in the config.json of transformers 4 and of transformers 5."""

from __future__ import annotations

from typing import Any

import pytest

from mir_plugin.model_adapters.weights.rotation import is_newer_form, rotation_difference, trained_without_rotation_of

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}),
    ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_theta": 1e4, "rope_scaling": {"rope_type": "default"}}),
    (
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_type": "llama3", "rope_theta": 5e5}},
    ),
    (
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2}},
    ),
    (
        {"rope_theta": 1e4, "partial_rotary_factor": 0.4},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.4}},
    ),
    (  # Phi-3 says the length of pre-training beside its factors, and called its scaling "su"
        {
            "rope_theta": 1e4,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]},
        },
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0],
                "original_max_position_embeddings": 4096,
            }
        },
    ),
    (
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            }
        },
    ),
    ({}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}, "transformers_version": "4.37.2"},
        {"rope_theta": 1e4},
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_both_forms_of_one_rotation_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert rotation_difference(one, other) is None
    assert rotation_difference(other, one) is None


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "rope_theta"),
        ({"rope_theta": 1e4}, {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, "factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
            "factor",
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type",
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e5},
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_theta": 1e6}}},
            "rope_theta",
        ),
        ({"partial_rotary_factor": 0.4}, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_another_rotation_is_named(one: dict[str, Any], other: dict[str, Any], name: str) -> None:
    for difference in (rotation_difference(one, other), rotation_difference(other, one)):
        assert difference is not None and difference[0] == name


def test_what_transformers_4_trained_does_not_follow_the_newer_form() -> None:
    base = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert trained_without_rotation_of(base, {"rope_theta": 1e4})
    assert trained_without_rotation_of(base, base | {"rope_theta": 1e4, "transformers_version": "4.40.0"})
    assert not trained_without_rotation_of(base, base)
    assert not trained_without_rotation_of({"rope_theta": 1e6}, {"rope_theta": 1e4})
    assert is_newer_form(base | {"rope_theta": 1e4})  # transformers 5 writes one form, and reads the newer of two
