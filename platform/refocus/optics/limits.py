"""What objectives there are, for those who check what is said of one; imports nothing, so that commands start fast."""

from __future__ import annotations

#: Of any objective that is made.
LARGEST_APERTURE = 1.7
