"""The profile `own`: settings that follow from the number and the size of somebody's own pictures."""
