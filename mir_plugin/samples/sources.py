"""Where image-text pairs come from: folders, Hugging Face datasets, and the paper's own choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mir_plugin.errors import MirError
from mir_plugin.files.redaction import without_secrets
from mir_plugin.samples.sample_set import Sample, SampleSet, seeded_choice

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_SUFFIXES = frozenset({".txt", ".story", ".text", ".md"})
HIGHLIGHT = "@highlight"
N_PAPER_SAMPLES = 100
LONGEST_TEXT_BYTES = 20_000_000
PAPER_IMAGES = ("lmms-lab-encoder/textvqa", "lmms-lab/textvqa")
PAPER_TEXTS = ("abisee/cnn_dailymail", "3.0.0", "test", "article")
WITHOUT_NETWORK = (
    "Without network access, use --embedded (samples shipped with mir-plugin) or --images DIR --texts DIR."
)


def from_folders(images_dir: Path, texts_dir: Path, n_samples: int | None = None, seed: int = 0) -> SampleSet:
    """The i-th image with the i-th text, both in natural file-name order; all pairs, or a seeded choice of n.

    Images are files with a suffix that Pillow knows; texts are .txt, .story, .text and .md files in UTF-8. Of a CNN
    story, what follows the first ``@highlight`` is dropped. Where one folder holds more files than the other, n is
    required, and the choice is made among the pairs that exist.

    Raises:
        MirError: for a missing or empty folder, different numbers of files without ``n_samples``, a text that is
            empty or not UTF-8, an image that cannot be read; names the file.
    """
    images, texts = image_files(images_dir), text_files(texts_dir)
    if len(images) != len(texts) and n_samples is None:
        fewer = min(len(images), len(texts))
        raise MirError(
            f"{images_dir} holds {len(images)} images and {texts_dir} {len(texts)} texts, but pairs are needed. "
            f"Remove files without a partner, or pass --n-samples N (at most {fewer}) to use the first {fewer} of both."
        )
    pairs = list(zip(images, texts, strict=False))  # unequal only where --n-samples was said
    choice = seeded_choice(len(pairs), len(pairs) if n_samples is None else n_samples, seed)
    chosen = [pairs[index] for index in choice]
    description = _description("folders", len(pairs), n_samples, seed, choice)
    return SampleSet(
        samples=tuple(Sample(f"{image.name} + {text.name}", image, read_text(text)) for image, text in chosen),
        description={
            **description,
            "n_images": len(images),
            "n_texts": len(texts),
            "files": [[image.name, text.name] for image, text in chosen],
        },
    ).checked()


def image_files(folder: Path) -> list[Path]:
    """Files of a folder with a suffix that Pillow knows, in natural order. Raises MirError if there is none."""
    import PIL.Image

    return _files(folder, frozenset(PIL.Image.registered_extensions()), "image")


def text_files(folder: Path) -> list[Path]:
    """Text files and stories of a folder, in natural order. Raises MirError if there is none."""
    return _files(folder, TEXT_SUFFIXES, "text")


def read_text(path: Path) -> str:
    """The text of a file: up to the first ``@highlight`` of a CNN story, stripped. Raises MirError naming the file."""
    try:
        if path.stat().st_size > LONGEST_TEXT_BYTES:
            raise MirError(
                f"{path} has {path.stat().st_size:,} bytes; at most {LONGEST_TEXT_BYTES:,} are read. Replace it."
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MirError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise MirError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}). Convert it, or remove it."
        ) from error
    text = before_highlights(text)
    if not text:
        raise MirError(f"{path} has no text before the first {HIGHLIGHT}. Replace or remove it.")
    return text


def before_highlights(story: str) -> str:
    """A CNN story without its summary sentences.

    >>> before_highlights("A cat sat. @highlight Cat sits")
    'A cat sat.'
    """
    return story.split(HIGHLIGHT, 1)[0].strip()


def natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key by which ``2.png`` comes before ``10.png``.

    >>> sorted(["10.png", "2.png", "a.png"], key=natural_order)
    ['2.png', '10.png', 'a.png']
    """
    parts = [part for part in re.split(r"(\d+)", name.casefold()) if part]
    key = tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)
    return (*key, (2, name))  # names that differ in case or leading zeros only still have one order


def from_dataset_address(address: str, n_samples: int | None = N_PAPER_SAMPLES, seed: int = 0) -> SampleSet:
    """``from_dataset`` of ``NAME[,config=...][,split=...][,image=COLUMN][,text=COLUMN]``.

    Raises:
        MirError: as ``from_dataset``, or for an address that is not of this form.
    """
    name, *fields = address.split(",")
    if not name.strip():
        raise MirError(f"--dataset {address!r} names no dataset. Start with its name or folder: NAME,split=...")
    parameters = {"config": "config", "split": "split", "image": "image_column", "text": "text_column"}
    named: dict[str, str] = {}
    for field in fields:
        key, _, value = field.partition("=")
        if key not in parameters or not value or parameters[key] in named:
            raise MirError(
                f"invalid field {field!r} in --dataset {address!r}; expected NAME followed by any of "
                f"{', '.join(f'{key}=...' for key in parameters)}, each at most once."
            )
        named[parameters[key]] = value
    return from_dataset(name, n_samples, seed, **named)


def from_dataset(
    name: str,
    n_samples: int | None = N_PAPER_SAMPLES,
    seed: int = 0,
    *,
    config: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
) -> SampleSet:
    """A seeded choice of rows of a Hugging Face dataset, by name or local folder; each row gives one pair.

    Without a split the first of validation, test, val and train is taken; without columns, the one that holds images
    and the likeliest one that holds text. All of it is recorded. ``n_samples`` None takes every row.

    Raises:
        MirError: if the dataset cannot be loaded, has no such split or column, leaves the columns open, or a chosen row
            has no image or no text; names the dataset and the remedy.
    """
    rows, split = _load(name, config, split)
    image_column = image_column or _guess_image_column(name, rows)
    text_column = text_column or _guess_text_column(name, rows)
    _require_columns(name, rows, (image_column, text_column))
    choice = seeded_choice(len(rows), len(rows) if n_samples is None else n_samples, seed)
    images = _encoded_images(rows, image_column, choice, name)
    texts = [_text_of(row[text_column]) for row in rows.select_columns([text_column]).select(choice)]
    empty = [index for index, text in zip(choice, texts, strict=True) if not text]
    if empty:
        raise MirError(
            f"row {empty[0]} of {name} ({split}) has an empty {text_column!r}. Choose another --seed or column."
        )
    return SampleSet(
        samples=tuple(
            Sample(f"{without_secrets(name)}/{split}/{index}", image, text)
            for index, image, text in zip(choice, images, texts, strict=True)
        ),
        description={
            **_description("dataset", len(rows), n_samples, seed, choice),
            "dataset": without_secrets(name),
            "config": config,
            "split": split,
            "columns": {"image": image_column, "text": text_column},
        },
    ).checked()


def paper_samples(n_samples: int = N_PAPER_SAMPLES, seed: int = 0) -> SampleSet:
    """The paper's kind of samples: TextVQA validation images with CNN/DailyMail articles, a recorded seeded choice.

    The paper does not say which 100 it took; ours are the same everywhere for the same seed. Images and articles are
    chosen independently: a pair need not belong together. TextVQA asks several questions about one image; each image
    counts once.

    Raises:
        MirError: if a dataset is neither cached nor reachable; names what works without network.
    """
    images_name, images = _first_loadable(PAPER_IMAGES, "validation")
    texts_name, config, split, column = PAPER_TEXTS
    articles, _ = _load(texts_name, config, split)
    first_rows = _first_row_of_each(images["image_id"])
    image_choice = tuple(first_rows[index] for index in seeded_choice(len(first_rows), n_samples, seed))
    text_choice = seeded_choice(len(articles), n_samples, seed)
    pictures = _encoded_images(images, "image", image_choice, images_name)
    return SampleSet(
        samples=tuple(
            Sample(
                f"textvqa-{image_row} + cnn_dailymail-{text_row}",
                picture,
                before_highlights(articles[text_row][column]),
            )
            for image_row, text_row, picture in zip(image_choice, text_choice, pictures, strict=True)
        ),
        description={
            "source": "paper",
            "images": f"{images_name} validation",
            "texts": f"{texts_name} {config} {split}",
            "n_available": min(len(first_rows), len(articles)),
            "n_samples": n_samples,
            "seed": seed,
            "choice": {"images": list(image_choice), "texts": list(text_choice)},
        },
    ).checked()


def _files(folder: Path, suffixes: frozenset[str], kind: str) -> list[Path]:
    if not folder.is_dir():
        raise MirError(f"{folder} is not a folder; expected a folder of {kind} files.")
    named = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    dangling = [path for path in named if path.is_symlink() and not path.exists()]
    if dangling:  # left out, it would shift all pairs behind it
        raise MirError(f"{dangling[0]} is a broken link. Remove it, or restore its target.")
    found = [path for path in named if path.is_file()]
    if not found:
        known = ".png, .jpg, .jpeg, .webp and others" if kind == "image" else ", ".join(sorted(suffixes))
        raise MirError(f"{folder} contains no {kind} files (looked for {known}).")
    return sorted(found, key=lambda path: natural_order(path.name))


def _description(
    source: str, n_available: int, n_samples: int | None, seed: int, choice: Sequence[int]
) -> dict[str, Any]:
    everything = n_samples is None
    return {
        "source": source,
        "n_available": n_available,
        "n_samples": len(choice),
        "seed": None if everything else seed,
        "choice": None if everything else list(choice),
    }


def _load(name: str, config: str | None, split: str | None) -> tuple[Dataset, str]:
    import datasets

    try:
        splits = datasets.get_dataset_split_names(name, config)
        chosen = split or next((s for s in ("validation", "test", "val", "train") if s in splits), splits[0])
        if chosen in splits:
            return datasets.load_dataset(name, config, split=chosen), chosen
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MirError(f"the dataset {name!r} cannot be loaded ({first_line}). {WITHOUT_NETWORK}") from error
    raise MirError(f"the dataset {name!r} has no split {chosen!r}; it has: {', '.join(splits)}.")


def _first_loadable(names: Iterable[str], split: str) -> tuple[str, Dataset]:
    failures = []
    for name in names:
        try:
            return name, _load(name, None, split)[0]
        except MirError as error:
            failures.append(error)
    raise failures[-1]


def _guess_image_column(name: str, rows: Dataset) -> str:
    import datasets

    found = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        has = f"columns {', '.join(found)} hold images" if found else "no column holds images"
        raise MirError(f"{name}: {has}; choose one of {', '.join(rows.column_names)}: NAME,image=COLUMN.")
    column: str = found[0]
    return column


def _guess_text_column(name: str, rows: Dataset) -> str:
    likely = ("text", "caption", "captions", "article", "story", "answer", "description", "sentence", "question")
    for column in likely:
        if column in rows.column_names and _text_of(rows.select_columns([column])[0][column]):
            return column
    raise MirError(
        f"cannot tell which column of {name} holds text; choose one of {', '.join(rows.column_names)}: "
        "NAME,text=COLUMN."
    )


def _require_columns(name: str, rows: Dataset, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in rows.column_names:
            raise MirError(f"{name} has no column {column!r}; it has: {', '.join(rows.column_names)}.")


def _encoded_images(rows: Dataset, column: str, choice: Sequence[int], name: str) -> list[bytes]:
    """Images as stored, undecoded; only the chosen rows are read."""
    import datasets

    cells = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False)).select(choice)
    images = []
    for index, row in zip(choice, cells, strict=True):
        cell = row[column]
        if cell is None:
            raise MirError(f"row {index} of {name} has no image in {column!r}. Choose another --seed or column.")
        images.append(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes())
    return images


def _text_of(cell: Any) -> str:
    """A cell's text; the first of a list of captions."""
    if isinstance(cell, (list, tuple)):
        cell = cell[0] if cell else ""
    return before_highlights(cell) if isinstance(cell, str) else ""


def _first_row_of_each(values: Iterable[Any]) -> list[int]:
    rows: dict[Any, int] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, row)
    return list(rows.values())
