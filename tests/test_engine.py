from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch

import mir_plugin.engine.batches
from mir_plugin.engine.batches import ENOUGH_TOKENS, bytes_of_layer, default_batch_size, packed_by_length
from mir_plugin.engine.features import layer_features
from mir_plugin.engine.memory import estimate_memory, require_disk_space
from mir_plugin.engine.replay import PROOF_TEXT, ReplayCheck, check_replay
from mir_plugin.errors import MirError

from toy import ToyAdapter, toy_samples

DEPTH_FIRST = ReplayCheck("depth-first", "asked for by the test")


def test_a_plain_decoder_is_replayed_breadth_first() -> None:
    check = check_replay(ToyAdapter(), toy_samples(1)[0])
    assert check.path == "breadth-first"


def test_features_are_the_hidden_states_of_the_plain_forward() -> None:
    adapter, samples = ToyAdapter(), toy_samples(4)
    layers = [(f.vision.clone(), f.text.clone()) for f in layer_features(adapter, samples)]
    assert len(layers) == 3
    batch = adapter.encode(samples[2:3])
    with torch.no_grad():
        states = adapter.model(**batch.inputs, output_hidden_states=True).hidden_states
    n_vision, n_text_before = 9, sum(len(s.text) for s in samples[:2])
    for (vision, text), expected in zip(layers, states[1:], strict=True):
        assert torch.equal(vision[2 * n_vision : 3 * n_vision], expected[batch.vision_mask])
        n_text = len(samples[2].text)
        assert torch.equal(text[n_text_before : n_text_before + n_text], expected[batch.text_mask])


def test_both_paths_give_the_same_features_and_counts() -> None:
    adapter, samples = ToyAdapter(), toy_samples(5)
    deep = list(layer_features(adapter, samples, check=DEPTH_FIRST))
    for wide, spooled in zip(layer_features(adapter, samples), deep, strict=True):
        assert torch.equal(wide.vision, spooled.vision)
        assert torch.equal(wide.text, spooled.text)
        assert (wide.layer, wide.text_counts) == (spooled.layer, spooled.text_counts)


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_padding_a_batch_changes_no_feature(batch_size: int) -> None:
    adapter, samples = ToyAdapter(), toy_samples(5)
    for one, many in zip(
        layer_features(adapter, samples), layer_features(adapter, samples, batch_size=batch_size), strict=True
    ):
        # Another kernel adds in another order: float32 rounding on values of order 1.
        torch.testing.assert_close(many.vision, one.vision, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(many.text, one.text, rtol=1e-4, atol=1e-5)
        assert many.text_counts == one.text_counts


def test_autocast_that_a_model_switches_on_itself_holds_for_every_layer() -> None:
    adapter, samples = ToyAdapter(), toy_samples(3)
    plain = adapter.model.forward

    def under_autocast(*args: object, **kwargs: object) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(*args, **kwargs)

    adapter.model.forward = under_autocast  # as accelerate's prepared models do
    assert check_replay(adapter, samples[0]).path == "breadth-first"
    deep = list(layer_features(adapter, samples, check=DEPTH_FIRST))
    for wide, spooled in zip(layer_features(adapter, samples), deep, strict=True):
        assert torch.equal(wide.vision, spooled.vision)
        assert torch.equal(wide.text, spooled.text)


def test_something_added_between_layers_is_noticed_and_run_depth_first() -> None:
    adapter = ToyAdapter()
    adapter.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
    check = check_replay(adapter, toy_samples(1)[0])
    assert check.path == "depth-first"
    assert "input of layer 2" in check.reason


def test_arguments_that_differ_between_layers_are_noticed() -> None:
    adapter = ToyAdapter()
    adapter.model.layers[2].register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"use_cache": True}), with_kwargs=True
    )
    check = check_replay(adapter, toy_samples(1)[0])
    assert check.path == "depth-first"
    assert "use_cache of layer 3" in check.reason


def test_no_hook_stays_after_an_error() -> None:
    adapter = ToyAdapter()
    with pytest.raises(AssertionError):
        check_replay(adapter, toy_samples(1)[0].__class__("broken", None, "text"))  # type: ignore[arg-type]
    list(layer_features(adapter, toy_samples(2), check=DEPTH_FIRST))
    modules = [*adapter.decoder.layers, adapter.decoder.final_norm]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_an_empty_sample_list_is_refused() -> None:
    with pytest.raises(MirError, match="no samples"):
        layer_features(ToyAdapter(), [])


def test_a_batch_holds_samples_of_about_the_same_length() -> None:
    batches = packed_by_length(toy_samples(6), 2)
    lengths = [sorted(len(toy_samples(6)[index].text) for index in batch) for batch in batches]
    assert [max(batch) for batch in lengths[:-1]] <= [min(batch) for batch in lengths[1:]]
    assert sorted(index for batch in batches for index in batch) == list(range(6))


def test_one_layer_of_features_is_held_at_a_time() -> None:
    layers = layer_features(ToyAdapter(), toy_samples(3))
    assert next(layers).vision.data_ptr() == next(layers).vision.data_ptr()


class AddInPlace(torch.nn.Module):
    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden_states.add_(1)


def test_something_added_in_place_between_layers_is_noticed() -> None:
    # The second layer's input then *is* the changed output of the first: only the replay can tell.
    adapter = ToyAdapter()
    first, *others = adapter.model.layers
    check = check_replay_of_layers(adapter, [first, AddInPlace(), *others])
    assert check == ReplayCheck("depth-first", "replayed output of layer 2 differs from the recorded one")


def test_layers_called_twice_are_noticed() -> None:
    adapter = ToyAdapter()
    check = check_replay_of_layers(adapter, [*adapter.model.layers, adapter.model.layers[0]])
    assert "layer 1 is called at place 4" in check.reason


def test_layers_that_are_not_called_are_noticed() -> None:
    adapter = ToyAdapter()
    check = check_replay_of_layers(adapter, list(adapter.model.layers)[:2])
    assert "2 layer calls for 3 layers" in check.reason


def check_replay_of_layers(adapter: ToyAdapter, layers: list[torch.nn.Module]) -> ReplayCheck:
    """The check of a model whose forward pass calls these layers, while the decoder lists the original ones."""
    adapter.model.layers = torch.nn.ModuleList(layers)
    adapter.model.config.num_hidden_layers = len(layers)
    return check_replay(adapter, toy_samples(1)[0])


def test_the_memory_estimate_counts_one_layer_of_features() -> None:
    adapter, samples = ToyAdapter(), toy_samples(5)
    estimate = estimate_memory(adapter, samples, ReplayCheck("breadth-first", ""))
    for features in layer_features(adapter, samples):
        held = 4 * (features.vision.numel() + features.text.numel())
        assert estimate.features == pytest.approx(held, rel=0.02)
    assert estimate.decoder == sum(4 * p.numel() for layer in adapter.decoder.layers for p in layer.parameters())
    assert estimate.spool == 0


def test_a_depth_first_run_that_does_not_fit_the_disk_is_refused_before_it_starts() -> None:
    estimate = estimate_memory(ToyAdapter(), toy_samples(2), DEPTH_FIRST)
    assert estimate.spool == 3 * estimate.features
    require_disk_space(estimate)
    with pytest.raises(MirError, match=r"features go to disk: about 1000000000\.0 GB.*Set TMPDIR"):
        require_disk_space(dataclasses.replace(estimate, spool=10**18))


def test_with_two_buffers_features_outlive_the_next_layer() -> None:
    once = [(f.vision.clone(), f.text.clone()) for f in layer_features(ToyAdapter(), toy_samples(3))]
    before = None
    for k, features in enumerate(layer_features(ToyAdapter(), toy_samples(3), n_buffers=2)):
        assert torch.equal(features.vision, once[k][0])
        if before:
            assert torch.equal(before.vision, once[k - 1][0])
            assert torch.equal(before.text, once[k - 1][1])
        before = features


def out_of_memory_above(size: int, adapter: ToyAdapter, layer: int) -> list[int]:
    """Let a decoder layer run out of memory with more samples than ``size``; lists the sizes that it is called with."""
    called: list[int] = []

    def refuse(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = args[0] if args else kwargs["hidden_states"]
        called.append(len(state))
        if len(state) > size:
            raise torch.cuda.OutOfMemoryError("out of memory, says the test")

    adapter.decoder.layers[layer].register_forward_pre_hook(refuse, with_kwargs=True)
    return called


@pytest.mark.parametrize("check", [ReplayCheck("breadth-first", ""), DEPTH_FIRST], ids=lambda check: check.path)
@pytest.mark.parametrize("layer", [0, 1])
def test_out_of_memory_halves_the_batches_says_so_once_and_moves_no_feature(
    check: ReplayCheck, layer: int, caplog: pytest.LogCaptureFixture
) -> None:
    adapter, samples = ToyAdapter(), toy_samples(7)
    expected = [
        (f.vision.clone(), f.text.clone(), f.text_counts)
        for f in layer_features(adapter, samples, check=check, batch_size=2)
    ]
    called = out_of_memory_above(2, adapter, layer)
    with caplog.at_level(logging.WARNING):
        found = [
            (f.vision.clone(), f.text.clone(), f.text_counts)
            for f in layer_features(adapter, samples, check=check, batch_size=7)
        ]
    for (vision, text, counts), (other_vision, other_text, other_counts) in zip(found, expected, strict=True):
        # Batches of other samples add in another order: float32 rounding on values of order 1.
        torch.testing.assert_close(vision, other_vision, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text, other_text, rtol=1e-4, atol=1e-5)
        assert counts == other_counts
    assert [size for size in called if size > 2] == [7, 4]  # 7 → 4 → 2, and never again
    (said,) = (record.message for record in caplog.records if "out of GPU memory" in record.message)
    assert "7 samples" in said
    assert "--batch-size" in said


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    adapter = ToyAdapter()
    out_of_memory_above(0, adapter, 0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(layer_features(adapter, toy_samples(3), check=ReplayCheck("breadth-first", ""), batch_size=2))


def test_batches_on_an_accelerator_follow_the_longest_text_and_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, samples = ToyAdapter(), toy_samples(3)
    assert default_batch_size(adapter, samples) == 1
    adapter.device = torch.device("cuda")  # the toy still computes on the CPU
    many = samples * 100
    free: list[int | None] = [None]
    monkeypatch.setattr(mir_plugin.engine.batches, "free_memory", lambda device: free[0])
    n_tokens = max(12 + len(sample.text) for sample in samples)
    assert default_batch_size(adapter, many) == ENOUGH_TOKENS // n_tokens
    assert default_batch_size(adapter, samples) == 3
    one = bytes_of_layer(adapter.decoder, n_tokens)
    free[0] = 4 * 5 * one + 3  # a quarter of it may be taken
    assert default_batch_size(adapter, many) == 5
    free[0] = 1
    assert default_batch_size(adapter, many) == 1


def test_the_proof_of_the_replay_runs_on_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ToyAdapter()
    plain, lengths = adapter.encode, []

    def watched(samples: list[Any]) -> Any:
        lengths.extend(len(sample.text) for sample in samples)
        return plain(samples)

    monkeypatch.setattr(adapter, "encode", watched)
    assert check_replay(adapter, dataclasses.replace(toy_samples(1)[0], text="word " * 80)).path == "breadth-first"
    assert lengths == [PROOF_TEXT - 1]  # less the space at its end
