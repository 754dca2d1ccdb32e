"""What operators see: log lines, metrics, the watchdog, and facts about the machine."""
