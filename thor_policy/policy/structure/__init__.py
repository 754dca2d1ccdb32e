"""What texts of a request mean: functions of the text alone, which packs call."""
