"""What a training's figures say to its owner: overfitting, a plateau, a base that is not preserved, no convergence.

Each sign is a function of the figures so far, so that it can be told once, when it first holds, and tested on curves
that were made for it.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

from controlnet.evaluation.convergence import Validation, find_convergence

Losses = Sequence[tuple[int, float]]  # (step, training loss)
Sign = Callable[[Sequence[Validation], Losses], str | None]

RISING = 3  # validations in a row that are worse than they were or than the base; one alone is chance
RISE = 0.02  # of the best held-out loss; fixed noise makes smaller differences real, but not yet worth a word
FLAT = 5  # validations that change nothing
STILL = 0.01  # what counts as nothing: relative of the loss, absolute of hint gain
LATE = 10_000  # steps; "usually less than 10K" (Zhang et al. 2023, section 3.4)
FORGOTTEN = 0.2  # of text accuracy; of 16 pictures with three questions each, three deviations of chance


def overfitting(history: Sequence[Validation], losses: Losses) -> str | None:
    """Held-out loss rises while training loss falls."""
    if not history:
        return None
    best = min(range(len(history)), key=lambda index: history[index].loss)
    low, since = history[best], history[best + 1 :]
    if len(since) < RISING or any(later.loss < (1 + RISE) * low.loss for later in since[-RISING:]):
        return None
    width = history[-1].step - low.step
    before = [loss for step, loss in losses if low.step - width < step <= low.step]
    after = [loss for step, loss in losses if step > low.step]
    if not before or not after or fmean(after) >= fmean(before):
        return None
    return (
        f"overfitting: since step {low.step} the held-out loss rises ({low.loss:.4f} -> {history[-1].loss:.4f}) while "
        f"the training loss falls ({fmean(before):.4f} -> {fmean(after):.4f}); use the checkpoint near that step, "
        "give more pairs, or train for less"
    )


def plateau(history: Sequence[Validation], losses: Losses) -> str | None:
    """After the convergence, nothing changes any more."""
    if find_convergence(history) is None or len(history) <= FLAT:
        return None
    start, last = history[-1 - FLAT], history[-FLAT:]
    moves = max(abs(each.loss - start.loss) / start.loss for each in last)
    gains = max(abs(each.hint_gain - start.hint_gain) for each in last)
    if moves > STILL or gains > STILL:
        return None
    return (
        f"plateau: since step {start.step} neither the held-out loss ({history[-1].loss:.4f}) nor the hint gain "
        f"({history[-1].hint_gain:.2f}) changes; a larger batch by --gradient-accumulation-steps or a lower "
        "--learning-rate may go further; else it is done"
    )


def not_preserved(history: Sequence[Validation], losses: Losses) -> str | None:
    """The base does with the control what it did better without."""
    if len(history) < 2:
        return None
    first, last = history[0], history[-1]
    if first.text_accuracy is not None and last.text_accuracy is not None:
        lost = first.text_accuracy - last.text_accuracy
        if lost > FORGOTTEN:
            return (
                f"the base is not preserved: with an empty hint {last.text_accuracy:.0%} of what the text says is "
                f"painted, {first.text_accuracy:.0%} before the training; lower --learning-rate, and lower still for "
                "an unlocked decoder"
            )
    recent = history[-RISING:]
    if len(recent) == RISING and all(each.base_loss and each.loss > (1 + RISE) * each.base_loss for each in recent):
        return (
            f"the control does harm: held-out loss {last.loss:.4f} with it, {last.base_loss:.4f} of the base alone; "
            "lower --learning-rate, and look at the pairs with `controlnet data check`"
        )
    return None


def late(history: Sequence[Validation], losses: Losses) -> str | None:
    """No convergence where there usually is one."""
    if not history or history[-1].step < LATE or find_convergence(history):
        return None
    return (
        f"no sudden convergence after {LATE} steps, where it usually has come: look whether the hints belong to their "
        "pictures, at the learning rate, and at docs/troubleshooting.md"
    )


SIGNS: dict[str, Sign] = {
    "overfitting": overfitting,
    "plateau": plateau,
    "not preserved": not_preserved,
    "late": late,
}


def signs(history: Sequence[Validation], losses: Losses) -> dict[str, str]:
    """What the figures so far say, by name."""
    found = {name: sign(history, losses) for name, sign in SIGNS.items()}
    return {name: text for name, text in found.items() if text}


def new_signs(history: Sequence[Validation], losses: Losses) -> list[str]:
    """What the last validation revealed: each sign is told when it appears, not at every validation after."""
    until = history[-2].step if len(history) > 1 else -1
    before = signs(history[:-1], [(step, loss) for step, loss in losses if step <= until])
    return [text for name, text in signs(history, losses).items() if name not in before]
