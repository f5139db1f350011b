"""What callers send becomes exactly the ids that a model sees."""
