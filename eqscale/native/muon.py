"""The C interface of ``muon.cpp``."""

SIGNATURES = {"muon": "ppppipittti"}
