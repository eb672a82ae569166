"""The C interface of ``steps.cpp``."""

SIGNATURES = {"clip": "pppiti", "adamw": "ppppltttttti", "join": "pppii", "add_pieces": "pppii"}
