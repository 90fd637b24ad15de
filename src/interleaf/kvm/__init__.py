"""The hypervisor: VM, memslots, vCPU loop, requests, page faults, dirty log, zap-all."""
