"""Objective and camera: pupil, point spread function, image formation, noise, specimens.

Torch, batched, on any device, without Ray. Start at :class:`refocus.optics.settings.OpticalSystem` and
:func:`refocus.optics.psf.widefield_psf` for one instrument, or at
:class:`refocus.optics.random_defocus.RandomDefocus` for training pairs of many.
"""
