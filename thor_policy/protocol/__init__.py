"""The wire protocol: messages, how a frame becomes one, and how a reply becomes a frame."""
