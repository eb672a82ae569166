"""The jobs of ``eqscale run``: each plans runs, trains what is missing with Ray Tune, and reports."""

JOBS = {
    "grid": "which arm wins at a given training compute, and how large should it be?",
    "data": "at fixed compute, what is more unique data worth to each arm?",
    "controls": "does the symmetry make the difference?",
    "validate": "does a prediction hold above the budgets of the grid?",
    "search": "which learning rate, batch size and other settings suit an arm?",
    "shapes": "does it matter whether an arm is wide or deep?",
}
"""Name of each job, which is also that of its module, and the question it answers."""
