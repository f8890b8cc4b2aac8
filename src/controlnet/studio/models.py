"""What is open: one base with its LoRAs, its controls, and the annotators; opened when first needed, then kept."""

from collections.abc import Mapping
from pathlib import Path
from threading import RLock
from typing import Any

from controlnet.annotators.annotator import Annotator, all_options
from controlnet.annotators.table import load
from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import ControlMetadata, find_control, load_control, read_metadata
from controlnet.checkpoints.control_metadata import ChannelOrder
from controlnet.checkpoints.strict import check_fit
from controlnet.control import ControlNet
from controlnet.devices import fastest_dtype
from controlnet.errors import UserError
from controlnet.generation.lora import Lora, load_lora
from controlnet.generation.opening import Opener, make_annotator
from controlnet.generation.recipe import Recipe, UnitChoice
from controlnet.studio.offer import Offer, chosen

Key = tuple[Any, ...]
AT_STEP = " @ "  # between a run's control and the step of one of its checkpoints
CONTROL = "control."  # before the names of its weights in a checkpoint
ANNOTATORS_KEPT = 4  # with their networks


class Models:
    """Of a studio. Only one thread may sample at a time; annotators have a lock of their own."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.annotating = RLock()
        self._opening = RLock()
        self._base: tuple[str, Base] | None = None
        self._loras: tuple[Key, list[Lora]] = ((), [])
        self._controls: dict[Key, ControlNet] = {}
        self._annotators: dict[Key, Annotator] = {}
        self._record: tuple[Key, Opener] | None = None

    def base(self, name: str) -> Base:
        """The base called so, its hash taken; the one before it is forgotten, with its controls."""
        place = chosen("base", name, self.offer.bases)
        with self._opening:
            if self._base is None or self._base[0] != place:
                self._base, self._controls, self._loras = None, {}, ((), [])
                base = open_base(place, self.offer.device, fastest_dtype(self.offer.dtype, self.offer.device))
                base.hash()
                self._base = (place, base)
            return self._base[1]

    def with_loras(self, base: Base, weights: Mapping[str, float]) -> None:
        """Merge these LoRAs, and no others. UserError for one that does not fit; then none is merged."""
        wanted = tuple(weights.items())
        with self._opening:
            if wanted == self._loras[0]:
                return
            for merged in reversed(self._loras[1]):
                merged.remove()
            self._loras = ((), [])
            merged_now: list[Lora] = []
            try:
                for name, weight in wanted:
                    merged_now.append(_lora(base, name, chosen("LoRA", name, self.offer.loras), weight))
            except BaseException:
                for merged in reversed(merged_now):
                    merged.remove()
                raise
            self._loras = (wanted, merged_now)

    def place(self, control: str) -> str:
        """The file, folder or name behind a control's name; the checkpoint behind that of `at_step`."""
        name, _, step = control.partition(AT_STEP)
        place = chosen("control", name, self.offer.controls)
        if not step:
            return place
        from controlnet.training.checkpoint import checkpoints  # Lightning, a second that the first page does not need

        saved = {str(each): str(path) for each, path in checkpoints(Path(place))}
        return chosen(f"{name}: training step", step, saved)

    def control(self, name: str, is_bgr: bool, base: Base) -> ControlNet:
        """Opened anew when its file has changed: a training goes on. `at_step` names it as it once was."""
        place = self.place(name)
        key = (place, is_bgr, find_control(place, base.family).stat().st_mtime_ns)
        with self._opening:
            if key not in self._controls:
                opened = self._opened(name, "BGR" if is_bgr else "RGB", base)
                self._controls = {old: it for old, it in self._controls.items() if old[:2] != key[:2]} | {key: opened}
            return self._controls[key]

    def _opened(self, name: str, order: ChannelOrder, base: Base) -> ControlNet:
        run, _, step = name.partition(AT_STEP)
        control, _ = load_control(self.place(run), base, channel_order=order)
        if step:
            from controlnet.training.checkpoint import SafetensorsIO

            state = SafetensorsIO().load_checkpoint(self.place(name))["state_dict"]
            mine = {name.removeprefix(CONTROL): it for name, it in state.items() if name.startswith(CONTROL)}
            check_fit(self.place(name), mine, control.state_dict())
            control.load_state_dict(mine)
        return control

    def record(self, recipe: Recipe, base: Base) -> Opener:
        """What knows the fingerprints of the models in `recipe`; kept while their files stay the same."""
        controls = {unit.control: find_control(unit.control, base.family) for unit in recipe.units}
        key = (recipe.base, recipe.lora, *((name, file.stat().st_mtime_ns) for name, file in controls.items()))
        if self._record is None or self._record[0] != key:
            opener = Opener(recipe, self.offer.device, self.offer.dtype)
            vars(opener)["base"] = base  # is open: it need not open another
            self._record = (key, opener)
        return self._record[1]

    def metadata(self, name: str) -> ControlMetadata:
        """What is known of a control; of one `at_step`, what is known of its run's."""
        return read_metadata(self.place(name.partition(AT_STEP)[0]))

    def annotator(self, name: str, options: Mapping[str, Any]) -> Annotator:
        """With its network, which all annotators of its kind with the same options share."""
        given = {it: str(to) for it, to in options.items()}
        if self.offer.weights is not None and any(it.name == "weights_dir" for it in all_options(load(name))):
            given["weights_dir"] = str(self.offer.weights)
        choice = UnitChoice(control="", annotator=name, annotator_options=given)
        key = (name, *sorted(given.items()))
        with self.annotating:
            if key not in self._annotators:
                while len(self._annotators) >= ANNOTATORS_KEPT:
                    del self._annotators[next(iter(self._annotators))]
                self._annotators[key] = make_annotator(choice, self.offer.device)
            return self._annotators[key]


def _lora(base: Base, name: str, path: Path, weight: float) -> Lora:
    """UserError by name: where the file lies is nobody's to see."""
    try:
        return load_lora(base, path, weight)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error


def at_step(control: str, step: int) -> str:
    """The name of a run's control as it was after so many steps of its training."""
    return f"{control.partition(AT_STEP)[0]}{AT_STEP}{step}"
