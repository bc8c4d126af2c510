"""Supervised losses: what the student learns from the labels. One a file, found by name.

To add one, add a file here with a `TaskTerm` under `@TASK_LOSSES.register(NAME)`; recipes name it
in `task.losses`.
"""
