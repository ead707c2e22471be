"""Pictures of tokens: the numbers they are drawn from, and the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.pictures.data import Pictures
from mir_plugin.pictures.tokens import (
    N_BINS,
    PictureOptions,
    PictureRecorder,
    norm_histograms,
    principal_components,
    require_methods,
    spread_layers,
    token_maps,
)
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.embedded import micro_checkpoints
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.types import TokenFeatures

from toy import ToyAdapter, toy_samples


def two_clouds(n: int = 40, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)) + 4.0, rng.normal(size=(n, d)) - 4.0


def test_the_principal_plane_tells_two_clouds_apart_with_vision_to_the_right():
    vision, text = two_clouds()
    for first, second in ((vision, text), (text, vision)):
        components, shares = principal_components(np.concatenate([first, second]), len(first))
        assert components[: len(first), 0].min() > 0 > components[len(first) :, 0].max()
        assert shares[0] > 0.8
        assert shares.sum() == pytest.approx(1)
        assert np.all(components[: len(first)].sum(axis=0) >= 0)


def test_the_plane_keeps_the_distances_of_tokens_that_lie_in_it():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 9))
    plane = principal_components(flat, 10)[0][:, :2]
    distances = [np.linalg.norm(points[:, None] - points[None], axis=2) for points in (flat, plane)]
    assert np.allclose(*distances)


def test_tsne_keeps_two_clouds_apart_and_repeats_itself():
    vision, text = two_clouds()
    options = PictureOptions((1,), ("tsne",), seed=3)
    [one], [again] = token_maps(1, vision, text, options), token_maps(1, vision, text, options)
    assert one == again
    assert one.note == "perplexity 26.3333"
    v, t = np.array(one.vision), np.array(one.text)
    between = np.linalg.norm(v.mean(axis=0) - t.mean(axis=0))
    assert between > 2 * max(v.std(), t.std()) or between > np.ptp(v, axis=0).max() / 2
    nearest = np.linalg.norm(v[:, None] - np.concatenate([v, t])[None], axis=2)
    nearest[nearest == 0] = math.inf
    assert (nearest.argmin(axis=1) < len(v)).all()


def test_too_few_tokens_make_no_picture():
    with pytest.raises(MirError, match="2 tokens at layer 7"):
        token_maps(7, np.ones((1, 4)), np.ones((1, 4)), PictureOptions((7,), ("pca",)))


def test_thresholds_are_those_by_which_mir_finds_outliers():
    torch.manual_seed(0)
    vision, text = torch.randn(300, 8), torch.randn(300, 8)
    vision[5] *= 30
    features = TokenFeatures(2, vision, text, (300,), (300,))
    recorder = PictureRecorder(PictureOptions((2,), ("pca",), n_tokens=300))
    recorder(features)
    pictures = recorder.pictures("toy", "key")
    prepared = PooledLayer.of(features, MirConfig())
    of_vision, of_text = pictures.norms
    assert (of_vision.modality, of_text.modality) == ("vision", "text")
    assert (of_vision.n_outliers, of_text.n_outliers) == (prepared.vision.n_outliers, prepared.text.n_outliers)
    norms = prepared.vision_norms
    assert ((norms < of_vision.low) | (norms > of_vision.high)).sum() == of_vision.n_outliers == 1
    assert len(pictures.maps[0].vision) == 299  # the outlier is left out
    assert sum(of_vision.counts) == 300


def test_bins_grow_where_a_few_tokens_are_much_longer():
    usual, massive = torch.linspace(1, 2, 200), torch.cat([torch.linspace(1, 2, 200), torch.tensor([900.0])])
    [short, same] = norm_histograms(1, {"vision": usual, "text": usual / 2}, 3.0)
    [long, text] = norm_histograms(1, {"vision": massive, "text": usual}, 3.0)
    assert (short.logarithmic, long.logarithmic) == (False, True)
    assert short.edges == same.edges and long.edges == text.edges  # so that heights can be compared
    assert (short.edges[0], short.edges[-1]) == (0.5, 2.0)
    assert len(long.counts) == N_BINS and (sum(long.counts), sum(text.counts)) == (201, 200)
    assert np.diff(np.log(long.edges)) == pytest.approx(math.log(900) / N_BINS)


def test_pictures_can_be_recorded_while_mir_is_measured():
    samples = SampleSet(tuple(toy_samples(4)))
    recorder = PictureRecorder(PictureOptions((1, 3), ("pca",), n_tokens=20))
    result = measure(ToyAdapter(), samples, checkpoint="toy", with_uncertainty=False, watch=recorder)
    pictures = recorder.pictures("toy", "key")
    assert [one.layer for one in pictures.maps] == [1, 3]
    assert (pictures.n_layers, pictures.n_samples) == (3, 4)
    assert [one.n_outliers for one in pictures.norms if one.modality == "text"] == [
        result.layers[0].n_text_outliers,
        result.layers[2].n_text_outliers,
    ]


def test_the_data_survive_their_file_and_damage_is_named(tmp_path):
    vision, text = two_clouds(5)
    recorder = PictureRecorder(PictureOptions((1,), ("pca",)))
    recorder(TokenFeatures(1, torch.tensor(vision), torch.tensor(text), (5,), (5,)))
    pictures = recorder.pictures("toy", "key")
    path = pictures.save(tmp_path / "pictures.json")
    assert Pictures.load(path).file_names == ("tokens-pca", "norms")
    assert json.loads(path.read_text())["norms"][0]["counts"] == list(pictures.norms[0].counts)
    assert Pictures.load(path) == pictures
    path.write_text('{"maps": 3}')
    with pytest.raises(MirError, match=r"pictures\.json does not hold the data of pictures"):
        Pictures.load(path)


def test_layers_are_spread_with_the_ends():
    assert spread_layers(40) == (1, 14, 27, 40)
    assert spread_layers(2) == (1, 2)


def test_an_unknown_or_missing_method_is_told(monkeypatch):
    with pytest.raises(MirError, match="unknown method 'lda'; expected pca, tsne, umap"):
        require_methods(["pca", "lda"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MirError, match="pip install umap-learn"):
        require_methods(["umap"])
    require_methods(["pca", "tsne"])


@pytest.mark.slow
def test_the_command_writes_pictures_beside_the_result_and_the_page_shows_them(monkeypatch, capsys, tmp_path):
    from test_cli import mir

    arguments = (
        "pictures", micro_checkpoints()[0], "--embedded", "--n-samples", 2, "--methods", "pca", "--n-tokens", 40,
        "--layers", "1,6", "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert mir(monkeypatch, *arguments) == 0
    folder = tmp_path / "micro_llava_step-5"
    result, data = MirResult.load(folder / "mir.json"), Pictures.load(folder / "pictures" / "pictures.json")
    assert data.layers == (1, 6)
    assert result.n_samples == data.n_samples == 2
    printed = capsys.readouterr().out
    for name in ("tokens-pca.png", "norms.png"):
        assert name in printed
        assert (folder / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "gaps.svg").is_file()

    def loaded_again(*_, **__):
        raise AssertionError("loaded again")

    monkeypatch.setattr("mir_plugin.model_adapters.Checkpoint.load", loaded_again)
    assert mir(monkeypatch, *arguments) == 0
    assert mir(monkeypatch, "report", tmp_path, "--out", tmp_path / "report") == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    with pytest.raises(AssertionError, match="loaded again"):
        mir(monkeypatch, *arguments, "--n-tokens", 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0,2"], "layers count from 1"),
        (["--layers", "one"], "expected layer numbers"),
        (["--methods", "lda"], "unknown method 'lda'"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(monkeypatch, capsys, tmp_path, arguments, message):
    from test_cli import mir

    monkeypatch.chdir(tmp_path)
    assert mir(monkeypatch, "pictures", micro_checkpoints()[0], "--embedded", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
