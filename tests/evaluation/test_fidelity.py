import cv2
import numpy as np
import pytest

from controlnet.data.colours import RGB
from controlnet.data.shapes import Scene, draw_scene, mask, render
from controlnet.evaluation.fidelity import colour_errors, disc, fidelity, fit_ring, region
from controlnet.evaluation.metrics import overlap

SIZE = 128


def ring(scene: Scene, size: int = SIZE) -> np.ndarray:
    canvas = np.zeros((size, size, 3), np.uint8)
    centre = round(scene.x * size * 16), round(scene.y * size * 16)
    cv2.circle(canvas, centre, round(scene.radius * size * 16), (255, 255, 255), 1, cv2.LINE_AA, 4)
    return canvas


def scenes(count: int) -> list[Scene]:
    random = np.random.default_rng(5)
    return [draw_scene(random, shapes=("circle",)) for _ in range(count)]


def test_the_true_picture_of_every_scene_has_fidelity_above_0_97() -> None:
    for scene in scenes(64):
        assert fidelity(render(scene, SIZE), ring(scene)) > 0.97, scene


def test_a_wrong_circle_scores_its_geometric_overlap() -> None:
    for first, second in zip(scenes(32)[:16], scenes(32)[16:], strict=True):
        geometric = overlap(mask(first, SIZE) > 127, mask(second, SIZE) > 127)
        assert fidelity(render(first, SIZE), ring(second)) == pytest.approx(geometric, abs=0.02)


def test_swapped_colours_do_not_change_fidelity() -> None:
    for scene in scenes(8):
        swapped = Scene(scene.shape, scene.background, scene.colour, scene.x, scene.y, scene.radius)
        assert fidelity(render(swapped, SIZE), ring(scene)) > 0.97


def test_a_flat_picture_has_fidelity_zero() -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (SIZE, SIZE, 3))
    assert fidelity(np.uint8(120 + noise), ring(scenes(1)[0])) == 0


def test_noise_and_blur_of_a_generator_cost_little() -> None:
    random = np.random.default_rng(1)
    for scene in scenes(16):
        soft = cv2.GaussianBlur(render(scene, SIZE), (0, 0), 1.5).astype(np.float64)
        noisy = soft + random.normal(0, 3, soft.shape)
        assert fidelity(noisy.clip(0, 255).astype(np.uint8), ring(scene)) > 0.9


def test_a_ring_cut_by_the_border_is_completed() -> None:
    scene = Scene("circle", "cyan", "pink", 0.15, 0.2, 0.4)
    fitted = fit_ring(ring(scene))
    assert fitted is not None
    assert np.allclose(fitted, (0.15 * SIZE, 0.2 * SIZE, 0.4 * SIZE), atol=0.3)


@pytest.mark.parametrize("kind", ["black", "white", "square", "noise"])
def test_a_hint_without_a_ring_has_no_disc(kind: str) -> None:
    hint = np.zeros((SIZE, SIZE, 3), np.uint8)
    if kind == "white":
        hint[:] = 255
    elif kind == "square":
        cv2.rectangle(hint, (20, 20), (100, 100), (255, 255, 255), 1)
    elif kind == "noise":
        hint = np.random.default_rng(0).integers(0, 256, hint.shape, dtype=np.uint8)
    assert fit_ring(hint) is None
    assert not disc(hint).any()


def test_region_of_the_largest_shape_is_not_taken_for_the_ground() -> None:
    scene = Scene("circle", "red", "white", 0.15, 0.15, 0.4)
    assert overlap(region(render(scene, SIZE)), mask(scene, SIZE) > 127) > 0.97


def test_colours_as_named_have_small_errors_and_others_large() -> None:
    for scene in scenes(16):
        inside, picture = mask(scene, SIZE) > 127, render(scene, SIZE)
        assert max(colour_errors(picture, inside, RGB[scene.colour], RGB[scene.background])) < 1
        assert min(colour_errors(picture, inside, RGB[scene.background], RGB[scene.colour])) > 10
