"""dlas: the Deep Learning Acceleration Stack as one package."""

__version__ = "0.1.0"
