"""How pictures are sampled, whatever they show."""

from dataclasses import dataclass

from controlnet.generation.steps import WHOLE, OverSteps

IMAGE_STRENGTH = 0.8  # diffusers' for pictures under control


@dataclass(frozen=True)
class Settings:
    """All that makes a picture beside base, prompt, seed, units and size."""

    steps: int = 20
    guidance_scale: OverSteps = 9.0
    """One for all steps, one for each, or a function of the fraction of steps done; 1 is without guidance."""
    scheduler: str = "ddim"
    negative_prompt: str = ""
    clip_skip: int = 1
    added_prompt: str = ""
    """Put behind every prompt, after a comma."""
    prompt_weights: bool = True
    """Whether (word:1.3), (word) and [word] in prompts are weights; else brackets are read as text."""
    guidance_interval: tuple[float, float] = WHOLE
    """The fractions of the steps between which guidance acts; outside them its negative side is not run."""
    eta: float = 0.0
    """Of ddim: 0 adds no noise at its steps, 1 as much as ancestral sampling."""
    timesteps: tuple[int, ...] | None = None
    """In place of `steps`: what the scheduler walks, falling."""
    image_strength: float = IMAGE_STRENGTH
    """Of a picture to start from: the last fraction of the steps that is walked. At 1 all are, and the picture counts
    only as far as the first timestep does not drown it in noise; inpainting then starts from noise alone."""

    def positive(self, prompt: str) -> str:
        """The prompt as it is heard."""
        return ", ".join(filter(None, (prompt, self.added_prompt)))
