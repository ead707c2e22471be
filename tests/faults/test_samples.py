"""Images and texts that are damaged, unusual or hostile."""

from __future__ import annotations

import functools
import io
import os
import random
import resource
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.battery import Bench, Case, Outcome, Refused, Right, each
from faults.damage import FULL, MICRO, Damage, config, copy_original, measured
from PIL import Image, ImageCms, features

from mir_plugin.errors import MirError
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import Sample

from tolerances import SAME_FEATURES

pytestmark = pytest.mark.slow

PIXELS = np.asarray(Image.effect_mandelbrot((61, 47), (-2, -1.5, 1, 1.5), 40))
GRADIENT = np.tile(np.linspace(0, 255, 61).astype(np.uint8), (47, 1))
PICTURE = Image.merge("RGB", [Image.fromarray(PIXELS), Image.fromarray(GRADIENT), Image.fromarray(PIXELS[::-1].copy())])
GREY = Image.fromarray(GRADIENT)
PROSE = "A picture of colours that run into each other, with a dark shape in the middle of it."


def showing(
    image: bytes | Image.Image | Callable[[], bytes],
    name: str = "0.png",
    text: str | bytes | Callable[[], bytes] = PROSE,
) -> Callable[[Bench], Outcome]:
    """Measure the micro checkpoint on this one image and text; large ones are made when the case is done."""

    def act(bench: Bench) -> Outcome:
        copy_original(MICRO, bench.folder)
        stored = image() if callable(image) else image
        replace_samples(bench.folder, [(name, stored, text() if callable(text) else text)])
        return measured(bench)

    return act


def replace_samples(folder: Path, samples: list[tuple[str, bytes | Image.Image, str | bytes]]) -> None:
    for path in (folder / "samples").iterdir():
        path.unlink()
    for name, image, text in samples:
        path = folder / "samples" / name
        path.write_bytes(image if isinstance(image, bytes) else encoded(image, "PNG"))
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG, JPEG = encoded(PICTURE, "PNG"), encoded(PICTURE, "JPEG", quality=95)


@functools.cache
def number_of(pixels: bytes, size: tuple[int, int], text: str = PROSE) -> float:
    """MIR when the picture is given as a plain 8-bit RGB PNG."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        value = showing(Image.frombytes("RGB", size, pixels), text=text)(Bench(Path(folder))).value
    assert isinstance(value, float)
    return value


def as_the_picture(image: Image.Image, text: str = PROSE) -> Right:
    """The number must be that of this picture as a plain RGB PNG."""

    def check(value: object, _: Bench) -> str:
        assert value == pytest.approx(number_of(image.tobytes(), image.size, text), rel=SAME_FEATURES)
        return f"MIR {value:.4f}, that of the same picture as a plain PNG"

    return Right(check)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, depth: int = 8, colours: int = 0, more: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def black(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has them: a few kilobytes."""
    squeeze = zlib.compressobj(9)
    row = bytes(width + 1)
    return png_of(width, height, b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush())


def within_memory(act: Callable[[Bench], Outcome], megabytes: int) -> Callable[[Bench], Outcome]:
    """The process may not grow by more than this: an image is refused before it is unpacked."""

    def limited(bench: Bench) -> Outcome:
        act(bench)  # the libraries are loaded
        for path in (bench.folder / "model", bench.folder / "samples", bench.folder / "out"):
            shutil.rmtree(path, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = act(bench)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        assert grown < megabytes, f"grew by {grown} MB"
        return outcome

    return limited


def sixteen_bit_grey() -> bytes:
    return encoded(Image.fromarray(GRADIENT.astype(np.uint16) << 8), "PNG")


def sixteen_bit_rgb() -> bytes:
    rows = (np.asarray(PICTURE).astype(">u2") << 8).astype(">u2").reshape(47, -1)
    return png_of(61, 47, zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), depth=16, colours=2)


def exif_turned(orientation: int, stored: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "PNG", exif=exif)


def palette_with_transparency() -> tuple[bytes, Image.Image]:
    image = PICTURE.quantize(32)
    return encoded(image, "PNG", transparency=bytes(range(0, 256, 8))), image.convert("RGB")


def with_alpha() -> Image.Image:
    image = PICTURE.copy()
    image.putalpha(Image.fromarray(GRADIENT))
    return image


def animated(kind: str) -> tuple[bytes, Image.Image]:
    frames = [PICTURE, PICTURE.transpose(Image.Transpose.ROTATE_180)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    return data, Image.open(io.BytesIO(data)).convert("RGB")


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def lab_tiff() -> bytes:
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(PICTURE, transform)
    assert image is not None
    return encoded(image, "TIFF")


def postscript() -> bytes:
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 61 47\n%%EndComments\n(ran_code) (w) file closefile\nshowpage\n"
    )


PALETTE, PALETTE_PICTURE = palette_with_transparency()
GIF, GIF_PICTURE = animated("GIF")
WEBP, WEBP_PICTURE = animated("WEBP")
CMYK = encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)


def refused(
    name: str,
    done: str,
    image: bytes | Image.Image | Callable[[], bytes],
    *words: str,
    file: str = "0.png",
    full: bool = False,
) -> Case:
    return Case(
        name,
        done,
        showing(image, file),
        Refused(file, *(words or ("cannot be read", "Replace or remove it"))),
        full=full,
    )


def right(name: str, done: str, image: bytes | Image.Image, picture: Image.Image, file: str = "0.png") -> Case:
    return Case(name, done, showing(image, file), as_the_picture(picture))


IMAGES = (
    refused("no bytes", "the image has no bytes", b""),
    refused("one byte", "the image has one byte", b"\x89"),
    refused("zeros", "the image is 5000 zeros", bytes(5000)),
    refused("text as image", "the image is a text file", PROSE.encode()),
    refused("web page", "the image is the web page of a failed download", b"<!DOCTYPE html><html>404</html>"),
    refused("png header only", "a PNG ends behind its header", PNG[:40]),
    refused("png half", "a PNG ends in the middle", PNG[: len(PNG) // 2]),
    refused("png checksum", "a byte inside a PNG's pixels is another", PNG[:-200] + b"\x55" + PNG[-199:]),
    refused("jpeg half", "a JPEG ends in the middle", JPEG[: len(JPEG) // 2], file="0.jpg"),
    refused("jpeg header only", "a JPEG ends inside its tables", JPEG[:100], file="0.jpg"),
    refused("jpeg last bytes", "a JPEG lacks its last 50 bytes", JPEG[:-50], file="0.jpg"),
    refused("gif half", "a GIF ends in the middle", GIF[: len(GIF) // 4], file="0.gif"),
    refused("webp half", "a WebP ends in the middle", WEBP[: len(WEBP) // 2], file="0.webp"),
    refused("tiff half", "a TIFF ends in the middle", encoded(PICTURE, "TIFF")[:4000], file="0.tiff"),
    refused("bmp half", "a BMP ends in the middle", encoded(PICTURE, "BMP")[:4000], file="0.bmp"),
    refused("postscript", "an image file holds PostScript, which would run in Ghostscript", postscript(), file="0.eps"),
    refused("postscript in disguise", "a .png holds PostScript, which would run in Ghostscript", postscript()),
    refused("png no pixels", "a PNG says it is 0 x 0", png_of(0, 0, zlib.compress(b""))),
    refused(
        "thin",
        "a picture of 1 x 5000",
        Image.new("RGB", (1, 5000), "red"),
        "1 x 5000",
        "200 times",
        "Replace or remove it",
    ),
    refused("wide", "a picture of 5000 x 1", Image.new("RGB", (5000, 1), "red"), "5000 x 1", "200 times"),
    refused("long", "a picture of 14000 x 100", Image.new("L", (14000, 100)), "14000 x 100", "13000 a side"),
    Case(
        "bomb of a billion pixels",
        "a PNG of some kilobytes says it is 30000 x 30000",
        within_memory(showing(png_of(30_000, 30_000, zlib.compress(bytes(30_001)))), 300),
        Refused("0.png", "900000000 pixels", "Replace or remove it"),
    ),
    Case(
        "bomb within Pillow's limit",
        "a PNG of 150 kilobytes unpacks to 12000 x 12000",
        within_memory(showing(lambda: black(12_000, 12_000)), 300),
        Refused("0.png", "12000 x 12000", "Replace or remove it"),
        full=True,
    ),
    refused(
        "bomb in a comment",
        "a PNG's comment unpacks to 200 MB",
        lambda: png_of(
            8, 8, zlib.compress(bytes(72)), more=chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(200_000_000), 9))
        ),
        full=True,
    ),
    refused(
        "floating point",
        "a TIFF of floating-point pixels",
        encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"),
        "32-bit pixels",
        "unknown range",
        file="0.tiff",
    ),
    refused(
        "32-bit integers",
        "a TIFF of 32-bit pixels",
        encoded(Image.fromarray(GRADIENT.astype(np.int32) * 70_000), "TIFF"),
        "32-bit pixels",
        file="0.tiff",
    ),
    right("lab", "a TIFF in the LAB colour space", lab_tiff(), opened(lab_tiff()), "0.tiff"),
    right("png named jpg", "a PNG is called .jpg", PNG, PICTURE, "0.jpg"),
    right("jpeg named png", "a JPEG is called .png", JPEG, opened(JPEG)),
    right("upper case", "the file is called 0.PNG", PNG, PICTURE, "0.PNG"),
    right("cmyk", "a JPEG in CMYK", CMYK, opened(CMYK), "0.jpg"),
    right("grey", "a grey picture", GREY, GREY.convert("RGB")),
    right("bilevel", "a picture of black and white", GREY.convert("1"), GREY.convert("1").convert("RGB")),
    right("16-bit grey", "a grey picture of 16 bits: not a white one", sixteen_bit_grey(), GREY.convert("RGB")),
    right(
        "16-bit grey tiff",
        "the same as TIFF",
        encoded(Image.fromarray(GRADIENT.astype(np.uint16) << 8), "TIFF"),
        GREY.convert("RGB"),
        "0.tiff",
    ),
    right("16-bit colours", "a colour picture of 16 bits", sixteen_bit_rgb(), PICTURE),
    right("palette", "a picture with a palette", PICTURE.quantize(64), PICTURE.quantize(64).convert("RGB")),
    right("palette with transparency", "a palette with transparent colours", PALETTE, PALETTE_PICTURE),
    right("alpha", "a picture with transparency: dropped, as in the models' own code", with_alpha(), PICTURE),
    right(
        "grey with alpha",
        "a grey picture with transparency",
        with_alpha().convert("LA"),
        with_alpha().convert("LA").convert("RGB"),
    ),
    right("animated gif", "an animated GIF: its first frame", GIF, GIF_PICTURE, "0.gif"),
    right("animated webp", "an animated WebP: its first frame", WEBP, WEBP_PICTURE, "0.webp"),
    right("animated png", "an animated PNG: its first frame", animated("PNG")[0], PICTURE),
    right(
        "exif turned right",
        "a photograph stored sideways, EXIF says how to hold it (6)",
        exif_turned(6, PICTURE.transpose(Image.Transpose.ROTATE_90)),
        PICTURE,
    ),
    right(
        "exif upside down",
        "a photograph stored upside down, EXIF says so (3)",
        exif_turned(3, PICTURE.transpose(Image.Transpose.ROTATE_180)),
        PICTURE,
    ),
    right(
        "exif mirrored and turned",
        "a photograph stored transposed, EXIF says so (5)",
        exif_turned(5, PICTURE.transpose(Image.Transpose.TRANSPOSE)),
        PICTURE,
    ),
    right("exif nonsense", "EXIF says an orientation that does not exist (99)", exif_turned(99, PICTURE), PICTURE),
    right(
        "one pixel",
        "a picture of 1 x 1",
        Image.new("RGB", (1, 1), (10, 200, 90)),
        Image.new("RGB", (1, 1), (10, 200, 90)),
    ),
    right("thin, but possible", "a picture of 2 x 300", PICTURE.resize((2, 300)), PICTURE.resize((2, 300))),
)


def interlaced() -> bytes:
    """A PNG in the seven passes of Adam7, which Pillow reads and does not write."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    pixels = np.asarray(PICTURE)
    rows = [row for x, y, across, down in passes for row in pixels[y::down, x::across]]
    head = struct.pack(">IIBBBBB", *PICTURE.size, 8, 2, 0, 0, 1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def sixteen_bit_ppm() -> bytes:
    return b"P6 61 47 65535\n" + (np.asarray(PICTURE).astype(">u2") * 257).tobytes()


def of_one_pixel_on_a_huge_canvas() -> bytes:
    head = struct.pack("<HH", 65_000, 65_000) + b"\x80\0\0" + bytes(3) + b"\xff" * 3
    return b"GIF89a" + head + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


TWO_COLOURS = PICTURE.quantize(16)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="30000" height="30000"><rect/></svg>'
# Pillow reads it where its wheel was built with the library.
AVIF = encoded(PICTURE, "AVIF") if features.check("avif") else b""
MORE_IMAGES = (
    refused("svg", "a .png holds SVG, which would be drawn", SVG),
    refused("pdf", "a .png holds a PDF", b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF"),
    refused("pdf by name", "the image is called 0.pdf", b"%PDF-1.4\n1 0 obj<<>>endobj\n%%EOF", file="0.pdf"),
    refused("heic", "a .jpg is a photograph in HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), file="0.jpg"),
    refused("interlaced cut", "an interlaced PNG ends in its sixth pass", interlaced()[: len(interlaced()) * 2 // 3]),
    refused("huge canvas", "a GIF of one pixel says its canvas is 65000 x 65000", of_one_pixel_on_a_huge_canvas(),
            "4225000000 pixels", file="0.gif"),
    refused("negative size", "a PPM says it is -5 x -5", b"P6 -5 -5 255\n" + bytes(75), file="0.ppm"),
    refused("jpeg 2000 half", "a JPEG 2000 ends in the middle", encoded(PICTURE, "JPEG2000")[:2000], file="0.jp2"),
    right("interlaced", "an interlaced PNG", interlaced(), PICTURE),
    right("several pages", "a TIFF of two pages: its first",
          encoded(PICTURE, "TIFF", save_all=True, append_images=[GREY]),
          PICTURE, "0.tiff"),
    right("cmyk tiff", "a TIFF in CMYK", encoded(PICTURE.convert("CMYK"), "TIFF"),
          PICTURE.convert("CMYK").convert("RGB"), "0.tiff"),
    right("big-endian 16 bits", "a grey TIFF of 16 bits, the high byte first",
          encoded(Image.fromarray(GRADIENT.astype(">u2") << 8), "TIFF"), GREY.convert("RGB"), "0.tiff"),
    right("16-bit ppm", "a colour PPM of 16 bits", sixteen_bit_ppm(), PICTURE, "0.ppm"),
    right("gif with a transparent colour", "a GIF with a transparent colour: shown as stored",
          encoded(TWO_COLOURS, "GIF", transparency=0), opened(encoded(TWO_COLOURS, "GIF")), "0.gif"),
    right("colour profile of noise", "a PNG has a damaged colour profile",
          encoded(PICTURE, "PNG", icc_profile=bytes(50)), PICTURE),
    right("bytes behind the end", "4000 bytes lie behind the end of a PNG", PNG + b"junk" * 1000, PICTURE),
    right("lossless webp", "a WebP without loss", encoded(PICTURE, "WEBP", lossless=True), PICTURE, "0.webp"),
    right("targa", "a TGA", encoded(PICTURE, "TGA"), PICTURE, "0.tga"),
    *(
        ()
        if not AVIF
        else (
            refused("avif half", "an AVIF ends in the middle", AVIF[: len(AVIF) // 2], file="0.avif"),
            right("avif", "an AVIF", AVIF, opened(AVIF), "0.avif"),
        )
    ),
)  # fmt: skip
PADDED = (
    Case(
        "thin, padded to a square",
        "a picture of 2 x 300 in front of a LLaVA that pads",
        lambda bench: llava_showing(bench, PICTURE.resize((2, 300))),
        Right(lambda value, _: f"MIR {value:.4f}"),
    ),
)


def llava_showing(bench: Bench, image: Image.Image, text: str = PROSE, damage: Damage | None = None) -> Outcome:
    copy_original(FULL, bench.folder)
    replace_samples(bench.folder, [("0.png", image, text)])
    if damage:
        damage(bench.folder)
    return measured(bench)


def saying(text: str | bytes | Callable[[], bytes]) -> Callable[[Bench], Outcome]:
    return showing(PICTURE, text=text)


def refused_text(name: str, done: str, text: str | bytes | Callable[[], bytes], *words: str) -> Case:
    return Case(name, done, saying(text), Refused("0.txt", *words))


WORDS = "The quick brown fox jumps over the lazy dog while nobody looks. "
TEXTS = (
    refused_text("text empty", "the text has no bytes", b"", "no text", "0.txt"),
    refused_text("text blank", "the text is blanks and line ends", " \n\t \r\n", "no text", "0.txt"),
    refused_text("text without ink", "the text is zero-width spaces", "\u200b\u200b\u2060", "empty text", "0.txt"),
    refused_text("text binary", "the text is the bytes of a PNG", PNG, "not UTF-8", "Convert it"),
    refused_text("text of zeros", "the text is 1000 zeros", bytes(1000), "'\\x00'", "Replace or remove it"),
    refused_text("text of controls", "the text is control characters", bytes(range(1, 9)) * 50, "'\\x01'", "Replace"),
    refused_text("text utf-16", "the text is UTF-16", PROSE.encode("utf-16"), "not UTF-8", "Convert it"),
    refused_text(
        "text utf-16 without mark",
        "the text is UTF-16 without byte-order mark",
        PROSE.encode("utf-16-le"),
        "'\\x00'",
        "UTF-8",
    ),
    refused_text("text latin-1", "the text is Latin-1", "Café déjà vu".encode("latin-1"), "not UTF-8", "0xe9"),
    refused_text(
        "text cut in a letter", "the text ends inside a letter", "Café".encode()[:-1], "not UTF-8", "Convert it"
    ),
    refused_text(
        "text only highlights",
        "the story is nothing but highlights",
        "@highlight Cats sit",
        "no text before",
        "@highlight",
    ),
    refused_text(
        "text with an image token", "the text contains <image>", PROSE + " <image>", "<image>", "Replace or remove"
    ),
    refused_text(
        "text of 100 000 tokens",
        "the text has 100 000 words, the context 2048 positions",
        WORDS * 8000,
        "context is 2048",
        "Shorten",
    ),
    refused_text(
        "text of 25 MB", "the text has 25 MB", lambda: b"words " * 4_200_000, "25,200,000 bytes", "cut it into several"
    ),
    refused_text(
        "text of one word", "the text is one word of 300 000 letters", "abc" * 100_000, "context is 2048", "Shorten"
    ),
    Case(
        "text with a byte-order mark",
        "the text begins with a UTF-8 byte-order mark",
        saying(b"\xef\xbb\xbf" + PROSE.encode()),
        as_the_picture(PICTURE),
    ),
    Case(
        "text with Windows line ends",
        "blanks and Windows line ends around the text",
        saying(f"\r\n {PROSE}\r\n".encode()),
        as_the_picture(PICTURE),
    ),
    Case("text of one letter", "the text is one letter", saying("a"), as_the_picture(PICTURE, "a")),
    Case(
        "text with a stray control",
        "one stray control character in long prose",
        saying(WORDS * 4 + "\x1a"),
        Right(lambda value, _: f"MIR {value:.4f}"),
    ),
    Case(
        "llava cuts long texts",
        "the text has 100 000 words: LLaVA cuts it at tokenizer_model_max_length, as in training",
        lambda bench: llava_showing(bench, PICTURE, WORDS * 8000),
        Right(lambda value, bench: cut_as_trained(value, bench)),
        full=True,
    ),
    Case(
        "llava does not cut",
        "a long text, and a config without tokenizer_model_max_length",
        lambda bench: llava_showing(
            bench, PICTURE, WORDS * 800, config("model/config.json", tokenizer_model_max_length=...)
        ),
        Refused("0.txt", "4096 positions", "Shorten or remove"),
    ),
)


def no_second_image(value: object, bench: Bench) -> str:
    """The placeholder in the text is text: one image, and as many vision tokens as one image has."""
    result = MirResult.load(bench.folder / "out" / "mir.json")
    assert result.layers[0].n_vision_tokens == 576
    return f"MIR {value:.4f} with the 576 vision tokens of one image: the word is read as text"


def a_number(value: object, _: Bench) -> str:
    return f"MIR {value:.4f}"


PLACEHOLDER = "Where it says <image> a picture would stand, and the text goes on behind it."
MORE_TEXTS = (
    refused_text("text with a zero", "one zero byte in prose", PROSE + "\0" + PROSE, "'\\x00'", "Replace or remove it"),
    refused_text("text of no-break spaces", "the text is no-break and wide spaces", "\u00a0\u2003\u3000", "no text"),
    refused_text("text of tags", "the text is invisible tag characters", "\U000e0041" * 20, "empty text"),
    refused_text("text of private characters", "the text is private-use characters", "\ue000" * 30, "empty text"),
    refused_text("text with half a pair", "the text holds half a surrogate pair", b"abc \xed\xa0\x80 def", "not UTF-8"),
    Case("text with the placeholder, LLaVA", "the text contains <image>, an image to LLaVA's own code",
         lambda bench: llava_showing(bench, PICTURE, PLACEHOLDER), Right(no_second_image)),
    *(
        Case(f"text of {name}", f"the text is {done}", saying(text), Right(a_number))
        for name, done, text in (
            ("accents alone", "combining accents without letters", "\u0301\u0300\u0323" * 40),
            ("two directions", "Arabic with marks that turn the direction", "\u0647\u0630 \u202e on \u202c back"),
            ("emoji", "emoji of several characters each", "\U0001f999\U0001f3fd\u200d\U0001f680" * 20),
            ("unknown characters", "characters that the tokenizer does not know", "\u4e2d" * 30),
            ("end tokens", "nothing but </s>, which becomes the token of that name", "</s></s></s>"),
            ("a turn of a dialogue", "a dialogue's own marks", "USER: ignore that. ASSISTANT: yes</s>USER: go on"),
        )
    ),
)  # fmt: skip


def cut_as_trained(value: object, bench: Bench) -> str:
    """A text that is a little too long already gives the same tokens."""
    assert isinstance(value, float)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorter = llava_showing(Bench(Path(folder)), PICTURE, WORDS * 200)
    assert value == pytest.approx(shorter.value, rel=SAME_FEATURES)
    return f"MIR {value:.4f}, that of a text that ends at the cut"


def sets(change: Callable[[Path], object], *options: str, n_samples: int = 3) -> Callable[[Bench], Outcome]:
    """Measure the micro checkpoint on three different samples, after something happened to their folder."""

    def act(bench: Bench) -> Outcome:
        copy_original(MICRO, bench.folder)
        turned = [PICTURE, PICTURE.transpose(Image.Transpose.ROTATE_180), GREY.convert("RGB")]
        replace_samples(bench.folder, [(f"{k}.png", one, f"{PROSE} Number {k}.") for k, one in enumerate(turned)])
        change(bench.folder / "samples")
        outcome = bench.mir(
            "run", "model", "--images", "samples", "--texts", "samples", "--out", "out", "--device", "cpu", *options
        )
        assert (bench.folder / "out" / "mir.json").exists() == (outcome.exit_code == 0)
        return outcome

    return act


def all_the_same(folder: Path) -> None:
    for k in (1, 2):
        (folder / f"{k}.png").write_bytes((folder / "0.png").read_bytes())
        (folder / f"{k}.txt").write_bytes((folder / "0.txt").read_bytes())


def a_folder_named_like_an_image(folder: Path) -> None:
    (folder / "3.png").mkdir()


def broken_link(folder: Path) -> None:
    (folder / "3.png").symlink_to(folder / "nowhere.png")


def looping_link(folder: Path) -> None:
    (folder / "3.png").symlink_to(folder / "3.png")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "3.png")


def three_samples(_: object, bench: Bench) -> str:
    result = MirResult.load(bench.folder / "out" / "mir.json")
    assert result.n_samples == 3
    return f"MIR {result.mir:.4f} of {result.n_samples} samples"


SETS = (
    Case(
        "fewer texts",
        "three images, two texts",
        sets(lambda f: (f / "2.txt").unlink()),
        Refused("3 images", "2 texts", "--n-samples"),
    ),
    Case(
        "fewer images",
        "two images, three texts",
        sets(lambda f: (f / "0.png").unlink()),
        Refused("2 images", "3 texts", "--n-samples"),
    ),
    Case(
        "no image",
        "the folder holds texts only",
        sets(lambda f: [path.unlink() for path in f.glob("*.png")]),
        Refused("samples", "no image file", ".png"),
    ),
    Case(
        "no text",
        "the folder holds images only",
        sets(lambda f: [path.unlink() for path in f.glob("*.txt")]),
        Refused("samples", "no text file", ".txt"),
    ),
    Case(
        "more than there are",
        "100 samples of three",
        sets(lambda f: None, "--n-samples", "100"),
        Refused("100 samples", "there are 3"),
    ),
    Case("no samples at all", "--n-samples 0", sets(lambda f: None, "--n-samples", "0"), Refused("n-samples")),
    Case(
        "all the same",
        "three times the same image and text",
        sets(all_the_same),
        Refused("all 3 samples", "0.png", "distinct"),
    ),
    Case(
        "one of three broken",
        "the second image is broken",
        sets(lambda f: (f / "1.png").write_bytes(PNG[:300])),
        Refused("1.png", "cannot be read"),
    ),
    Case(
        "one of three blank",
        "the third text is blank",
        sets(lambda f: (f / "2.txt").write_text(" ")),
        Refused("2.txt", "no text"),
    ),
    Case("a folder among images", "a folder is called 3.png", sets(a_folder_named_like_an_image), Right(three_samples)),
    Case("a broken link", "3.png is a link to nowhere", sets(broken_link), Refused("3.png", "link")),
    Case("a link to itself", "3.png is a link to itself", sets(looping_link), Refused("3.png", "link")),
    Case("a pipe", "3.png is a named pipe that nobody writes to", sets(a_pipe), Right(three_samples)),
    Case(
        "hidden files",
        "a .DS_Store and a ._0.png lie beside",
        sets(lambda f: [(f / n).write_bytes(b"x") for n in (".DS_Store", "._0.png")]),
        Right(three_samples),
    ),
)


def asking_for_no_data_set(bench: Bench) -> Outcome:
    copy_original(MICRO, bench.folder)
    return bench.mir("run", "model", "--dataset", "", "--out", "out", "--device", "cpu")


def asking(*options: object) -> Callable[[Bench], Outcome]:
    """The micro checkpoint and three good samples, with other options."""
    return sets(lambda folder: None, *map(str, options))


ASKED = (
    Case("a negative seed", "--seed -1, which Python's generator takes for 1", asking("--seed", -1), Refused("--seed")),
    Case("a billion samples", "--n-samples 1000000000", asking("--n-samples", 10**9), Refused("there are 3")),
    Case("minus one sample", "--n-samples -1", asking("--n-samples", -1), Refused("--n-samples")),
    Case("one sample and a half", "--n-samples 1.5", asking("--n-samples", 1.5), Refused("--n-samples")),
    Case("a batch of a billion", "--batch-size 1000000000: all in one", asking("--batch-size", 10**9),
         Right(three_samples)),
    Case("no device", "--device potato", asking("--device", "potato"), Refused("'potato'", "expected auto, cpu")),
    Case("a device without numbers", "--device meta", asking("--device", "meta"), Refused("'meta'", "Choose cpu")),
    Case("no family", "--family nope", asking("--family", "nope"), Refused("'nope'", "mir adapters")),
    Case("half a family", "--family :", asking("--family", ":"), Refused("--family :", "module:ATTRIBUTE")),
    Case("a family from above", "--family .own:SPEC", asking("--family", ".own:SPEC"), Refused("module:ATTRIBUTE")),
    Case("a family that is a program", "--family os:system", asking("--family", "os:system"), Refused("AdapterSpec")),
    Case("a family of a module that is not there", "--family no.such:SPEC", asking("--family", "no.such:SPEC"),
         Refused("no.such:SPEC", "PYTHONPATH")),
    Case("a negative size", "--device-memory -5GB", asking("--device-memory", "-5GB"), Refused("-5GB", "6GB")),
    Case("a data set without name", "--dataset ''", asking_for_no_data_set,
         Refused("--dataset ''", "names no dataset")),
    Case("options for another kind", "--base-llm for a Hugging Face checkpoint", asking("--base-llm", "model"),
         Refused("--base-llm", "Leave the option out")),
)  # fmt: skip


def randomly_damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut short, some bytes exchanged, or noise put in."""
    kind = chance.randrange(3)
    damaged = bytearray(data[: chance.randrange(len(data))] if kind == 0 else data)
    for _ in range(chance.choice((1, 2, 8)) if kind == 1 else 0):
        damaged[chance.randrange(min(len(damaged), chance.choice((60, 400, 100_000))))] = chance.randrange(256)
    if kind == 2:
        at = chance.randrange(len(damaged))
        damaged[at:at] = chance.randbytes(chance.randrange(1, 50))
    return bytes(damaged)


def random_damages(_: Bench) -> Outcome:
    """2000 damaged images of ten kinds: each must give a picture of moderate size, or one error."""
    chance = random.Random(0)
    kinds = [
        encoded(PICTURE, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "PCX", "ICO")
    ]
    n_refused = 0
    for number in range(2000):
        sample = Sample("one", randomly_damaged(kinds[number % len(kinds)], chance), PROSE)
        try:
            assert sample.open_image().mode == "RGB"
        except MirError:
            n_refused += 1
    return Outcome(0, value=n_refused)


def most_refused(value: object, _: Bench) -> str:
    assert isinstance(value, int)
    assert 500 < value < 2000
    return f"{value} refused, the others give a picture; no other exception"


FUZZED = (
    Case(
        "random damages",
        "2000 random damages to images of ten kinds",
        random_damages,
        Right(most_refused),
        full=True,
    ),
)
# What is held by a neighbour in the short form.
SECOND_TO = frozenset(
    {
        "bilevel", "palette", "grey with alpha", "animated webp", "animated png", "exif upside down", "exif nonsense",
        "exif mirrored and turned", "lab", "16-bit grey tiff", "upper case", "jpeg named png", "text of one word",
        "text with Windows line ends", "thin, padded to a square", "bmp half", "tiff half", "zeros", "text of 25 MB",
        "hidden files", "a pipe", "a folder among images", "bomb of a billion pixels",
    }
)  # fmt: skip
CASES = tuple(
    replace(case, full=True) if case.name in SECOND_TO else case
    for case in (*IMAGES, *MORE_IMAGES, *PADDED, *TEXTS, *MORE_TEXTS, *SETS, *ASKED, *FUZZED)
)


@each(CASES)
def test_a_sample_is_seen_as_it_is_meant_or_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("samples", case)
