"""One module per experiment: (model, images) -> rows. Notebooks show their source, so they are public by name."""
