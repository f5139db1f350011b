"""How a batch becomes numbers."""
