"""Other servers, each in an environment of its own, with the same model and the same texts."""
