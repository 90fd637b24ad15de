"""A finding told to a person: the matrix of verdicts, the story of a finding, JSON.

* `narration`  replays a finding and keeps what a story needs: operations, changes, stacks, the state of the roots;
* `roots`      what the roots of a VM look like at one moment;
* `selection`  which operations matter to the reader;
* `story`      the finding in columns, one for each task;
* `matrix`     scenarios down, designs across, while the search runs and afterwards;
* `document`   the same for programs: JSON.
"""
