"""Thousands of hostile inputs, each for one command in a process of its own: what crashes, hangs, escapes, swells?

    python benchmarks/fuzz.py --cases 5000 --out benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --first 4000 --cases 1000 --out ...  # adds to what was stored of the 4,000 before
    python benchmarks/fuzz.py --only 1234          # one case again, with what it printed
    python benchmarks/fuzz.py --short --cases 20   # seconds: tables, images and saved models without a run

Runs' folders, saved models, tables, images and requests to the live page are damaged, forged with repaired checksums,
or made to unpack to gigabytes (`fuzz_inputs.py`), and read by every command and export (`fuzz_cases.py`). A case is
*bad* if it

- crashes: an exception that isn't a `SennError`, another exit code than 0 to 2, or lines that aren't the command's;
- hangs: it has computed for `SECONDS`, or waited for three times as long;
- escapes: something is written outside its folder, a program is started, a pickle is read, or a file that a link leads
  to is shown;
- sends control characters to the terminal;
- swells: takes more than `MEGABYTES` above what the process had before.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from fuzz_cases import FAMILIES, Case, Home, make, set_up
from fuzz_inputs import SECRET
from PIL import Image

import senn.cli.fit
from senn.errors import SennError
from senn.viz.report import charting_library

SECONDS = 60
"""Of a processor, after which it hangs; most cases take a tenth of one."""
MEGABYTES = 600
_ADDRESSES = 6 << 30
"""Bytes of addresses that a case may ask for beyond those of the process: a guard for the machine."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
_FOREIGN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"),
    *("pickle.find_class", "urllib.Request"),
)
_RICH = re.compile(r"\x1b\[(?:[0-9;]*m|1A|2K)|\r")
"""What bars are drawn with."""
_CONTROL = re.compile(r"[^\t\x20-\x7e\xa0-\U0010ffff]")
_SPOKEN = ("senn: ", "note: ")


class _Terminal(io.StringIO):
    """What a terminal would get."""

    def isatty(self) -> bool:
        """Return True: text for a terminal is escaped, data for another program isn't."""
        return True


class _Watchman:
    """Audit hook that notes what is done outside a folder."""

    def __init__(self, inside: Path) -> None:
        self.inside = (os.path.realpath(inside), "/dev/null", "/dev/tty", "/proc/self")
        self.seen: list[str] = []
        self.awake = False

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        """Note an event; Python calls this for each."""
        if not self.awake:
            return
        if event in _FOREIGN:
            self.seen.append(f"{event} {str(details)[:200]}")
        elif event in _CHANGES or (event == "open" and (details[2] or 0) & _WRITES):
            self._check(event, details[0])
            if event in ("os.rename", "os.link"):
                self._check(event, details[1])

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes):
            # a link that is removed is itself, and not what it leads to
            name = os.fsdecode(path)
            led = event in ("open", "os.mkdir")
            place = os.path.realpath(name if led else os.path.dirname(name) or ".")
            if not place.startswith(self.inside):
                self.seen.append(f"{event} {place}")


def _memory() -> int:
    """Most memory that this process has had since `_forget_memory`, in MB."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) // 1024


def _forget_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _judged(make_case: Callable[[], Case], work: Path) -> dict[str, Any]:
    """Make a case and do what it does, in a process that ends afterwards; says what came of it."""
    family, what, act = make_case()
    out, err = _Terminal(), _Terminal()
    sys.stdout, sys.stderr, sys.stdin = out, err, io.StringIO("")
    os.chdir(work)
    os.environ["TMPDIR"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.tempdir = str(work)
    watchman = _Watchman(work)
    sys.addaudithook(watchman)
    _forget_memory()
    before = _memory()
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + _ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    verdict = "answered"
    try:
        watchman.awake = True
        code = act()
        if type(code) is int and code:
            verdict = {1: "answered", 2: "refused"}.get(code, f"crashed: exit code {code}")
    except SennError as error:
        err.write(f"senn: {' '.join(str(error).split())}\n")
        verdict = "refused"
    except MemoryError:
        verdict = "swelled: MemoryError"
    except BaseException:
        verdict = f"crashed: {traceback.format_exc(limit=-6)}"
    watchman.awake = False
    grown = _memory() - before
    said = _RICH.sub("", out.getvalue()) + err.getvalue()
    if verdict in ("answered", "refused"):
        verdict = _objection(said, err.getvalue(), watchman.seen, grown) or verdict
    found = {"verdict": verdict, "megabytes": grown, "said": said[-3000:]}
    return {**found, "family": family, "what": what}


def _objection(said: str, errors: str, seen: list[str], grown: int) -> str | None:
    """What is wrong with a case that ended as it should."""
    if seen:
        return f"escaped: {seen[:3]}"
    if SECRET in said:
        return "escaped: another file's content is shown"
    sent = next((line for line in said.split("\n") if _CONTROL.search(line)), None)
    if sent is not None:
        return f"sent control characters: {sent[:200]!r}"
    strange = [line for line in errors.splitlines() if not line.startswith(_SPOKEN)]
    if strange:
        return f"crashed: {strange[-1][:300]}"
    if grown > MEGABYTES:
        return f"swelled: {grown} MB"
    return "swelled: too little memory" if "too little memory" in errors else None


def _apart(make_case: Callable[[], Case], work: Path) -> dict[str, Any]:
    """Make and judge a case in a process of its own, within a time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        with contextlib.suppress(BaseException):
            text = json.dumps(_judged(make_case, work)).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(text)
        os._exit(0)
    os.close(writer)
    text, until = b"", time.monotonic() + 3 * SECONDS
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while (left := until - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            part = pipe.read(1 << 20)
            if not part:
                break
            text += part
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    if text:
        return {**json.loads(text), "cpu_seconds": used.ru_utime + used.ru_stime}
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    return {"verdict": "hung" if late else f"crashed: status {status}", "megabytes": 0}


def _case(home: Home, place: Path, number: int, seed: int) -> dict[str, Any]:
    """Make a case in a folder that is emptied before, and try it."""
    work, outside = place / "work", place / "outside"
    shutil.rmtree(place, ignore_errors=True)
    work.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    began = time.monotonic()
    found = _apart(lambda: make(home, work, number, seed), work)
    secret = outside / "secret"
    if [*outside.iterdir()] != [secret] or secret.read_text() != SECRET:
        found["verdict"] = "escaped: a file outside is changed"
    elif any(SECRET.encode() in part for part in _outputs(work)):
        found["verdict"] = "escaped: another file's content is in what was written"
    # of one that was killed only its number is known, and its folder
    unknown = {"family": "killed", "what": str(sorted(path.name for path in work.rglob("*")))}
    return {**unknown, **found, "number": number, "seconds": time.monotonic() - began}


def _outputs(work: Path) -> list[bytes]:
    outs = [*work.glob("out*"), *(work / "out").glob("**/*")]
    return [path.read_bytes() for path in outs if path.is_file() and path.stat().st_size < 1 << 24]


def _import_ahead(*, short: bool) -> None:
    """Import here what cases would import each for itself, which takes longer than they do."""
    names = ("evaluate_command", "export_command", "fit", "predict", "report_command", "show")
    others = (
        *(
            "senn.export",
            "onnx",
            "openpyxl",
            "pyarrow.dataset",
            "pyarrow.feather",
            "pyarrow.parquet",
        ),
        *("sklearn.discriminant_analysis", "torch._dynamo", "torch._inductor.config", "torch.onnx"),
    )
    for name in (*(f"senn.cli.{name}" for name in names), *(() if short else others)):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    Image.init()
    if not short:
        charting_library()


def prepare(root: Path, *, short: bool = False) -> Home:
    """Make what the cases are made from, unless the folder has it from before.

    In another process: this one is going to be forked, and must have no threads.
    """
    torch.set_num_threads(1)
    _import_ahead(short=short)
    os.environ["SENN_CHECKPOINT_SECONDS"] = "0"
    os.environ["HOME"] = os.environ["MPLCONFIGDIR"] = str(root)
    senn.cli.fit.growth_figure = lambda *_: None  # no part in this
    if not (root / "made").exists():
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                set_up(root, short=short)
                (root / "made").touch()
            os._exit(0)
        os.waitpid(child, 0)
        assert (root / "made").exists(), "the runs to damage couldn't be made"
    bombs, huge = (sorted((root / name).iterdir()) for name in ("bombs", "huge"))
    return Home(root=root, bombs=bombs, huge=huge)


def measure(home: Home, cases: int, seed: int, *, first: int = 0, jobs: int = 1) -> dict[str, Any]:
    """Try so many cases.

    Args:
        home: what they are made from.
        cases: how many.
        seed: of all that is drawn; a case is known by it and its number.
        first: number of the first case.
        jobs: processes that share the cases.

    Returns:
        Counts of verdicts by family, the bad cases, and the most memory and time that one took.
    """
    parts = [home.root / f"part-{job}" for job in range(jobs)]
    children = []
    for job, part in enumerate(parts):
        children.append(os.fork())
        if children[-1] == 0:
            with contextlib.suppress(BaseException):
                numbers = range(first + job, first + cases, jobs)
                _write_verdicts(home, part, numbers, seed)
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    found = [json.loads(line) for part in parts for line in (part / "verdicts").open()]
    assert len(found) == cases, "a process that tried cases has ended early"
    counts: dict[str, Counter[str]] = {family: Counter() for family in (*FAMILIES, "killed")}
    for one in found:
        counts[one["family"]][one["verdict"].partition(":")[0]] += 1
    bad = sorted((one for one in found if _is_bad(one)), key=lambda one: int(one["number"]))
    return {
        "cases": cases,
        "seed": seed,
        "counts": {family: dict(kinds) for family, kinds in counts.items()},
        "bad": [f"{one['number']}, {one['what']}: {one['verdict']}" for one in bad],
        "most_megabytes": max(one["megabytes"] for one in found),
        "longest_seconds": round(max(one["seconds"] for one in found), 1),
    }


def added(earlier: dict[str, Any], later: dict[str, Any], first: int) -> dict[str, Any]:
    """Add the counts of cases to those of the cases before them."""
    assert (earlier["cases"], earlier["seed"]) == (first, later["seed"]), "these aren't the next"
    counts = {
        family: dict(Counter(kinds) + Counter(later["counts"][family]))
        for family, kinds in earlier["counts"].items()
    }
    most = {name: max(earlier[name], later[name]) for name in ("most_megabytes", "longest_seconds")}
    cases, bad = first + later["cases"], [*earlier["bad"], *later["bad"]]
    return {**earlier, "cases": cases, "counts": counts, "bad": bad, **most}


def _is_bad(found: dict[str, Any]) -> bool:
    return found["verdict"] not in ("answered", "refused")


def _write_verdicts(home: Home, part: Path, numbers: Iterable[int], seed: int) -> None:
    """Try cases in a folder of their own, and write what came of each."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with (part / "verdicts").open("w") as file:
        for number in numbers:
            found = _case(home, part / "place", number, seed)
            if _is_bad(found):
                line = f"{number}, {found['what']}: {found['verdict']}"
                print(ascii(line).replace("\\n", "\n"), flush=True)
            else:
                found["said"] = ""
            file.write(json.dumps(found) + "\n")
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cases")
    parser.add_argument("--home", type=Path, help="folder for what cases are made from; kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) if args.home is None else args.home.resolve()
        root.mkdir(parents=True, exist_ok=True)
        if args.only is not None:
            found = _case(prepare(root), root / "place", args.only, args.seed)
            print(json.dumps(found, indent=1))
            return
        home = prepare(root, short=args.short)
        results = measure(home, args.cases, args.seed, first=args.first, jobs=args.jobs)
    for family, found in results["counts"].items():
        print(f"{family}: {found}")
    print(
        f"{len(results['bad'])} bad, at most {results['most_megabytes']} MB and {results['longest_seconds']} s"
    )
    if args.out is not None:
        short = " --short" * args.short
        if args.first and args.out.exists():
            results = added(json.loads(args.out.read_text()), results, args.first)
        head = {"command": f"fuzz.py --cases {results['cases']} --seed {args.seed}{short}"}
        args.out.write_text(json.dumps({**results, **head}, indent=1) + "\n")


if __name__ == "__main__":
    main()
