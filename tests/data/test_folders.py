"""A user's own images: folders of classes, IDX and parquet of any size, what is left out, and new images."""

import gzip
import importlib.util
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from senn.data.images import ImageEncoder, collect, decode, is_images, rgb
from senn.data.images import folders as module
from senn.data.images.folders import Entry, common_side, square, squares
from senn.errors import SennError


def picture(size=(40, 40), mode="RGB", seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write(root, classes, each=3, size=(40, 40)):
    """A folder of PNG files, a sub-folder for each class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for at in range(each):
            picture(size, seed=100 * number + at).save(root / name / f"{at}.png")
    return root


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(size.to_bytes(4, "big") for size in array.shape)
        + array.tobytes()
    )


def parquet(path, images, labels, struct=True, column="label", metadata=None):
    cells = [{"bytes": image, "path": None} for image in images] if struct else images
    table = pa.table({"image": cells, column: labels})
    pq.write_table(table.replace_schema_metadata(metadata or {}), path)


def refused(match, source, **options):
    with pytest.raises(SennError, match=match) as caught:
        collect(str(source), **options)
    assert "\n" not in str(caught.value)


# -- folders of classes


def test_a_folder_of_classes(tmp_path):
    write(tmp_path / "pets", ["dog", "cat"])
    (tmp_path / "pets" / "cat" / "more").mkdir()
    picture((90, 50)).save(tmp_path / "pets" / "cat" / "more" / "x.jpg")
    (tmp_path / "pets" / ".cache").mkdir()
    (tmp_path / "pets" / "cat" / ".DS_Store").write_bytes(b"?")
    (tmp_path / "pets" / "notes.txt").write_text("mine")
    found = collect(str(tmp_path / "pets"))
    assert (found.name, found.classes) == ("pets", ("cat", "dog"))
    assert found.train.pixels.shape == (7, 40, 40, 3)
    assert found.train.labels.tolist() == [0] * 4 + [1] * 3
    assert (found.test, found.left_out) == (None, ())
    assert found.notes == ("1 file beside the folders of the classes left alone",)
    np.testing.assert_array_equal(
        found.train.pixels[0], np.asarray(Image.open(tmp_path / "pets" / "cat" / "0.png"))
    )


def test_what_cannot_be_read_is_left_out_by_name(tmp_path):
    root = write(tmp_path / "pets", ["cat", "dog"])
    whole = encoded(picture())
    (root / "cat" / "a.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "b.png").write_text("no image")
    (root / "dog" / "c.ico").write_bytes(encoded(picture(), "ICO"))
    (root / "dog" / "d.png").write_bytes(encoded(Image.new("F", (9, 9)), "TIFF"))
    (root / "dog" / "e.png").write_bytes(b"")
    found = collect(str(root))
    assert len(found.train) == 6
    names = ["cat/a.png", "cat/b.png", "dog/c.ico", "dog/d.png", "dog/e.png"]
    assert [one.name for one in found.left_out] == names
    assert all(repr(name) in one.reason for name, one in zip(names, found.left_out, strict=True))
    assert "truncated" in found.left_out[0].reason
    assert "mode F" in found.left_out[3].reason
    assert all("none of JPEG, PNG" in found.left_out[at].reason for at in (1, 2, 4))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PNG", "WEBP", "GIF", "JPEG", "PPM"])
def test_common_formats_are_read(tmp_path, kind):
    root = write(tmp_path / "pets", ["cat", "dog"])
    flat = np.full((40, 40, 3), (200, 30, 90), np.uint8)  # lossy formats keep an even color nearly
    (root / "cat" / "z").write_bytes(encoded(Image.fromarray(flat), kind))
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "cat" / "__MACOSX").mkdir()
    (root / "cat" / "__MACOSX" / "._z").write_bytes(b"\0\5\x16\7")
    found = collect(str(root))
    assert (found.classes, found.left_out) == (("cat", "dog"), ())
    (last,) = np.flatnonzero((found.train.pixels.std((1, 2)) < 5).all(1))
    assert found.train.labels[last] == 0
    np.testing.assert_allclose(found.train.pixels[last].mean((0, 1)), flat[0, 0], atol=4)


def test_too_many_pixels_and_bytes_are_left_out(tmp_path, monkeypatch):
    root = write(tmp_path / "pets", ["cat", "dog"])
    bomb = encoded(Image.new("1", (9000, 9000)))  # a few hundred bytes
    (root / "cat" / "bomb.png").write_bytes(bomb)
    (root / "cat" / "million.png").write_bytes(encoded(Image.new("L", (1200, 1000))))
    found = collect(str(root))
    (left_out,) = found.left_out
    assert (
        "'cat/bomb.png' is an image of 9,000 x 9,000 pixels, over the limit of 67,108,864"
        in left_out.reason
    )
    assert len(found.train) == 7
    picture((100, 100)).save(root / "dog" / "large.png")
    monkeypatch.setattr(module, "MOST_FILE_BYTES", 20_000)
    assert collect(str(root)).left_out[-1].reason == "'dog/large.png' has more than 20,000 bytes"


def test_a_huge_header_is_left_out(tmp_path):
    root = write(tmp_path / "pets", ["cat", "dog"])
    content = bytearray(encoded(picture((8, 8))))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    (root / "dog" / "huge.png").write_bytes(content)
    (left_out,) = collect(str(root)).left_out
    assert left_out.name == "dog/huge.png"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_become_rgb(mode):
    image = picture((20, 20), "L").convert(mode)
    form = "JPEG" if mode == "CMYK" else "PNG"
    made = squares([Entry("x", encoded(image, form))], 20)
    assert made.pixels.shape == (1, 20, 20, 3)
    if form == "PNG":
        np.testing.assert_array_equal(made.pixels[0], np.asarray(image.convert("RGB")))


def sixteen_bits(form, **options):
    """A ramp over all values of 16 bits, and what it should become."""
    ramp = np.linspace(0, 65_535, 400).round().astype(np.uint16).reshape(20, 20)
    return encoded(Image.fromarray(ramp), form, **options), np.round(ramp / 257).astype(int)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form):
    content, expected = sixteen_bits(form)
    pixels = decode(content, "x").astype(int)
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_a_tiff_names_its_largest_value_and_what_zero_means():
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    content = encoded(Image.fromarray(ramp), "TIFF", tiffinfo={281: 4095})
    np.testing.assert_array_equal(decode(content, "x")[..., 0], np.round(ramp * (255 / 4095)))
    inverted, expected = sixteen_bits("TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode(inverted, "x")[..., 0], 255 - expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1", "YCbCr"])
def test_strips_make_the_same_pixels_as_the_whole(monkeypatch, mode):
    monkeypatch.setattr(rgb, "_STRIP", 100)
    image = picture((30, 21), "RGBA" if mode == "RGBA" else "RGB").convert(mode)
    if mode == "RGBA":
        image.putalpha(picture((30, 21), "L", seed=1))
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    content = encoded(image, form)
    few = decode(content, "x")
    monkeypatch.setattr(rgb, "_STRIP", 1 << 20)
    np.testing.assert_array_equal(few, decode(content, "x"))
    assert few.shape == (21, 30, 3)


def test_heic_is_read_where_its_package_is_and_named_elsewhere():
    head = b"\0\0\0\x18ftypheic" + bytes(60)
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(SennError, match=r"HEIC needs the package 'pillow_heif'.*senn\[heic\]"):
            decode(head, "x")
        return
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 90))).save(buffer, quality=95)
    pixels = decode(buffer.getvalue(), "x")
    assert pixels.shape == (48, 64, 3)
    np.testing.assert_allclose(pixels.mean((0, 1)), (200, 30, 90), atol=4)
    with pytest.raises(SennError, match="can't be decoded as an image"):
        decode(head, "x")


def test_exif_orientation_and_transparency():
    upright = Image.new("RGB", (20, 20), "black")
    upright.paste("white", (0, 0, 20, 10))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = (
        6  # to be turned by a quarter to the right: stored with the upper half on the left
    )
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    entries = [
        Entry("turned", encoded(stored, "JPEG", quality=95, exif=exif)),
        Entry("clear", encoded(clear)),
    ]
    pixels = squares(entries, 20).pixels
    assert pixels[0, :9].min() > 200
    assert pixels[0, 11:].max() < 60
    assert pixels[1].min() == 255


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 3]),
    st.integers(1, 40),
)
def test_any_image_becomes_a_square_of_its_middle(width, height, before, channels, side):
    image = np.full((height, width, before), 7, np.uint8)
    most = max(width, height)
    edge = (most - min(width, height)) // 2 - 1
    if edge > 0 and width > height:
        image[:, :edge] = image[:, -edge:] = 255  # is cut off
    made = square(image, side, channels)
    assert made.shape == (side, side, channels)
    assert made.dtype == np.uint8
    assert (made == 7).all()


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(28, 28)] * 3, 28),
        ([(64, 64)], 64),
        ([(65, 65)], 64),
        ([(28, 28), (28, 30)], 32),
        ([(50, 45), (45, 60), (46, 45)], 44),
        ([(4000, 3000), (3000, 4000)], 64),
    ],
)
def test_a_side_that_suits_them(sizes, side):
    assert common_side(sizes) == side


def test_a_side_that_is_asked_for(tmp_path):
    assert collect(str(write(tmp_path / "pets", ["cat", "dog"])), 16).train.pixels.shape == (
        6,
        16,
        16,
        3,
    )


def test_a_million_images_need_a_smaller_side(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    refused(
        "6 images of 40 x 40 are over the limit of 10,000 bytes",
        write(tmp_path / "pets", ["cat", "dog"]),
    )


def test_folders_that_hold_no_classes(tmp_path):
    root = tmp_path / "pets"
    root.mkdir()
    refused("is empty", root)
    picture().save(root / "a.png")
    refused("has no sub-folders; the images of each class belong in", root)
    (root / "cat").mkdir()
    refused(r"holds a single class \('cat'\); at least two", root)
    (root / "dog").mkdir()
    refused("the folder of class 'cat' in .* holds no files", root)
    picture().save(root / "cat" / "a.png")
    (root / "dog" / "a.png").write_text("no image")
    refused("class 'cat' has a single image that can be read; at least two", root)
    picture().save(root / "cat" / "b.png")
    refused("class 'dog' has no image that can be read .*none of JPEG, PNG", root)
    (root / "cat" / "a.png").write_text("no image")
    (root / "cat" / "b.png").write_text("no image")
    refused("there is no image that can be read: .*none of JPEG, PNG, WEBP", root)


def test_parts_are_no_classes(tmp_path):
    for part in ("val", "test"):
        write(tmp_path / "pets" / part, ["cat", "dog"])
    refused("'test', 'val', which are parts of a set, not classes", tmp_path / "pets")
    assert collect(str(tmp_path / "pets" / "val")).classes == ("cat", "dog")
    assert collect(str(write(tmp_path / "steps", ["train", "test"]))).classes == ("test", "train")


@pytest.mark.parametrize(
    ("folders", "counts"),
    [
        (("train", "val", "test"), (6, 6, 6)),
        (("Train", "Valid", "Test"), (6, 6, 6)),
        (("training", "validation"), (6, 6, None)),
        (("train", "test", "__MACOSX"), (6, None, 6)),
    ],
)
def test_parts_in_folders_of_their_own(tmp_path, folders, counts):
    for part in folders:
        write(tmp_path / part, ["cat", "dog"])
    found = collect(str(tmp_path))
    assert found.classes == ("cat", "dog")
    parts = found.train, found.validation, found.test
    assert tuple(part and len(part) for part in parts) == counts


def test_a_part_may_lack_a_class_or_labels_but_has_no_other_class(tmp_path):
    write(tmp_path / "train", ["cat", "dog"])
    write(tmp_path / "val", ["dog"])
    (tmp_path / "test").mkdir()
    picture().save(tmp_path / "test" / "1.png")
    found = collect(str(tmp_path))
    assert found.validation.labels.tolist() == [1, 1, 1]
    assert found.test is None
    assert found.notes == ("'test' is left alone: it holds no images in folders of the classes",)
    write(tmp_path / "test", ["emu"])
    refused("class 'emu' in '.*test' isn't among those to train on: 'cat', 'dog'", tmp_path)
    (tmp_path / "valid").mkdir()
    refused("two folders for one part, 'val' and 'valid'", tmp_path)


# -- IDX and parquet


def test_idx_with_and_without_a_test_part(tmp_path):
    draw = np.random.default_rng(0)
    pixels, labels = (
        draw.integers(0, 256, (12, 10, 10), dtype=np.uint8),
        np.arange(12, dtype=np.uint8) % 3 + 4,
    )
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    for source in (tmp_path, tmp_path / "train-images-idx3-ubyte"):
        assert is_images(str(source))
        found = collect(str(source))
        assert (found.classes, found.test) == (("4", "5", "6"), None)
        np.testing.assert_array_equal(found.train.pixels[..., 0], pixels)
        np.testing.assert_array_equal(found.train.labels, labels - 4)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:5])))
    refused("no labels in 't10k-labels-idx1-ubyte.gz' beside it", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels[:5]))
    found = collect(str(tmp_path), 8)
    assert (found.train.pixels.shape, found.test.pixels.shape) == ((12, 8, 8, 1), (5, 8, 8, 1))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels[:5] + 4))
    refused("class 8 is in the test images but not in those to train on", tmp_path)
    (tmp_path / "other-images-idx3-ubyte").write_bytes(idx(pixels))
    (tmp_path / "other-labels-idx1-ubyte").write_bytes(idx(labels))
    refused("3 files of images, not told apart", tmp_path)


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_of_mixed_sizes(tmp_path, struct):
    images = [encoded(picture((30 + at, 40), seed=at)) for at in range(6)]
    parquet(tmp_path / "t.parquet", [*images, b"?"], [1, 0, 1, 0, 1, 0, 0], struct)
    assert is_images(str(tmp_path / "t.parquet"))
    found = collect(str(tmp_path / "t.parquet"))
    assert found.train.pixels.shape == (6, 32, 32, 3)
    assert (found.name, found.classes, found.train.labels.tolist()) == (
        "t",
        ("0", "1"),
        [1, 0, 1, 0, 1, 0],
    )
    (left_out,) = found.left_out
    assert left_out.reason.startswith("row 7 of ")


def test_a_folder_of_parquet_with_names(tmp_path):
    features = {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    images = [encoded(picture(seed=at)) for at in range(6)]
    for part, count in (("train", 6), ("test", 2)):
        parquet(
            tmp_path / f"{part}-0.parquet",
            images[:count],
            [2, 0, 2, 0, 2, 0][:count],
            metadata=metadata,
        )
    found = collect(str(tmp_path))
    assert (found.classes, found.train.labels.tolist()) == (("cat", "owl"), [1, 0, 1, 0, 1, 0])
    assert len(found.test) == 2


def test_tables_are_no_images(tmp_path):
    pq.write_table(pa.table({"a": [1.0, 2.0], "label": [0, 1]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"a": [b"x", b"y"], "b": ["u", "v"]}), tmp_path / "bytes.parquet")
    (tmp_path / "t.csv").write_bytes(idx(np.zeros((2, 2, 2), np.uint8)))
    (tmp_path / "damaged.parquet").write_text("?")
    for name in ("numbers.parquet", "bytes.parquet", "t.csv", "damaged.parquet", "none.png"):
        assert not is_images(str(tmp_path / name))
    assert not is_images("digits")
    assert all(is_images(name) for name in ("mnist", "cifar-10", "tiny-imagenet"))


# -- new images


def encoder(channels=3, side=12):
    mean, std = (0.5,) * channels, (0.25,) * channels
    return ImageEncoder(
        side=side, channels=channels, mean=mean, std=std, labels=("cat", "dog"), flip=True
    )


def test_an_encoder_survives_json():
    made = encoder()
    record = json.loads(json.dumps(made.to_dict()))
    assert ImageEncoder.from_dict(record) == made
    wrong = {
        "side": 0,
        "channels": 2,
        "mean": [0.5],
        "std": [0.0] * 3,
        "labels": ["cat"],
        "flip": 1,
        "kind": "table",
    }
    for key, value in wrong.items():
        with pytest.raises(SennError, match="damaged"):
            ImageEncoder.from_dict({**record, key: value})
    with pytest.raises(SennError, match="damaged"):
        ImageEncoder.from_dict([])


@pytest.mark.parametrize("channels", [1, 3])
def test_new_images_of_every_source(tmp_path, channels):
    picture((30, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("?")
    parquet(tmp_path / "c.parquet", [encoded(picture()), b"?"], ["no", "label"])
    (tmp_path / "d-idx").write_bytes(idx(np.full((2, 9, 9), 5, np.uint8)))
    parts = list(encoder(channels).read([str(tmp_path), str(tmp_path / "a.png")]))
    names = [name for part, _, _ in parts for name in part]
    rows = [
        f"row 1 of {str(tmp_path / 'c.parquet')!r}",
        *(f"row {at} of {str(tmp_path / 'd-idx')!r}" for at in (1, 2)),
    ]
    assert names == [str(tmp_path / "a.png"), *rows, str(tmp_path / "a.png")]
    assert all(pixels.shape == (len(part), 12, 12, channels) for part, pixels, _ in parts)
    assert [one.name for _, _, left_out in parts for one in left_out] == [
        str(tmp_path / "b.txt"),
        f"row 2 of {str(tmp_path / 'c.parquet')!r}",
    ]


def test_new_images_that_are_not_there(tmp_path):
    with pytest.raises(SennError, match="there is no file or folder"):
        list(encoder().read([str(tmp_path / "none.png")]))
    with pytest.raises(SennError, match="holds no files"):
        list(encoder().read([str(tmp_path)]))
