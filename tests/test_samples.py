from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFile

from mir_plugin.errors import MirError
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.samples.sources import (
    from_dataset,
    from_dataset_address,
    from_folders,
    paper_samples,
)

from golden_data import require_golden


def write_pairs(folder: Path, names: list[str]) -> None:
    for index, name in enumerate(names):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"text {name}", encoding="utf-8")


def test_folders_pair_in_natural_order(tmp_path):
    write_pairs(tmp_path, ["10", "9", "1"])
    samples = from_folders(tmp_path, tmp_path).samples
    assert [(sample.image.name, sample.text) for sample in samples] == [
        ("1.png", "text 1"),
        ("9.png", "text 9"),
        ("10.png", "text 10"),
    ]


def test_highlights_of_a_story_are_dropped_in_the_recorded_samples():
    folder = require_golden("llava/llava_full") / "samples"
    samples = from_folders(folder, folder)
    assert len(samples) == 6
    assert "@highlight" in (folder / "01.txt").read_text() and "@highlight" not in samples.samples[1].text


def test_a_choice_is_seeded_recorded_and_keeps_the_order(tmp_path):
    write_pairs(tmp_path, [str(i) for i in range(20)])
    first, again = (from_folders(tmp_path, tmp_path, n_samples=5, seed=3) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.description["choice"] == sorted(first.description["choice"])
    assert [sample.text for sample in first.samples] == [f"text {i}" for i in first.description["choice"]]
    assert from_folders(tmp_path, tmp_path, n_samples=5, seed=4).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"", "no text"), (b"@highlight only", "no text"), (b"caf\xe9", "not UTF-8")]
)
def test_an_unusable_text_is_an_error_that_names_the_file(tmp_path, content, complaint):
    write_pairs(tmp_path, ["1", "2"])
    (tmp_path / "2.txt").write_bytes(content)
    with pytest.raises(MirError, match=rf"2\.txt.*{complaint}"):
        from_folders(tmp_path, tmp_path)


@pytest.mark.parametrize("host_allows_it", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_an_error_before_the_run(tmp_path, monkeypatch, suffix, host_allows_it):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", host_allows_it)  # as importing lmms-eval's tasks does
    Image.effect_noise((200, 200), 50).save(tmp_path / f"1.{suffix}")
    (tmp_path / "1.txt").write_text("text")
    whole = (tmp_path / f"1.{suffix}").read_bytes()
    from_folders(tmp_path, tmp_path)
    (tmp_path / f"1.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MirError, match=rf"1\.{suffix}.*cannot be read"):
        from_folders(tmp_path, tmp_path)


def test_unequal_numbers_of_files_need_a_number_of_samples(tmp_path):
    write_pairs(tmp_path, ["1", "2", "3"])
    (tmp_path / "3.txt").unlink()
    with pytest.raises(MirError, match=r"3 images.*2 texts.*--n-samples"):
        from_folders(tmp_path, tmp_path)
    assert len(from_folders(tmp_path, tmp_path, n_samples=2)) == 2


def test_more_samples_than_pairs_are_an_error(tmp_path):
    write_pairs(tmp_path, ["1", "2"])
    with pytest.raises(MirError, match=r"3 samples.* 2"):
        from_folders(tmp_path, tmp_path, n_samples=3)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MirError, match="nowhere"):
        from_folders(tmp_path / "nowhere", tmp_path)


def test_the_fingerprint_depends_on_order_text_and_pixels():
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    a, b = Sample("a", red, "one"), Sample("b", blue, "two")
    variants = [(a, b), (b, a), (a,), (Sample("a", blue, "one"), b), (Sample("a", red, "other"), b)]
    assert len({SampleSet(variant).fingerprint for variant in variants}) == len(variants)
    assert SampleSet((Sample("renamed", red, "one"), b)).fingerprint == SampleSet((a, b)).fingerprint


def test_sample_ids_are_unique_and_texts_not_empty():
    image = Image.new("RGB", (2, 2))
    with pytest.raises(MirError, match="'a' occurs more than once"):
        SampleSet((Sample("a", image, "x"), Sample("a", image, "y")))
    with pytest.raises(MirError, match="sample a has an empty text"):
        SampleSet((Sample("a", image, " "),))
    with pytest.raises(MirError, match="empty"):
        SampleSet(())


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A working directory in which dataset names are local folders, as `datasets` resolves them."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(6)]
    questions = {"image": images, "image_id": ["a", "a", "b", "c", "d", "e"], "question": ["Why?"] * 6}
    features = datasets.Features(
        {"image": datasets.Image(), "image_id": datasets.Value("string"), "question": datasets.Value("string")}
    )
    pictures = tmp_path / "lmms-lab-encoder" / "textvqa"
    pictures.mkdir(parents=True)
    datasets.Dataset.from_dict(questions, features).to_parquet(pictures / "validation-0.parquet")
    stories = tmp_path / "abisee" / "cnn_dailymail" / "3.0.0"
    stories.mkdir(parents=True)
    articles = {"article": [f"Story {index}. @highlight Sum" for index in range(7)]}
    datasets.Dataset.from_dict(articles).to_parquet(stories / "test-0.parquet")
    (stories.parent / "README.md").write_text(
        '---\nconfigs:\n- config_name: "3.0.0"\n  data_files:\n  - {split: test, path: 3.0.0/test-*}\n---\n'
    )
    return tmp_path


def test_the_papers_choice_takes_each_image_once_and_records_rows(hub_folder):
    chosen = paper_samples(n_samples=5, seed=0)
    assert chosen.description["choice"]["images"] == [0, 2, 3, 4, 5]
    assert [sample.text for sample in chosen.samples] == [
        f"Story {row}." for row in chosen.description["choice"]["texts"]
    ]
    assert chosen.fingerprint == paper_samples(n_samples=5, seed=0).fingerprint


def test_a_dataset_gives_its_columns_by_guess_or_by_name(hub_folder):
    guessed = from_dataset("lmms-lab-encoder/textvqa", n_samples=2)
    assert guessed.description["columns"] == {"image": "image", "text": "question"}
    assert guessed.description["split"] == "validation"
    named = from_dataset("lmms-lab-encoder/textvqa", n_samples=2, text_column="image_id")
    assert {sample.text for sample in named.samples} <= set("abcde")
    with pytest.raises(MirError, match=r"no column 'capton'.*question"):
        from_dataset("lmms-lab-encoder/textvqa", text_column="capton")


def test_a_dataset_s_address_names_what_is_to_be_chosen(hub_folder):
    chosen = from_dataset_address("lmms-lab-encoder/textvqa,text=image_id,split=validation,image=image", n_samples=2)
    assert chosen.description["columns"] == {"image": "image", "text": "image_id"}
    assert chosen.description["dataset"] == "lmms-lab-encoder/textvqa"
    articles = "abisee/cnn_dailymail,config=3.0.0,split=test"
    with pytest.raises(MirError, match="article: NAME,image=COLUMN"):
        from_dataset_address(articles)


@pytest.mark.parametrize("address", ["name,split", "name,split=", "name,columns=a", "name,split=a,split=b", "name,"])
def test_an_address_that_is_not_understood_says_what_one_is(address):
    with pytest.raises(MirError, match=r"config=\.\.\., split=\.\.\., image=\.\.\., text="):
        from_dataset_address(address)


def test_without_network_the_error_names_what_works(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(MirError, match=r"textvqa.*--embedded.*--images"):
        paper_samples(n_samples=2)
