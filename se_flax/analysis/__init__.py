"""The paper's experiments and figures: studies of many runs, and what the gates of one do."""
