"""What people and agents do on a machine: files, output of jobs, statistics, stray processes."""
