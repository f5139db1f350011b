"""What the score should be: the path of a request."""
