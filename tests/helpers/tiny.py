"""The smallest model.from_scratch, for tests and the programs they start."""

TINY = dict(
    hidden_size=32,
    layers=2,
    heads=4,
    vision_hidden_size=32,
    vision_layers=1,
    image_size=32,
    patch_size=8,
    scale_factor=2,
    vocab_size=320,
)
