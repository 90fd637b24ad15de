"""Random scenarios: VMs and tasks composed at random, checked, and shrunk to a small scenario file.

* `actions`   what a task of a random scenario can do, and how that is written down in a scenario file;
* `plans`     random scenarios as values, and how Hypothesis draws them;
* `source`    a plan as the text of a scenario file;
* `trial`     one random scenario tried;
* `fuzz`      draw, check, and shrink what is found, for a given time.

A random scenario is nothing but its file: what is checked is the text that a user gets.
"""
