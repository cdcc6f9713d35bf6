"""Arguments of `senn fit`, and the options of a run that begins or is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from senn.errors import SennError
from senn.runs import FitOptions, RunFolder, SavedRun, complete, read
from senn.runs.fit_options import option_name


@dataclass(frozen=True, kw_only=True)
class FitArguments:
    """Arguments of one call of `senn fit`, sorted into those of the run and those of the call.

    Attributes:
        stated: options of the run that are given, by field of `FitOptions`, as `FitOptions.from_dict` takes them.
        out: folder for the results; None for `runs/NAME`.
        resume: folder of the run to resume; None for one that begins.
        overwrite: replace the run that `out` holds.
        dry_run: say what would be done, and do nothing.
        quiet: print nothing but errors.
        json: print the results as JSON, and nothing else.
        watch: show the run in a browser.
        port: port of that page; 0 for any that is free.
    """

    stated: Mapping[str, Any]
    out: Path | None = None
    resume: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    quiet: bool = False
    json: bool = False
    watch: bool = False
    port: int = 0

    @classmethod
    def from_parsed(cls, parsed: Mapping[str, Any]) -> FitArguments:
        """Sort parsed arguments; `parsed` holds only those that were given."""
        # What decides on the numbers of a run is kept with it; the rest belongs to one call of the command.
        own = {name: value for name, value in parsed.items() if name in cls.__dataclass_fields__}
        stated = {
            name: value for name, value in parsed.items() if name not in own and value is not None
        }
        if "column" in stated:
            stated["column"] = [list(pair) for pair in stated["column"]]
        return cls(stated=stated, **own)

    @property
    def is_silent(self) -> bool:
        """True if nothing but errors or JSON may be printed."""
        return self.quiet or self.json

    def options(self) -> tuple[FitOptions | None, SavedRun | None]:
        """Return the options of the run, and the run itself if it is resumed.

        Returns:
            The options, None for a run that is complete; the saved run, None for one that begins.

        Raises:
            SennError: DATA is missing, there is nothing to resume, or the call contradicts the run.
        """
        if self.resume is None:
            if "data" not in self.stated:
                raise SennError("the following arguments are required: DATA; see 'senn fit --help'")
            options = FitOptions.from_dict(self.stated)
            if (
                options.continued
                and self.out
                and self.out.resolve() == Path(options.continued).resolve()
            ):
                raise SennError(
                    "--out names the run that goes on, which stays as it is: name another folder"
                )
            return options, None
        if complete(self.resume) != self.resume:  # it was killed while its files were on their way
            with RunFolder(self.resume, resume=True):
                pass
        saved = read(self.resume)
        # Nothing is unfinished, so that there is nothing to do: saying so is no error in a script.
        if saved.options is None:
            self._refuse_changes_of_a_complete_run(saved)
            return None, saved
        self._refuse_contradictions(saved.options)
        return saved.options, saved

    def _refuse_changes_of_a_complete_run(self, saved: SavedRun) -> None:
        if saved.results is not None and saved.results.get("interrupted"):
            raise SennError(
                f"the run in {str(self.resume)!r} was interrupted, but its checkpoints are gone"
            )
        for option in map(option_name, self.stated):
            complaint = f"the run in {str(self.resume)!r} is complete, so {option} can't change it"
            raise SennError(f"{complaint}; start another with --out")

    def _refuse_contradictions(self, kept: FitOptions) -> None:
        for name in ("out", "overwrite", "dry_run"):
            if getattr(self, name):
                raise SennError(
                    f"{option_name(name)} can't be combined with --resume: the run stays where it is"
                )
        # Compared as absolute paths, so that the same file named from elsewhere is the same.
        now = FitOptions.from_dict({"data": kept.data, **self.stated}).with_absolute_paths()
        # Only what was said is compared: an option that was left out contradicts nothing.
        for name in self.stated:
            if getattr(now, name) != getattr(kept, name):
                complaint = f"{option_name(name)} contradicts the run in {str(self.resume)!r}"
                raise SennError(f"{complaint}, which was started with another value; leave it out")
