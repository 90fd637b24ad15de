"""Measurements: every published figure comes from here, with the peers measured in the same run.

`python -m bench` (or `make bench`) runs all benchmarks, prints their tables, keeps what was measured in
`results.json` and renews the tables in `docs/bench.md`. `python -m bench locks hole` runs these two.

* `measure`      running something in its own process, with its time and peak memory; medians
* `programs`     the programs that are searched, by name
* `alone`        one search of one program, in a process of its own
* `spin`, `python_peers`   the peers: where they come from, and how they are run
* `locks`, `hole`, `ingredients`, `symmetry`, `growth`, `reductions`, `memory`, `compiled`, `tracing`, `comparing`   the
  benchmarks, one module each
* `report`       tables, and the document that holds them
"""
