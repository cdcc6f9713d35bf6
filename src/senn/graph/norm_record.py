"""Record of a normalization over the units of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalization over the units of a group.

    When the group grows from C to C + k units, the output for the old units stays as it was if the new ones enter as
    the mean of the old ones (`layer`: the variance falls by C / (C + k)) or as zeros (`rms`: so does the mean square),
    the weight is multiplied by sqrt(C / (C + k)), and eps by C / (C + k). Without a weight, the columns that read the
    output take that factor. Where eps can't be changed, what makes the units is multiplied by sqrt((C + k) / C)
    instead, so that the mean square stays.

    Attributes:
        module: name of the module.
        kind: `layer` or `rms`.
        eps: name of the attribute that holds eps; None if there is none.
        eps_module: name of the module that holds it.
        eps_power: exponent of its factor.
        fixed_eps: True if it stands in the forward's own code.
        scaled: (full name, dimension) of the tensors that take the factor.
        shifts: full names of the parameters that are added to its output.
        power: exponent of the factor; 0 if it divides by nothing that depends on the number of units.
        spare: 1 if it divides by C - 1 (an unbiased variance): then the factors are of C - 1 and C + k - 1.
        other_power: what `power` may be instead, as far as one forward pass tells; None if it is certain.
        obstacle: what isn't linear between the weights that make the units and the norm; None if nothing.
    """

    module: str
    kind: Literal["layer", "rms"]
    eps: str | None = "eps"
    eps_module: str = ""
    eps_power: float = 1.0
    fixed_eps: bool = False
    scaled: tuple[tuple[str, int], ...] = ()
    shifts: tuple[str, ...] = ()
    power: float = 0.5
    spare: int = 0
    other_power: float | None = None
    obstacle: str | None = None

    def fraction(self, width: int, units: int) -> float:
        """Return what becomes of the mean that it divides by, as a fraction of what it was.

        Args:
            width: number of units.
            units: change of that number.
        """
        return (width - self.spare) / (width + units - self.spare)
