"""For all tests: generated examples are the same each time, and may take the time that a busy machine gives them."""

try:
    from hypothesis import settings
except ModuleNotFoundError:  # a machine with a GPU may have no more than tests/gpu needs
    pass
else:
    settings.register_profile("suite", deadline=None, derandomize=True)
    settings.load_profile("suite")
