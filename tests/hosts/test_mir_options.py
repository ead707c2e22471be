from pathlib import Path

import PIL.Image
import pytest

from mir_plugin.errors import MirError
from mir_plugin.tasks.options import MirOptions, resolve

pytestmark = pytest.mark.slow


def test_the_paper_is_the_default() -> None:
    options = resolve({}, {}, {})
    assert (options.samples, options.n_samples, options.seed, options.outliers, options.normalize) == (
        "paper",
        None,
        0,
        "replace",
        True,
    )
    assert options.origin == {}


def test_task_file_beats_model_arguments_and_these_beat_the_environment() -> None:
    environment = {"MIR_SAMPLES": "dataset:x", "MIR_N_SAMPLES": "3", "MIR_SEED": "4"}
    options = resolve({"samples": "embedded"}, {"samples": "paper", "n_samples": 7}, environment)
    assert (options.samples, options.n_samples, options.seed) == ("embedded", 7, 4)
    assert options.origin == {"samples": "task file", "n_samples": "model_args", "seed": "environment MIR_SEED"}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"n_samples": "many"}, "n_samples is 'many' (task file)"),
        ({"n_samples": 0}, "n_samples is 0 (task file)"),
        ({"seed": -1}, "seed is -1"),
        ({"normalize": "maybe"}, "normalize (task file) is 'maybe'"),
    ],
)
def test_a_wrong_value_names_the_option_and_where_it_was_set(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(MirError) as error:
        resolve(fields, {}, {})
    assert complaint in str(error.value)


@pytest.mark.parametrize("samples", ["texts", "folders:only-one", "dataset:"])
def test_an_unknown_source_of_samples_lists_the_known_ones(samples: str) -> None:
    with pytest.raises(MirError, match=r"expected paper, embedded, folders:IMAGES_DIR,TEXTS_DIR or dataset:NAME"):
        MirOptions(samples=samples).sample_set()


def test_unknown_outliers_are_refused() -> None:
    with pytest.raises(MirError, match="outliers is 'drop'"):
        _ = resolve({"outliers": "drop"}, {}, {}).config


def test_the_sample_set_records_where_each_option_was_set() -> None:
    options = resolve({"samples": "embedded"}, {}, {"MIR_N_SAMPLES": "2"})
    chosen = options.sample_set()
    assert len(chosen) == 2
    assert chosen.description["options"]["samples"] == "task file"
    assert chosen.description["options"]["n_samples"] == "environment MIR_N_SAMPLES"
    assert chosen.description["options"]["seed"] == "default"


def test_an_unreadable_image_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    images, texts = tmp_path / "images", tmp_path / "texts"
    images.mkdir()
    texts.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(images / "0.png")
    (images / "1.png").write_bytes(b"no picture")
    for i in range(2):
        (texts / f"{i}.txt").write_text("some text")
    with pytest.raises(MirError, match="image cannot be read"):
        resolve({"samples": f"folders:{images},{texts}"}, {}, {}).sample_set()
