"""Values over the steps of the loop: the same at each, one for each, or a function of how far the loop has come."""

from collections.abc import Callable, Sequence

from controlnet.errors import UserError

# a function is given the fraction of the steps that are done: 0 at the first, (n - 1) / n at the last of n
OverSteps = float | Sequence[float] | Callable[[float], float]
WHOLE = (0.0, 1.0)


def at_each(values: OverSteps, count: int) -> list[float]:
    """The value at each of `count` steps. UserError for a list of another length."""
    if callable(values):
        return [float(values(index / count)) for index in range(count)]
    if isinstance(values, int | float):
        return [float(values)] * count
    if len(values) != count:
        raise UserError(f"a list of {len(values)} values for {count} steps; expected one for each")
    return [float(value) for value in values]


def is_within(index: int, count: int, window: tuple[float, float]) -> bool:
    """Whether step `index` of `count` lies in a window of fractions of all steps; diffusers' rule."""
    start, end = window
    return index / count >= start and (index + 1) / count <= end


def window_problems(window: tuple[float, float], count: int) -> list[str]:
    """Why a window cannot be used over `count` steps; empty if it can."""
    start, end = window
    if not 0 <= start < end <= 1:
        return [f"a window from {start} to {end} of the steps; expected 0 <= start < end <= 1"]
    if not any(is_within(index, count, window) for index in range(count)):
        return [f"a window from {start} to {end}, in which no whole step of {count} lies; widen it or take more steps"]
    return []
