"""The machine: physical frames, EPT and NPT entry formats, page walk, TLBs, accessed and dirty bits."""
