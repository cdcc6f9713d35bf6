"""Hostile inputs for fuzz.py: tables, images and archives that are whole, damaged, or made to harm."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from damage import BYTES, HOSTILE, mutate
from PIL import Image

SECRET = "s3cr3t-that-nobody-may-read"
"""Content of a file that links lead to."""

CELLS = [
    *("\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "\x00", "a\nb", '"', "'", "=1+1", "", " ", "\ufeff"),
    *("nan", "inf", "-inf", "1e999", "9" * 400, "-0", "0x10", "1_000", "٣", "½", "1,2,3", "1.2.3"),
    *("$1", "1%", "(3)", "1 234,5", "1'000", "5 kg", "€", "1e", "--1", "+", "0" * 200 + "1"),
    *("2020-02-30", "31/31/31", "99999-01-01", "0000-00-00", "2020-W60", "2020-Q9", "25:61", "1e400"),
    *("2020-01-01T00:00:00+99:99", "Mon, 01 Jan 0000", "NA", "None", "TRUE", "\udce9", "🙂" * 50),
    *("1" * 100_000, "1," * 50_000, " " * 100_000 + "x", "-" * 50_000, "a" * 200_000, "1 " * 50_000),
]  # fmt: skip


class Bomb:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Say what to call."""
        import os

        return os.system, ("touch ../outside/ran",)


def frame(draw: random.Random, rows: int = 40) -> pd.DataFrame:
    """A table with a column of every kind, whose target is `kind`."""
    size = [draw.gauss(0, 1) for _ in range(rows)]
    return pd.DataFrame(
        {
            "size": size,
            "color": [draw.choice(["red", "green", "blue"]) for _ in range(rows)],
            "since": pd.date_range("2020-01-01", periods=rows, freq="9D").strftime("%Y-%m-%d"),
            "member": [draw.random() > 0.5 for _ in range(rows)],
            "price": [f"${draw.uniform(1, 9999):,.2f}" for _ in range(rows)],
            "kind": ["big" if one > 0 else "small" for one in size],
        }
    )


def _buffered(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _zip(names: dict[str, bytes]) -> bytes:
    def write(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in names.items():
                archive.writestr(name, content)

    return _buffered(write)


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode("utf-8", "surrogateescape")


WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "t.csv": _csv,
    "t.tsv": lambda table: table.to_csv(index=False, sep="\t").encode("utf-8", "surrogateescape"),
    "utf16.csv": lambda table: table.to_csv(index=False).encode("utf-16", "surrogatepass"),
    "latin.csv": lambda table: table.to_csv(index=False).encode("latin-1", "replace"),
    "t.csv.gz": lambda table: gzip.compress(_csv(table)),
    "t.csv.bz2": lambda table: bz2.compress(_csv(table)),
    "t.csv.xz": lambda table: lzma.compress(_csv(table)),
    "t.zip": lambda table: _zip({"t.csv": _csv(table)}),
    "t.xlsx": lambda table: _buffered(lambda buffer: table.to_excel(buffer, index=False)),
    "t.parquet": lambda table: _buffered(lambda buffer: table.to_parquet(buffer, index=False)),
    "t.feather": lambda table: _buffered(table.to_feather),
    "t.jsonl": lambda table: table.to_json(orient="records", lines=True).encode(),
    "t.json": lambda table: table.to_json(orient="records").encode(),
    "t.dta": lambda table: _buffered(lambda buffer: table.to_stata(buffer, write_index=False)),
    "t.npz": lambda table: _buffered(
        lambda buffer: np.savez(buffer, **{key: table[key].to_numpy(str) for key in table})
    ),
}
"""Formats of tables; those of which a cell can't be written fall back to CSV."""


def damaged_cells(draw: random.Random) -> pd.DataFrame:
    """A table of which a few cells, a whole column, or the names of columns are hostile."""
    table = frame(draw).astype(object)
    kind = draw.random()
    if kind < 0.2:
        names = [*table.columns]
        names[draw.randrange(len(names))] = draw.choice(CELLS)[:60]
        return table.set_axis(pd.Index(names, dtype=object), axis=1)
    column = draw.choice([*table.columns])
    if kind < 0.5:
        table[column] = pd.Series(draw.choice(CELLS), index=table.index, dtype=object)
    elif kind < 0.6:
        table[column] = pd.Series([draw.choice(CELLS) for _ in table.index], dtype=object)
    else:
        for _ in range(draw.randrange(1, 9)):
            table.loc[draw.randrange(len(table)), draw.choice([*table.columns])] = draw.choice(
                CELLS
            )
    return table


def table(folder: Path, draw: random.Random, bombs: list[Path]) -> tuple[Path, str]:
    """Write a hostile table; returns it and says what it is."""
    kind = draw.random()
    if kind < 0.1:
        bomb = draw.choice(bombs)
        shutil.copyfile(bomb, folder / bomb.name)
        return folder / bomb.name, f"bomb {bomb.name}"
    name = draw.choice([*WRITERS])
    cells = damaged_cells(draw) if kind < 0.6 else frame(draw)
    try:
        content = WRITERS[name](cells.astype(str) if kind < 0.6 else cells)
    except Exception:  # not every format holds every text
        name, content = "t.csv", _csv(cells)
    how = "cells" if kind < 0.6 else draw.choice([*BYTES, "spliced", "mutated", "another name"])
    if how in BYTES:
        content = BYTES[how](content, draw)
    elif how == "spliced":
        at, other = draw.randrange(len(content)), WRITERS["t.parquet"](frame(draw))
        content = content[:at] + other[draw.randrange(len(other)) :] + content[at:]
    elif how == "another name":
        name = draw.choice([*WRITERS])
    elif how == "mutated" and name == "t.json":
        document = json.loads(content)
        mutate(document, draw)
        content = json.dumps(document).encode()
    elif how == "mutated":
        for _ in range(draw.randrange(1, 30)):
            content = BYTES["bit flipped"](content, draw)
    (folder / name).write_bytes(content)
    return folder / name, f"{name}: {how}"


def _zip_that_lies() -> bytes:
    """An archive whose directory claims a few bytes for a member of many."""
    data = bytearray(_zip({"t.csv": b"a,b\n" + b"1,2\n" * 30_000_000}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 100)
    return bytes(data)


def small_bombs() -> dict[str, bytes]:
    """Those that are made at once."""
    return {
        "pickle.npz": pickle.dumps(Bomb()),
        "deep.json": b"[" * 3_000_000,
        "numbers.jsonl": b'{"a": ' + b"9" * 3_000_000 + b"}\n",
        "outside.zip": _zip({"../outside/planted.csv": b"a,b\n1,2\n"}),
        "two.zip": _zip({"\x1b[2J.csv": b"a\n1\n", "\x1b]0;x\x07.csv": b"a\n1\n"}),
        "wide.csv": b",".join(b"c%d" % at for at in range(200_000))
        + b"\n"
        + b"1," * 199_999
        + b"1\n",
    }


def make_bombs() -> dict[str, bytes]:
    """Small files that claim, or unpack to, gigabytes, or that run code where they are unpickled."""
    zeros = b"1,2\n" * (16 << 20)
    packed, squeezed = gzip.compress(zeros, 9), bz2.compress(zeros)
    constant = pa.table(
        {"a": pa.array(np.zeros(60_000_000)), "kind": pa.array(np.ones(60_000_000))}
    )
    texts = pa.table({"a": pa.DictionaryArray.from_arrays([0] * 50_000, ["x" * 500_000])})
    sheet = _buffered(lambda buffer: frame(random.Random(0)).to_excel(buffer, index=False))
    with zipfile.ZipFile(io.BytesIO(sheet)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    row = b'<row r="%d"><c r="A%d"><v>1</v></c></row>'
    sheet_name = "xl/worksheets/sheet1.xml"
    head, _, rest = members[sheet_name].partition(b"<sheetData>")
    rows = b"".join(row % (at, at) for at in range(1, 200_000))
    far = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    tail = rest[rest.index(b"</sheetData>") :]
    laughs = b'<!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + at, b"&%c;" % (97 + at) * 10) for at in range(12)
    )
    nested = _zip({"t.zip": _zip({"t.zip": _zip({"t.zip": _zip({"t.csv": b"a,b\n1,2\n"})})})})
    pickled = np.array([Bomb()], dtype=object)
    return {
        "many.csv.gz": packed * 60,
        "many.csv.bz2": squeezed * 60,
        "once.csv.gz": packed,
        "many.csv.xz": lzma.compress(zeros[: 16 << 20], preset=0) * 40,
        "zeros.zip": _zip({"t.csv": b"a,b\n" + zeros * 4}),
        "lies.zip": _zip_that_lies(),
        "nested.zip": nested,
        "constant.parquet": _buffered(
            lambda buffer: pq.write_table(constant, buffer, compression="zstd")
        ),
        "texts.parquet": _buffered(lambda buffer: pq.write_table(texts, buffer, store_schema=False)),
        "constant.feather": _buffered(
            lambda buffer: constant.to_pandas().head(30_000_000).to_feather(buffer, compression="zstd")
        ),
        "zeros.npz": _buffered(lambda buffer: np.savez_compressed(buffer, X=np.zeros((30_000_000, 2)))),
        "pickled.npz": _buffered(lambda buffer: np.savez(buffer, X=pickled)),
        "line.csv": b"a,b\n" + b"1" * 60_000_000,
        "quote.csv": b'a,b\n"' + b"1,2\n" * 9_000_000,
        "rows.xlsx": _zip({**members, sheet_name: head + b"<sheetData>" + rows + tail}),
        "far.xlsx": _zip({**members, sheet_name: head + b"<sheetData>" + far + tail}),
        "laughs.xlsx": _zip({**members, sheet_name: laughs + b"]><l>&m;</l>"}),
        **small_bombs(),
    }  # fmt: skip


# -- images


def picture(draw: random.Random, label: int, side: int = 24) -> Image.Image:
    """A bright picture, or a dark one."""
    noise = np.random.default_rng(draw.randrange(1 << 30)).integers(0, 90, (side, side, 3))
    return Image.fromarray((noise + 140 * label).astype(np.uint8))


MODES = ("RGB", "L", "LA", "RGBA", "P", "PA", "1", "CMYK", "I;16", "I", "F", "YCbCr")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO", "TGA")


def encoded(draw: random.Random, label: int) -> tuple[bytes, str]:
    """A picture in any format and mode that goes together, and what it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            form, mode = draw.choice(FORMATS), draw.choice(MODES)
            image = picture(draw, label)
            try:
                plain = image.convert("L").convert("I") if mode in ("I;16", "I") else image
                made = plain.convert(mode)
                return _buffered(lambda buffer, made=made, form=form: made.save(buffer, form)), form
            except (OSError, ValueError, KeyError):  # not every format has every mode
                continue
    return _buffered(lambda buffer: image.save(buffer, "PNG")), "PNG"


def huge_pictures() -> dict[str, bytes]:
    """Small files of many pixels, or that claim them."""
    draw = random.Random(0)
    whole = {
        form: _buffered(lambda buffer, form=form: picture(draw, 1).save(buffer, form))
        for form in ("PNG", "BMP")
    }
    png = bytearray(whole["PNG"])
    png[16:24] = struct.pack(">II", 1 << 30, 1 << 30)
    bmp = bytearray(whole["BMP"])
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    frames = [Image.new("L", (500, 500), at % 256) for at in range(300)]
    return {
        "claims.png": bytes(png),
        "claims.bmp": bytes(bmp),
        "large.png": _buffered(lambda b: Image.new("RGBA", (8000, 8000), (1, 2, 3, 4)).save(b, "PNG")),
        "larger.png": _buffered(lambda b: Image.new("L", (20000, 20000)).save(b, "PNG")),
        "large.webp": _buffered(lambda b: Image.new("RGB", (8000, 8000)).save(b, "WEBP")),
        "large.tif": _buffered(lambda b: Image.new("CMYK", (8000, 8000)).save(b, "TIFF", compression="tiff_lzw")),
        "frames.gif": _buffered(
            lambda b: frames[0].save(b, "GIF", save_all=True, append_images=frames[1:])
        ),
        "text.png": _text_bomb(),
    }  # fmt: skip


def small_huge_pictures() -> dict[str, bytes]:
    """One that is made at once."""
    return {"text.png": _text_bomb()}


def _text_bomb() -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("a", "x" * 900_000, zip=True)
    return _buffered(lambda buffer: Image.new("L", (24, 24)).save(buffer, "PNG", pnginfo=info))


def image_folder(folder: Path, draw: random.Random, huge: list[Path]) -> str:
    """Write a folder of two classes, of which some pictures are odd, damaged or no files; says what was done."""
    hows = []
    names = [
        "bright",
        draw.choice(["dark", "\x1b[2J", "\udce9", "a\nb", "..x", " ", "=1", "__MACOSX"]),
    ]
    for label, name in enumerate(names):
        place = folder / name
        place.mkdir(parents=True)
        for at in range(5):
            picture(draw, label).save(place / f"{at}.png", "PNG")
    for _ in range(draw.randrange(1, 5)):
        place = folder / draw.choice(names)
        kind = draw.random()
        name = draw.choice(
            ["x.png", "x.jpg", "x", "x.tif", "\x1b]0;x\x07.png", "\udcff.png", "x.gz"]
        )
        path = place / name
        if path.exists() or path.is_symlink():
            continue
        if kind < 0.12:
            whole = draw.choice(huge)
            path, which = path.with_suffix(whole.suffix), whole.name
            shutil.copyfile(whole, path)
        elif kind < 0.35:
            which = _strange_place(path, draw)
        else:
            content, which = encoded(draw, 1)
            if kind > 0.5:
                how = draw.choice([*BYTES])
                content, which = BYTES[how](content, draw), f"{which}, {how}"
            path.write_bytes(content)
        hows.append(f"{path.name!a}: {which}")
    return "; ".join(hows)


def _strange_place(path: Path, draw: random.Random) -> str:
    """Put something there that isn't a picture in a file."""
    import os

    kind = draw.choice(["pipe", "loop", "nowhere", "device", "secret", "up", "folder", "sparse"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10**12)
    else:
        to = {"loop": path.name, "nowhere": "nowhere", "device": "/dev/zero", "up": ".."}
        path.symlink_to(to.get(kind, "../../../outside/secret"))
    return kind


def idx(draw: random.Random) -> tuple[bytes, bytes]:
    """Files of images and of labels in the format of MNIST."""
    pixels = np.stack([np.asarray(picture(draw, at % 2, 8).convert("L")) for at in range(24)])
    images = struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 24) + bytes(at % 2 for at in range(24))
    return images, labels


def hostile_text(draw: random.Random) -> str:
    """A text that harms where it is shown, opened or computed with."""
    return str(draw.choice([*HOSTILE, *CELLS]))[:300]
