"""Networks, losses, metrics, tiling and checkpoints: what turns a defocused image into a sharp one."""
