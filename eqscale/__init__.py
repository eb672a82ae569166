"""eqscale: does building a symmetry into a network still pay when compute and data grow?"""

__version__ = "0.1.0"
