"""The HTTP client: NumPy arrays and files in, in-focus arrays and files out. Needs neither Ray nor torch."""

from refocus.client.answers import Answered, Refocused
from refocus.client.client import Client, FocusResult

__all__ = ["Answered", "Client", "FocusResult", "Refocused"]
