"""Copy-on-write machines on this Linux host."""
