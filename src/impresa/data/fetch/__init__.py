"""From a table of addresses to tar shards: each address once, what happened to it in a ledger, resumable at any moment.

`table.py` reads the table, `ledger.py` remembers, `schedule.py` says whose turn it is, `download.py` talks to servers,
`content.py` looks at what came, `shards.py` writes it, and `run.py` joins them.
"""
