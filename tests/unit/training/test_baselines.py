import numpy as np
from skimage import data

from refocus.model.metrics import psnr, ssim
from refocus.training.baselines import BASELINES, RICHARDSON_LUCY, WIENER, best_settings
from refocus.training.scenes import SceneSettings, SharpImage, scenes_of

SETTINGS = SceneSettings(defocus_um=(1, 6), photons=(1000,))


def scenes():
    pixels = data.camera()[80:280, 80:280]
    return list(scenes_of([SharpImage(pixels[None], "cameraman", "fluorescence")], SETTINGS))


def test_each_depth_gets_the_setting_that_scores_best_there():
    together = scenes()
    best = best_settings(together, [WIENER])
    for scene in together:
        by_setting = dict(WIENER.restore(scene, WIENER.grid))
        rows = dict(best.rows(WIENER, scene))
        assert psnr(rows["wiener"], scene.truth) == max(psnr(i, scene.truth) for i in by_setting.values())
        assert ssim(rows["wiener_ssim"], scene.truth) == max(ssim(i, scene.truth) for i in by_setting.values())


def test_deeper_blur_asks_for_more_steps():
    best = best_settings(scenes(), [RICHARDSON_LUCY])
    steps = [best.chosen["rl", "psnr", ("fluorescence", z, 1000.0)] for z in (1.0, 6.0)]
    assert steps[0] < steps[1]


def test_settings_are_written_down_in_words():
    best = best_settings(scenes()[:1], BASELINES)
    words = best.described()
    assert len(words) == 2 * len(BASELINES)
    assert words["rl | psnr | fluorescence | 1 um | 1000"].isdigit()


def test_methods_with_the_true_psf_beat_the_input_far_from_focus():
    together = scenes()
    best = best_settings(together)
    scene = together[1]
    before = psnr(scene.image, scene.truth)
    for baseline, gain in zip(BASELINES, (0.2, 2.0, 2.0), strict=True):
        rows = dict(best.rows(baseline, scene))
        assert psnr(rows[baseline.name], scene.truth) > before + gain, baseline.name
        assert all(np.isfinite(image).all() for image in rows.values())
