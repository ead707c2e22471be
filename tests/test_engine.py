from __future__ import annotations

import dataclasses

import pytest
import torch

from mir_plugin.engine.features import layer_features, packed_by_length
from mir_plugin.engine.memory import estimate_memory, require_disk_space
from mir_plugin.engine.replay import ReplayCheck, check_replay
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
