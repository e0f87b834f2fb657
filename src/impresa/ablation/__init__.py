"""Ablations: flip one switch of a config, train on several seeds, and say with error bars what it changed.

`study.py` says what is compared, `runner.py` trains it, `statistics.py` judges, `results.py` holds what was found and
`report.py` shows it.
"""
