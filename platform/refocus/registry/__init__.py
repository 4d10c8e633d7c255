"""Model versions that never change, aliases that move one at a time, and the gate between them."""
