"""Numbers of learned prompts where nothing else is asked for (docs/method.md, M3); no torch, so drivers can read it."""

NUM_CONTEXT = 16  # vectors of a prompt
INIT_STD = 0.02  # of the initial vectors; CoOp
NUM_BACKGROUNDS = 25  # prompts without a name
