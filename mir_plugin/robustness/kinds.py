"""The kinds of images and texts that a robustness study varies, from a user's folders or embedded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.robustness.contents import (
    Pairs,
    embedded_images,
    embedded_pairs,
    embedded_texts,
    folder_images,
    folder_pairs,
    folder_texts,
)
from mir_plugin.robustness.studies import Kinds
from mir_plugin.samples.embedded import micro_checkpoints


def chosen_kinds(
    images: Sequence[Path],
    texts: Sequence[Path],
    pairs: tuple[Path, Path] | None,
    seen: tuple[Path, Path] | None,
    unseen: tuple[Path, Path] | None,
    checkpoints: Sequence[Path],
) -> Kinds:
    """Kinds from a user's folders, embedded ones where none are named.

    Args:
        images, texts: a folder for each kind.
        pairs: images and texts that belong together.
        seen, unseen: such pairs from the training data, and held out from it.
        checkpoints: to be measured; what the embedded ones were trained on is known.
    Raises:
        MirError: if a folder cannot be read, two kinds have one name, or only one of ``seen`` and ``unseen`` is given.
    """
    if (seen is None) != (unseen is None):
        raise MirError("--seen and --unseen go together: one is compared with the other.")
    known = {path.resolve() for path in micro_checkpoints()}
    of_training: tuple[Pairs | None, Pairs | None] = (None, None)
    if seen and unseen:
        of_training = folder_pairs(*seen), folder_pairs(*unseen)
    elif all(checkpoint.resolve() in known for checkpoint in checkpoints):
        of_training = embedded_pairs("train"), embedded_pairs("test")
    kinds = Kinds(
        images=tuple(map(folder_images, images)) if images else embedded_images(),
        texts=tuple(map(folder_texts, texts)) if texts else embedded_texts(),
        pairs=folder_pairs(*pairs) if pairs else embedded_pairs(),
        seen=of_training[0],
        unseen=of_training[1],
    )
    for option, of_kind in (("--images", kinds.images), ("--texts", kinds.texts)):
        names = [one.name for one in of_kind]
        if len(set(names)) < len(names):
            raise MirError(f"two folders of {option} have the same name ({', '.join(names)}); rename one.")
    return kinds
