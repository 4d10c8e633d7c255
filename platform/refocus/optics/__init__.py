"""Objective and camera: pupil, point spread function, image formation, noise, specimens."""
