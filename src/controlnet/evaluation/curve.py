"""The curve of a training: loss, hint gain and fidelity over steps, with the point of sudden convergence."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from controlnet.atomic import write_atomically
from controlnet.evaluation.convergence import Validation, find_convergence

LOSS, HELD_OUT, GAIN, FIDELITY, MARK = "#b8b8b8", "#4a4a4a", "#d1495b", "#00798c", "#edae49"


def draw_curve(path: Path, losses: Sequence[tuple[int, float]], history: Sequence[Validation]) -> None:
    """Write the curve as PNG; `losses` are (step, training loss)."""
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    obeys = figure.add_subplot()
    loss = obeys.twinx()
    obeys.set_zorder(loss.get_zorder() + 1)
    obeys.patch.set_visible(False)

    steps = [validation.step for validation in history]
    loss.plot([step for step, _ in losses], [value for _, value in losses], color=LOSS, lw=1, label="training loss")
    loss.plot(steps, [validation.loss for validation in history], color=HELD_OUT, ls=":", label="held-out loss")
    obeys.plot(steps, [validation.hint_gain for validation in history], color=GAIN, marker=".", label="hint gain")
    judged = [(validation.step, validation.fidelity) for validation in history if validation.fidelity is not None]
    if judged:
        obeys.plot([step for step, _ in judged], [f for _, f in judged], color=FIDELITY, marker=".", label="fidelity")
    convergence = find_convergence(history)
    if convergence:
        obeys.axvline(convergence.step, color=MARK, lw=2, label=f"sudden convergence, step {convergence.step}")

    obeys.set(xlabel="step", ylabel="hint gain, fidelity", ylim=(-0.05, 1.05))
    loss.set_ylabel("loss")
    loss.set_ylim(bottom=0)
    lines = [line for axes in (obeys, loss) for line in axes.get_lines()]
    obeys.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
