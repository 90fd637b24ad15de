"""Traces of real kernels: the text that ftrace and trace-cmd write, read into records, and what follows from it.

* `records`    one record for each event of KVM's MMU, with the kernel's field names;
* `texts`      how the kernels since 5.12 print each of them, and the reading of such a text;
* `formats`    the same from the events' own `format` files, for kernels that print them in another way;
* `source`     the lines of a file, plain or gzip, in bounded memory;
* `reader`     from lines to events; what cannot be read is counted and located;
* `stimuli`    memslot changes and what a driver marks, whichever way a trace tells of them;
* `spte`       what can be seen of an entry without knowing the machine;
* `tables`     page tables as a trace tells of them;
* `tasks`      what each task was doing when an event of its appeared;
* `changes`    one change of an entry, and what is told of it;
* `fitting`    which table such a change can be about;
* `reconstruct` the page tables at any moment, with a check that each event fits what came before;
* `snapshots`  walks through the real page tables, and their comparison with what was reconstructed;
* `series`     counting over time in bounded memory;
* `summary`    what a person wants to know of a trace;
* `compare`    the model, driven by a trace, beside what the kernel did, by `options`, `host`, `programs`, `drive`,
               `matching`, `lookups`, `walks`, `divergences` and `outcome`;
* `printing`   the model's own events as the kernel prints them;
* `writing`    a run of the model as a trace;
* `tracefs`, `record`  making such a trace on a live host.

A trace is never trusted: events may be lost, lines cut or mixed with other text, kernels newer than this program.
Whatever is not understood is counted with its place, and whatever is concluded in spite of it says so.
"""
