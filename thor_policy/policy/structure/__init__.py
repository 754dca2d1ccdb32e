"""What texts of a request are made of: parsers whose results rules read, total and bounded in time."""
