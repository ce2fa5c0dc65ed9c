"""The paper's experiments and figures: studies of many runs, and the gates of one."""
