"""The parts of Mini-Gemini's image path on their own; the recorded numbers are in test_mini_gemini.py."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.mini_gemini.convnext import ConvNextTower, build_convnext, resize_map
from mir_plugin.model_adapters.mini_gemini.patch_info_mining import PatchInfoMining, windows
from mir_plugin.model_adapters.mini_gemini.vision import ViewLayout, high_resolution_views, low_resolution_views

pytestmark = pytest.mark.slow

HD = ViewLayout(side=4, grid=2, with_global_view=True)


def numbered_map(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)


def test_views_come_whole_picture_first_then_tiles_row_by_row():
    pixels = torch.zeros(3, 8, 8)
    pixels[:, :4, :4], pixels[:, :4, 4:], pixels[:, 4:, :4], pixels[:, 4:, 4:] = 1.0, 2.0, 3.0, 4.0
    views = low_resolution_views(pixels, HD)
    assert views.shape == (5, 3, 4, 4)
    assert [view.unique().tolist() for view in views[1:]] == [[1.0], [2.0], [3.0], [4.0]]
    assert views[0, 0, ::3, ::3].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_high_resolution_views_follow_the_order_of_the_low_resolution_views():
    feature_map = resize_map(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), (8, 8))[0]
    whole, *tiles = high_resolution_views(feature_map, HD)
    low_whole, *low_tiles = low_resolution_views(feature_map.expand(3, 8, 8), HD)
    assert torch.equal(whole, low_whole[:1])
    assert all(torch.equal(tile, low[:1]) for tile, low in zip(tiles, low_tiles, strict=True))


def test_one_view_is_the_whole_picture_shrunk_without_antialiasing():
    pixels = numbered_map(8, 8).expand(3, 8, 8)
    (view,) = low_resolution_views(pixels, ViewLayout(side=2))
    # Half-pixel centres at scale 4: output 0 lies at input 1.5, between rows (and columns) 1 and 2.
    assert view[0, 0, 0] == pixels[0, 1:3, 1:3].mean()


def test_windows_are_row_major_inside_and_outside():
    cut = windows(numbered_map(4, 4).permute(1, 2, 0), n_tokens=4)
    assert cut[:, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("n_tokens", "height", "width"), [(5, 4, 4), (4, 5, 4), (4, 4, 5)])
def test_a_map_that_cannot_be_shared_out_is_refused_with_its_size(n_tokens, height, width):
    with pytest.raises(MirError, match=rf"{height} x {width} feature map among {n_tokens} tokens.*image_size_aux"):
        windows(torch.zeros(height, width, 3), n_tokens)


def test_a_token_sees_its_own_window_and_nothing_else():
    mining = PatchInfoMining(d=6, d_aux=5)
    tokens, feature_map = torch.randn(4, 6), torch.randn(5, 4, 4)
    before = mining(tokens, feature_map)
    feature_map[:, :2, 2:] += torch.randn(5, 2, 2)
    changed = (mining(tokens, feature_map) - before).abs().amax(dim=1) > 0
    assert changed.tolist() == [False, True, False, False]


def test_mining_is_scaled_dot_product_attention_over_the_window():
    mining = PatchInfoMining(d=6, d_aux=5).double()
    tokens, feature_map = torch.randn(4, 6).double(), torch.randn(5, 4, 4).double()
    window = feature_map[:, 2:, :2].flatten(1).T  # token 2 is row 1, column 0
    query = mining.query_projector(tokens[2:3])
    keys, values = mining.aux_projector(window), mining.val_projector(window)
    attended = scaled_dot_product_attention(query[None], keys[None], values[None])[0, 0]
    torch.testing.assert_close(mining(tokens, feature_map)[2], attended, rtol=1e-12, atol=1e-12)


def test_a_damaged_feature_is_not_hidden_by_the_softmax_guard():
    mining = PatchInfoMining(d=6, d_aux=5)
    feature_map = torch.randn(5, 4, 4)
    feature_map[0, 0, 0] = torch.nan
    assert mining(torch.randn(4, 6), feature_map)[0].isnan().all()


def small_tower() -> ConvNextTower:
    return ConvNextTower(depths=(1, 2, 1, 1), widths=(4, 6, 8, 10))


def test_the_tower_stacks_four_stages_at_the_size_of_the_first():
    assert small_tower()(torch.randn(1, 3, 64, 64)).shape == (1, 28, 16, 16)


def test_the_tower_is_deterministic_even_in_training_mode():
    tower, pixels = small_tower().train(), torch.randn(1, 3, 64, 64)
    assert torch.equal(tower(pixels), tower(pixels))


def test_depths_and_widths_are_read_from_the_tensor_shapes():
    tower = small_tower()
    shapes = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    rebuilt = build_convnext(shapes, "somewhere")
    assert {key: tuple(value.shape) for key, value in rebuilt.state_dict().items()} == shapes


def test_only_the_largest_released_convnext_has_the_larger_epsilon():
    with torch.device("meta"):
        large = ConvNextTower((1, 1, 1, 1), (192, 384, 768, 1536))
        largest = ConvNextTower((1, 1, 1, 1), (384, 768, 1536, 3072))
    assert (large.stages[0].blocks[0].norm.eps, largest.stages[0].blocks[0].norm.eps) == (1e-6, 1e-5)


def test_a_stage_without_its_first_block_is_named():
    shapes = {key: tuple(value.shape) for key, value in small_tower().state_dict().items()}
    del shapes["stages.1.blocks.0.gamma"]
    with pytest.raises(MirError, match=r"(?s)tower.bin .*ConvNeXt.*\(1, 1\).*--vision-tower-aux"):
        build_convnext(shapes, "tower.bin")


def test_a_tower_of_another_kind_is_refused():
    with pytest.raises(MirError, match="found none"):
        build_convnext({"stem.0.weight": (4, 3, 4, 4)}, "tower.bin")
