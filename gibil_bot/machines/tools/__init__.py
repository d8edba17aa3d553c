"""Tools for people and agents on a machine: files, output of jobs, statistics, stray processes."""
