"""An executable model of KVM's TDP MMU, and a checker that runs it under every interleaving that matters."""

from importlib.metadata import version

__version__ = version("interleaf")
