"""Training: a plain torch loop, and Ray Train around it."""
