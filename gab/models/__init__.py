"""Networks, and the parts that their sockets take."""

from gab.models.build import build, variant
from gab.models.gaussian import Gaussian, gaussians

__all__ = ["Gaussian", "build", "gaussians", "variant"]
