"""What texts in a request mean: names, and texts of a known grammar."""
