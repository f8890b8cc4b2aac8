"""The Generate tab's components by the name of what they ask, and the way from their values to `Asked` and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlnet.images import three_channels
from controlnet.studio.asked import BACKGROUND, OF_EDITORS, Asked, UnitAsked
from controlnet.studio.editors.component import with_background
from controlnet.studio.unit_panel import UnitPanel


@dataclass(frozen=True, eq=False)
class Form:
    """Components of the tab, then those of each unit."""

    main: Mapping[str, Any]
    units: Sequence[UnitPanel]

    @property
    def inputs(self) -> list[Any]:
        return [*self.main.values(), *(it for unit in self.units for it in unit.fields.values())]

    def asked(self, values: Sequence[Any]) -> Asked:
        """What the components say, whose `values` are in the order of `inputs`."""
        mine = dict(zip(self.main, values, strict=False))
        rest = list(values[len(self.main) :])
        units = []
        for panel in self.units:
            its = dict(zip(panel.fields, rest, strict=False))
            del rest[: len(panel.fields)]
            units.append(UnitAsked(**its))
        return Asked(**{**mine, "loras": tuple(mine["loras"])}, units=tuple(units))

    def updates(self, asked: Asked) -> list[Any]:
        """What to show of `asked`, for each of `inputs`; units that it does not have are emptied."""
        units = [*asked.units, *[UnitAsked()] * len(self.units)][: len(self.units)]
        shown = [_value(name, getattr(asked, name)) for name in self.main]
        if asked.image is not None and asked.mask is not None:
            over = with_background(dict(asked.mask), three_channels(asked.image))
            shown[list(self.main).index("mask")] = over
        for panel, unit in zip(self.units, units, strict=True):
            shown += [_value(name, getattr(unit, name)) for name in panel.fields]
        return shown


def _value(name: str, value: Any) -> Any:
    if name in OF_EDITORS and value is not None:
        return {BACKGROUND: None, **value}
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
